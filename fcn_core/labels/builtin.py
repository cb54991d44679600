"""The built-in label sets, by name."""

from __future__ import annotations

from collections.abc import Mapping

from fcn_core.errors import LabelSetError
from fcn_core.labels import tables
from fcn_core.labels.label_set import VOID, LabelSet, Values

_CITYSCAPES_CLASSES = tuple(name for name, _, _ in tables.CITYSCAPES)

_CITYSCAPES_PALETTE = tuple(colour for _, _, colour in tables.CITYSCAPES)


def _from_one(count: int) -> Values:
    """Map raw values 1, 2, … to classes 0, 1, …, so that raw value 0 can mean void."""
    return tuple((index + 1, index) for index in range(count))


SCENES = LabelSet("scenes", ("background", "disc", "square", "triangle", "ring", "star"))

VOC = LabelSet("voc", tables.VOC_CLASSES)

CONTEXT59 = LabelSet(
    "context59", tables.CONTEXT_CLASSES[1:], ignore=(0, VOID), mapping=_from_one(59)
)

CONTEXT60 = LabelSet("context60", tables.CONTEXT_CLASSES)

NYUDV2 = LabelSet("nyudv2", tables.NYUDV2_CLASSES, ignore=(0, VOID), mapping=_from_one(40))

SIFTFLOW = LabelSet("siftflow", tables.SIFTFLOW_CLASSES, ignore=(0, VOID), mapping=_from_one(33))

SIFTFLOW_GEO = LabelSet(
    "siftflow-geo", tables.SIFTFLOW_GEO_CLASSES, ignore=(-1, 0, VOID), mapping=_from_one(3)
)

CAMVID = LabelSet("camvid", tables.CAMVID_CLASSES, (11, VOID), tables.CAMVID_PALETTE)

CITYSCAPES = LabelSet(
    "cityscapes",
    _CITYSCAPES_CLASSES,
    (*tables.CITYSCAPES_VOID_IDS, VOID),
    _CITYSCAPES_PALETTE,
    mapping=tuple((raw, index) for index, (_, raw, _) in enumerate(tables.CITYSCAPES)),
)

CITYSCAPES_TRAINIDS = LabelSet(
    "cityscapes-trainids", _CITYSCAPES_CLASSES, (-1, VOID), _CITYSCAPES_PALETTE
)

ADE20K = LabelSet(
    "ade20k", tables.ADE20K_CLASSES, (0, VOID), tables.ADE20K_PALETTE, mapping=_from_one(150)
)


LABEL_SETS: Mapping[str, LabelSet] = {
    labels.name: labels
    for labels in (
        SCENES, VOC, CAMVID, CONTEXT59, CONTEXT60, NYUDV2, SIFTFLOW, SIFTFLOW_GEO, CITYSCAPES,
        CITYSCAPES_TRAINIDS, ADE20K,
    )
}  # fmt: skip


def label_set(name: str) -> LabelSet:
    """Return the built-in label set of a name.

    Raises:
        LabelSetError: No built-in label set has this name.
    """
    try:
        return LABEL_SETS[name]
    except KeyError:
        raise LabelSetError(
            where="--label-set",
            found=f"{name!r}",
            expected=f"built-in sets are {', '.join(LABEL_SETS)}",
            remedy="Name one of them, or a YAML file (docs/label-sets.md).",
        ) from None
