"""Label pictures in your own program: arrays in, class indices out."""

from fcn_core.datasets.scenes import render_scene
from fcn_core.images import encode_image, encode_mask, overlay
from fcn_core.predictor import Predictor

predictor = Predictor.load("demo", device="cpu", precision="fp32")

# Any mixture of sizes; here rendered ones, (H, W, 3) uint8 RGB. Files: decode_image(bytes).
pictures = [render_scene(seed).image for seed in (1, 2, 3)]
predictions = predictor.predict(pictures)

for number, (picture, prediction) in enumerate(zip(pictures, predictions, strict=True)):
    names = [predictor.labels.classes[k] for k in sorted(set(prediction.mask.flat))]
    print(f"picture {number}: {', '.join(names)} ({prediction.mean_confidence:.2f})")
    palette = predictor.labels.palette
    with open(f"{number}-mask.png", "wb") as file:
        file.write(encode_mask(prediction.mask, palette))
    with open(f"{number}-overlay.png", "wb") as file:
        file.write(encode_image(overlay(picture, prediction.mask, palette)))
