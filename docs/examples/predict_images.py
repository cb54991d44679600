"""Predict masks of images in your own program: arrays in, class indices out."""

from fcn_core import Predictor
from fcn_core.datasets.scenes import render_scene
from fcn_core.images import encode_image, encode_mask, overlay

predictor = Predictor.load("demo", device="cpu", precision="fp32")

# (H, W, 3) uint8 RGB arrays of any sizes; here rendered scenes. For files: decode_image(bytes).
images = [render_scene(seed).image for seed in (1, 2, 3)]
predictions = predictor.predict(images)

for number, (image, prediction) in enumerate(zip(images, predictions, strict=True)):
    names = [predictor.labels.classes[k] for k in sorted(set(prediction.mask.flat))]
    print(f"image {number}: {', '.join(names)} ({prediction.mean_confidence:.2f})")
    palette = predictor.labels.palette
    with open(f"{number}-mask.png", "wb") as file:
        file.write(encode_mask(prediction.mask, palette))
    with open(f"{number}-overlay.png", "wb") as file:
        file.write(encode_image(overlay(image, prediction.mask, palette)))
