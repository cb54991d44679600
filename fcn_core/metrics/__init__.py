"""Scores of masks against labels: confusion matrices, bootstrap intervals, bands and bounds."""

from __future__ import annotations

from fcn_core.metrics.confusion_matrix import (
    ConfusionMatrix,
    Policy,
    Scores,
    margins,
    none_if_nan,
    score_arrays,
)

__all__ = ["ConfusionMatrix", "Policy", "Scores", "margins", "none_if_nan", "score_arrays"]
