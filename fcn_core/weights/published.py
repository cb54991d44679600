"""The published weights: file names, checksums, purposes, and the scores that their authors report.

Sources: README.md and the caffemodel-url files of shelhamer/fcn.berkeleyvision.org; README.md of
wkentaro/fcn (exact scores of the caffemodels on seg11valid) and of wkentaro/pytorch-fcn (md5s,
scores of the conversions); readme.md of BVLC/caffe's models and testdata/dnn/download_models.py of
opencv/opencv_extra (sha1s); torchvision's file names (the start of a sha256). Only scores from
these sources are listed; this project scored none of these files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fcn_core.errors import WeightsError
from fcn_core.networks.architecture import Variant

SourceFormat = Literal["caffe", "pytorch-fcn", "torchvision", "vgg-caffe-pth"]

SOURCE_FORMATS: tuple[SourceFormat, ...] = get_args(SourceFormat)


BERKELEY = "http://dl.caffe.berkeleyvision.org"


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
        file: File name.
        format: Name of the format in `fcnseg weights convert --from`.
        variant: Variant of the network; None for a classifier that can start several variants.
        label_sets: Label sets of the heads, as for `--label-set`; empty for a classifier.
        purpose: Short description.
        source: Address given by the authors. Old links may be dead.
        checksum: "md5:…", "sha1:…" or "sha256:…" (or the start of one); "" if unknown.
        preprocessing: A key of `fcn_core.preprocessing.PREPROCESSINGS`.
        scores: Percent, with the names of scores.json.
        scores_from: Source of the scores, and the images they were measured on.
    """

    file: str
    format: SourceFormat
    variant: Variant | None
    label_sets: tuple[str, ...]
    purpose: str
    source: str
    checksum: str = ""
    preprocessing: str = "voc"
    scores: Mapping[str, float] = field(default_factory=dict)
    scores_from: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**vars(self), "label_sets": list(self.label_sets), "scores": dict(self.scores)}


def _four(*percent: float) -> dict[str, float]:
    names = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")
    return dict(zip(names, percent, strict=True))


_CHAINER = "wkentaro/fcn README, seg11valid (736 images)"

_AUTHORS = "shelhamer/fcn.berkeleyvision.org README, seg11valid (736 images)"

_PYTORCH_FCN = "wkentaro/pytorch-fcn README, seg11valid (736 images)"


def _voc(
    file: str, variant: Variant, scores: dict[str, float], checksum: str = "", by: str = _CHAINER
) -> Published:
    purpose = "the paper's VOC nets: 20 classes and background"
    source = f"{BERKELEY}/{file}"
    return Published(file, "caffe", variant, ("voc",), purpose, source, checksum, "voc", scores, by)


def _other(
    file: str, variant: Variant, label_sets: tuple[str, ...], preprocessing: str, purpose: str
) -> Published:
    return Published(
        file, "caffe", variant, label_sets, purpose, f"{BERKELEY}/{file}", "", preprocessing
    )


def _pytorch_fcn(file: str, variant: Variant, md5: str, mean_iou: float) -> Published:
    return Published(
        file, "pytorch-fcn", variant, ("voc",), "the VOC caffemodel of that name as a state dict",
        "Google Drive, linked by wkentaro/pytorch-fcn", f"md5:{md5}", "voc",
        {"mean_iou": mean_iou}, _PYTORCH_FCN,
    )  # fmt: skip


def _start(
    file: str, form: SourceFormat, source: str, checksum: str, purpose: str,
    variant: Variant | None = None,
) -> Published:  # fmt: skip
    preprocessing = "torchvision" if form == "torchvision" else "voc"
    return Published(file, form, variant, (), purpose, source, checksum, preprocessing)


_VGG = "ImageNet weights to start training a VGG-16 net from"

_CONTEXT = "59 classes and background of PASCAL-Context"

_SIFT = "SIFT Flow: 33 semantic and 3 geometric classes, two heads"


PUBLISHED: tuple[Published, ...] = (
    _voc("fcn32s-heavy-pascal.caffemodel", "fcn32s", _four(90.4810, 76.4824, 63.6261, 83.4580),
         "sha1:05eb922d7829c39448f57e5ab9d8cd75d6c0be6d"),
    _voc("fcn16s-heavy-pascal.caffemodel", "fcn16s", _four(90.9971, 78.0710, 65.0050, 84.2614)),
    _voc("fcn8s-heavy-pascal.caffemodel", "fcn8s", _four(91.2212, 77.6146, 65.5126, 84.5445),
         "sha1:c449ea74dd7d83751d1357d6a8c323fcf4038962"),
    _voc("fcn8s-atonce-pascal.caffemodel", "fcn8s-atonce",
         _four(91.1288, 78.4979, 65.3998, 84.4326)),
    _voc("fcn-alexnet-pascal.caffemodel", "fcn-alexnet", {"mean_iou": 48.0}, by=_AUTHORS),
    *(_other(f"pascalcontext-{variant}-heavy.caffemodel", variant, ("context60",), "context",
             _CONTEXT) for variant in ("fcn32s", "fcn16s", "fcn8s")),
    *(_other(f"siftflow-{variant}-heavy.caffemodel", variant, ("siftflow", "siftflow-geo"),
             "siftflow", _SIFT) for variant in ("fcn32s", "fcn16s", "fcn8s")),
    _other("nyud-fcn32s-color-heavy.caffemodel", "fcn32s", ("nyudv2",), "nyud",
           "NYUDv2, 40 classes, from color images"),
    _other("nyud-fcn32s-hha-heavy.caffemodel", "fcn32s", ("nyudv2",), "nyud-hha",
           "NYUDv2, 40 classes, from depth coded as HHA images"),
    _other("nyud-fcn32s-color-hha-heavy.caffemodel", "fcn32s-color-hha", ("nyudv2",),
           "nyud-color-hha", "NYUDv2, 40 classes, late fusion of color and HHA"),
    _pytorch_fcn("fcn32s_from_caffe.pth", "fcn32s", "d3eb467a80e7da0468a20dfcbc13e6c8", 63.63),
    _pytorch_fcn("fcn16s_from_caffe.pth", "fcn16s", "a2d4035f669f09483b39c9a14a0d6670", 65.01),
    _pytorch_fcn("fcn8s_from_caffe.pth", "fcn8s", "de93e540ec79512f8770033849c8ae89", 65.51),
    _pytorch_fcn("fcn8s-atonce_from_caffe.pth", "fcn8s-atonce",
                 "bfed4437e941fef58932891217fe6464", 65.40),
    _start("VGG_ILSVRC_16_layers.caffemodel", "caffe",
           "http://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/VGG_ILSVRC_16_layers.caffemodel",
           "sha1:9363e1f6d65f7dba68c4f27a1e62105cdf6c4e24", f"{_VGG}: what the paper started from"),
    _start("vgg16_from_caffe.pth", "vgg-caffe-pth", "Google Drive, linked by wkentaro/pytorch-fcn",
           "md5:aa75b158f4181e7f6230029eb96c1b13", f"{_VGG}: the same as a state dict"),
    _start("vgg16-00b39a1b.pth", "vgg-caffe-pth",
           "https://web.eecs.umich.edu/~justincj/models/vgg16-00b39a1b.pth", "",
           f"{_VGG}: the same, in the old layout of jcjohnson/pytorch-vgg"),
    _start("vgg16-397923af.pth", "torchvision",
           "https://download.pytorch.org/models/vgg16-397923af.pth", "sha256:397923af",
           f"{_VGG}: torchvision's own, which does not reach the paper's scores"),
    _start("bvlc_reference_caffenet.caffemodel", "caffe",
           f"{BERKELEY}/bvlc_reference_caffenet.caffemodel",
           "sha1:4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46",
           "ImageNet weights to start training FCN-AlexNet from", "fcn-alexnet"),
    _start("bvlc_googlenet.caffemodel", "caffe", f"{BERKELEY}/bvlc_googlenet.caffemodel",
           "sha1:405fc5acd08a3bb12de8ee5e23a96bec22f08204",
           "ImageNet weights to start training FCN-GoogLeNet from", "fcn-googlenet32s"),
)  # fmt: skip


def find_published(file: str) -> Published | None:
    """Return the published weights with a file name, or None."""
    return next((entry for entry in PUBLISHED if entry.file == file), None)


def identify_published(data: bytes, file: str, where: str) -> Published | None:
    """Return the published file with the same checksum, or None.

    Args:
        data: Content of the file.
        file: Name of the file, without folders. If it is a published name with a known checksum,
            the checksums must agree.
        where: Name of the file in error messages.

    Raises:
        WeightsError: A published name with another checksum.
    """
    digests = {kind: hashlib.new(kind, data, usedforsecurity=False).hexdigest()
               for kind in ("md5", "sha1", "sha256")}  # fmt: skip
    for entry in PUBLISHED:
        kind, _, digest = entry.checksum.partition(":")
        if digest and digests[kind].startswith(digest):
            return entry
    named = find_published(file)
    if named is None or not named.checksum:
        return None
    kind, _, digest = named.checksum.partition(":")
    raise WeightsError(
        where=where,
        found=f"{kind} {digests[kind]}, {len(data)} bytes",
        expected=f"the published {file} has {kind} {digest}",
        remedy="Download the file again, or rename it if it is intentionally another file.",
    )


def check_checksum(data: bytes, kind: Literal["md5", "sha256"], wanted: str, where: str) -> None:
    """Compare the checksum of a file with a given one.

    Raises:
        WeightsError: Another checksum.
    """
    actual = hashlib.new(kind, data, usedforsecurity=False).hexdigest()
    if actual != wanted.strip().lower():
        raise WeightsError(
            where=where,
            found=f"{kind} {actual}, {len(data)} bytes",
            expected=f"{kind} {wanted}, as given",
            remedy="Copy or download the file again.",
        )
