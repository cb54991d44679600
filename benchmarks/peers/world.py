"""The images, the labels and the weights of the job."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from benchmarks.peers.segmenter import LABELS
from fcn_core.datasets.scenes import render_scene
from fcn_core.networks.architecture import Architecture
from fcn_core.networks.model import FCN
from fcn_core.preprocessing import CAFFE_VOC
from fcn_core.weights.weights_file import save_weights
from fcn_core.weights.weights_info import WeightsInfo

CAMVID = Path(__file__).parents[2] / "../shared/data/camvid/val"
"""Photographs that lie beside a checkout, and are no part of it."""

FIRST_SEED = 6_000_000


def make_folder(folder: Path, photographs: int, scenes: int) -> None:
    """Photographs of 480x360, as many as there are, and scenes of mixed sizes, as JPEG and PNG."""
    for top in ("images", "labels"):
        (folder / top).mkdir(parents=True)
    for path in sorted((CAMVID / "images").glob("*.jpg"))[:photographs]:
        shutil.copy(path, folder / "images")
        shutil.copy(CAMVID / "labels" / f"{path.stem}.png", folder / "labels")
    for seed in range(scenes):
        write_scene(folder, seed)


def write_scene(folder: Path, seed: int, size: tuple[int, int] | None = None) -> None:
    """One scene, of drawn size unless (height, width) is given."""
    scene = render_scene(FIRST_SEED + seed, size)
    Image.fromarray(scene.image).save(folder / f"images/scene-{seed:05d}.jpg", quality=92)
    Image.fromarray(scene.label).save(folder / f"labels/scene-{seed:05d}.png")


def make_weights(path: Path, width: float = 1.0) -> None:
    """FCN-8s with random weights that keep activations alive, and scores that are not zero."""
    generator = torch.Generator().manual_seed(0)
    architecture = Architecture("fcn8s", LABELS.num_classes, width)
    model = FCN(architecture)
    model.reset_parameters(generator)
    for name, parameter in model.named_parameters():
        if name.startswith("score"):
            nn.init.normal_(parameter, std=0.05, generator=generator)
    info = WeightsInfo(architecture, LABELS, CAFFE_VOC, {"made": "at random, seed 0"})
    path.write_bytes(save_weights(model, info))
