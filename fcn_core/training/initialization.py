"""Where a training starts: from nothing, or from weights that fit as far as they fit.

Source: surgery.py of shelhamer/fcn.berkeleyvision.org: `transplant` copies the layers of one net
into another by name, `expand_score` the classes of one score layer into a larger one. New scores
are zero (paper, section 4.3), so that a finer net begins by predicting what the coarser one did.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fcn_core.errors import WeightsError
from fcn_core.labels import LabelSet
from fcn_core.networks.architecture import Architecture
from fcn_core.networks.layers import decoder
from fcn_core.networks.model import FCN, head_suffix
from fcn_core.weights.weights_info import WeightsInfo


@dataclass(frozen=True)
class StartingPoint:
    """A network ready to be trained.

    Attributes:
        model: float32, on the CPU.
        copied: layers that come from the other weights.
        extended: score layers of which only the first classes do.
        fresh: layers that start anew.
        unused: what the other network has and this one has not.
    """

    model: FCN
    copied: tuple[str, ...] = ()
    extended: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def describe(self) -> str:
        """What of the initial weights is used, in a line."""
        parts = [f"{len(self.copied)} layers copied"]
        for said, names in (
            ("classes added to", self.extended), ("new:", self.fresh), ("not used:", self.unused)
        ):  # fmt: skip
            if names:
                parts.append(f"{said} {', '.join(names)}")
        return "; ".join(parts)


def from_nothing(architecture: Architecture, seed: int) -> FCN:
    """He initialisation in the trunk, zero scores, bilinear deconvolutions."""
    model = FCN(architecture)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model


def transplant(
    old: FCN, info: WeightsInfo, architecture: Architecture, labels: LabelSet, where: str
) -> StartingPoint:
    """A network that starts from the weights of another one.

    Layers of the same name are copied. Scores too, if the classes begin with the old ones, in the
    old order; classes behind them start at zero. Of other classes no score is copied. Between a
    staged and an at-once net, whose pools are scaled before they are scored, the weights of the
    skips change so that the scores do not.

    Args:
        old: whose weights.
        info: what they say of themselves.
        architecture: of the new network.
        labels: of the new network.
        where: named in errors.

    Raises:
        WeightsError: another trunk or width, so that a layer of the trunk would start anew.
    """
    model = FCN(architecture)
    model.reset_parameters()
    scores_fit = labels.classes[: info.labels.num_classes] == info.labels.classes
    source = dict(old.named_parameters())
    factors = _skip_factors(old.architecture, architecture)
    copied, extended, fresh = set[str](), set[str](), set[str]()
    for name, parameter in model.named_parameters():
        layer = name.rpartition(".")[0]
        is_decoder = "score" in layer
        given = source.get(name) if scores_fit or not is_decoder else None
        if given is not None and given.shape == parameter.shape:
            copied.add(layer)
        elif given is not None and is_decoder:
            extended.add(layer)
        elif is_decoder:
            fresh.add(layer)
            continue
        else:
            raise _other_trunk(name, given, parameter, where)
        _copy(given, parameter, factors.get(name, 1.0))
    groups = (copied, extended, fresh, _unused(old, model))
    return StartingPoint(model, *(tuple(sorted(group)) for group in groups))


def _skip_factors(old: Architecture, new: Architecture) -> dict[str, float]:
    """By what the weights of the skips are multiplied."""
    before = {skip.score: skip.scale for skip in decoder(old).skips}
    return {
        f"{skip.score}{head_suffix(head)}.weight": before[skip.score] / skip.scale
        for skip in decoder(new).skips if skip.score in before
        for head in new.head_classes
    }  # fmt: skip


def _unused(old: FCN, new: FCN) -> set[str]:
    names = (
        {name.rpartition(".")[0] for name, _ in model.named_parameters()} for model in (old, new)
    )
    unused = next(names) - next(names)
    if old.architecture.output_stride != new.architecture.output_stride:
        unused.add(f"output stride {old.architecture.output_stride}")
    return unused


@torch.no_grad()
def _copy(given: Tensor, parameter: Tensor, factor: float) -> None:
    """Into the first classes: all of them where the shapes are equal."""
    # A score layer is (K, C, 1, 1) and (K,), a learned deconvolution (K, K, k, k).
    inner = tuple(
        slice(min(old, new)) for old, new in zip(given.shape, parameter.shape, strict=True)
    )
    parameter[inner] = factor * given[inner]


def _other_trunk(name: str, given: Tensor | None, parameter: Tensor, where: str) -> WeightsError:
    found = f"no {name}" if given is None else f"{name} is {tuple(given.shape)}"
    return WeightsError(
        where=where,
        found=found,
        expected=f"{tuple(parameter.shape)}: the trunk of the network that is to be trained",
        remedy="Name weights of the same trunk and width (model.width), or --init scratch.",
    )
