"""Label sets: the meaning of class indices, and the built-in sets."""

from __future__ import annotations

from fcn_core.labels.builtin import (
    ADE20K,
    CAMVID,
    CITYSCAPES,
    CITYSCAPES_TRAINIDS,
    CONTEXT59,
    CONTEXT60,
    LABEL_SETS,
    NYUDV2,
    SCENES,
    SIFTFLOW,
    SIFTFLOW_GEO,
    VOC,
    label_set,
)
from fcn_core.labels.label_set import MAX_CLASSES, VOID, LabelSet
from fcn_core.labels.tables import Colour, voc_palette

__all__ = [
    "ADE20K",
    "CAMVID",
    "CITYSCAPES",
    "CITYSCAPES_TRAINIDS",
    "CONTEXT59",
    "CONTEXT60",
    "LABEL_SETS",
    "MAX_CLASSES",
    "NYUDV2",
    "SCENES",
    "SIFTFLOW",
    "SIFTFLOW_GEO",
    "VOC",
    "VOID",
    "Colour",
    "LabelSet",
    "label_set",
    "voc_palette",
]
