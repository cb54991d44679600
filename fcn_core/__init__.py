"""Fully convolutional networks: arrays, tensors, classes and scores. Reads local files only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn_core.labels import LabelSet
    from fcn_core.metrics import ConfusionMatrix
    from fcn_core.predictor import Prediction, Predictor
    from fcn_core.weights.weights_file import read_weights

__all__ = ["ConfusionMatrix", "LabelSet", "Prediction", "Predictor", "read_weights"]

_MODULES = {
    "ConfusionMatrix": "fcn_core.metrics",
    "LabelSet": "fcn_core.labels",
    "Prediction": "fcn_core.predictor",
    "Predictor": "fcn_core.predictor",
    "read_weights": "fcn_core.weights.weights_file",
}


def __getattr__(name: str) -> Any:
    # Names are imported at first use, so that `import fcn_core` loads neither numpy nor torch.
    if name not in _MODULES:
        raise AttributeError(f"module 'fcn_core' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
