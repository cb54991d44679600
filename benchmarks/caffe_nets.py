"""Compare the authors' own network files, run by OpenCV, with our networks on converted weights.

The benchmark reads each released net from its prototxt in a checkout of
shelhamer/fcn.berkeleyvision.org, reduces the width of its trunk to a sixteenth, and writes random
weights with Caffe's own caffe.proto. OpenCV's Caffe importer computes the scores of a random image,
and `fcn_core.weights.convert` reads the same caffemodel. The two computations share no code. The
benchmark needs two checkouts and two packages that the project does not need:

    git clone https://github.com/shelhamer/fcn.berkeleyvision.org fcn
    git clone https://github.com/BVLC/caffe
    pip install grpcio-tools "opencv-python-headless<5"
    python -m benchmarks.caffe_nets fcn caffe --json benchmarks/caffe_nets.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fcn_core.labels import label_set
from fcn_core.networks.upsampling import bilinear_kernel
from fcn_core.weights.convert import ConvertOptions, convert

SIZE = (97, 131)
NARROWER = 16
LABEL_SETS = {
    "voc": ("voc",),
    "pascalcontext": ("context60",),
    "siftflow": ("siftflow", "siftflow-geo"),
    "nyud": ("nyudv2",),
}
VARIANTS = {"fcn32s-color": "fcn32s", "fcn32s-hha": "fcn32s"}
LEFT_OUT = ("SoftmaxWithLoss", "Dropout", "Silence")
CHANNELS = {"data": 3, "color": 3, "depth": 1, "hha": 3}
"""Of what the authors' data layers put out; anything else is a label."""


def main() -> None:
    """Compare every released net and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("fcn", type=Path, help="checkout of shelhamer/fcn.berkeleyvision.org")
    parser.add_argument("caffe", type=Path, help="checkout of BVLC/caffe")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        caffe_pb2 = compile_proto(arguments.caffe, Path(folder))
        for path in sorted(arguments.fcn.glob("*/*.prototxt")):
            if path.stem in ("val", "test"):
                rows += compare(caffe_pb2, path, Path(folder))
                print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def compile_proto(caffe: Path, folder: Path) -> Any:
    """Caffe's messages, from its own definition."""
    source = caffe / "src/caffe/proto"
    command = ("-m", "grpc_tools.protoc", f"-I{source}", f"--python_out={folder}", "caffe.proto")
    subprocess.run([sys.executable, *command], check=True)
    sys.path.insert(0, str(folder))
    return importlib.import_module("caffe_pb2")


def compare(caffe_pb2: Any, path: Path, folder: Path) -> list[dict[str, Any]]:
    """One row per head: the largest difference of logits, relative to the largest logit."""
    import cv2
    from google.protobuf import text_format

    name = path.parent.name
    published = caffe_pb2.NetParameter()
    text_format.Parse(path.read_text(), published)
    generator = np.random.default_rng(len(name))
    net, inputs = narrowed(caffe_pb2, published, generator)
    data = net.SerializeToString()
    (folder / "net.caffemodel").write_bytes(data)
    for layer in net.layer:
        del layer.blobs[:]
    (folder / "net.prototxt").write_text(text_format.MessageToString(net))
    opencv = cv2.dnn.readNetFromCaffe(str(folder / "net.prototxt"), str(folder / "net.caffemodel"))
    images = {
        top: (50 * generator.standard_normal((1, channels, *SIZE))).astype(np.float32)
        for top, channels in inputs.items()
    }
    for top, image in images.items():
        opencv.setInput(image, top)
    scores = [layer.name for layer in net.layer if layer.type == "Crop"
              and layer.name in ("score", "score_sem", "score_geo")]  # fmt: skip
    expected = dict(zip(scores, opencv.forward(scores), strict=True))

    dataset, _, rest = name.partition("-")
    labels = tuple(label_set(one) for one in LABEL_SETS[dataset])
    variant: Any = VARIANTS.get(rest, rest)
    model = convert(data, ConvertOptions("caffe", variant, labels), name).model
    image = torch.from_numpy(np.concatenate(list(images.values()), axis=1))
    with torch.inference_mode():
        found = model.forward_heads(image)
    rows = []
    for head, logits in found.items():
        theirs, ours = expected[f"score_{head}" if head else "score"], logits.numpy()
        rows.append({
            "net": name,
            "head": head,
            "relative_difference": float(abs(ours - theirs).max() / abs(theirs).max()),
            "equal_pixels": float((ours.argmax(1) == theirs.argmax(1)).mean()),
            "classes_in_mask": len(np.unique(theirs.argmax(1))),
        })  # fmt: skip
    return rows


def narrowed(
    caffe_pb2: Any, published: Any, generator: np.random.Generator
) -> tuple[Any, dict[str, int]]:
    """The net with random weights and a narrower trunk, without data and loss, and its inputs."""
    net, inputs, channels = caffe_pb2.NetParameter(), {}, {}
    for layer in published.layer:
        if layer.type == "Python":
            inputs = {top: CHANNELS[top] for top in layer.top if top in CHANNELS}
            channels |= inputs
            for top, count in inputs.items():
                added = net.layer.add(name=top, type="Input", top=[top])
                added.input_param.shape.add().dim.extend((1, count, *SIZE))
        elif layer.type not in LEFT_OUT:
            copy = net.layer.add()
            copy.CopyFrom(layer)
            del copy.include[:]
            counts = [channels[bottom] for bottom in layer.bottom]
            for array in weights(copy, counts[0], generator):
                blob = copy.blobs.add()
                blob.shape.dim.extend(array.shape)
                blob.data.extend(array.ravel().tolist())
            outputs = sum(counts) if layer.type == "Concat" else counts[0]
            if layer.type in ("Convolution", "Deconvolution"):
                outputs = copy.convolution_param.num_output
            channels[layer.top[0]] = outputs
    return net, inputs


def weights(layer: Any, inputs: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Random weights of a layer, whose width is changed to fit a narrower trunk."""
    if layer.type == "Scale":
        return [np.full(inputs, layer.scale_param.filler.value)]
    if layer.type not in ("Convolution", "Deconvolution"):
        return []
    parameters = layer.convolution_param
    size = parameters.kernel_size[0]
    if layer.type == "Deconvolution":  # what surgery.interp leaves there
        weight = np.zeros((inputs, parameters.num_output, size, size))
        weight[range(inputs), range(inputs)] = bilinear_kernel(size)
        return [weight]
    if not layer.name.startswith("score"):
        parameters.num_output //= NARROWER
    shape = (parameters.num_output, inputs // parameters.group, size, size)
    spread = np.sqrt(2 / np.prod(shape[1:]))  # keeps the size of what passes through
    bias = 0.1 * generator.standard_normal(shape[0])
    return [spread * generator.standard_normal(shape), bias]


if __name__ == "__main__":
    main()
