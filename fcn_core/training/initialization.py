"""Initial weights of a training: random ones, or those of another network as far as they fit.

Source: surgery.py of shelhamer/fcn.berkeleyvision.org: `transplant` copies layers from one network
into another by name, `expand_score` copies the classes of a score layer into a larger one. New
scores are zero (paper, section 4.3), so that a finer network first predicts the same as the coarser
one.
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
    """A network that is ready to be trained.

    Attributes:
        model: Network in float32, on the CPU.
        copied: Layers copied from the other weights.
        extended: Score layers with copied first classes and new further classes.
        fresh: Layers with new initial weights.
        unused: Parts of the other network that this one does not have.
    """

    model: FCN
    copied: tuple[str, ...] = ()
    extended: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def describe(self) -> str:
        """Describe in one line how the initial weights are used."""
        parts = [f"{len(self.copied)} layers copied"]
        for prefix, names in (
            ("classes added to", self.extended), ("new:", self.fresh), ("not used:", self.unused)
        ):  # fmt: skip
            if names:
                parts.append(f"{prefix} {', '.join(names)}")
        return "; ".join(parts)


def initialize_network(architecture: Architecture, seed: int) -> FCN:
    """Return a network with a He-initialized trunk, zero scores and bilinear deconvolutions."""
    model = FCN(architecture)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model


def transplant(
    old: FCN, info: WeightsInfo, architecture: Architecture, labels: LabelSet, where: str
) -> StartingPoint:
    """Return a network that starts from the weights of another one.

    Layers of the same name are copied. Score layers are copied if the classes start with the old
    ones in the old order; the weights of further classes start at zero. With other classes, no
    score layer is copied. Staged and at-once networks scale their pools differently, so the weights
    of the skips are rescaled to keep the scores equal.

    Args:
        old: Network with the weights to copy.
        info: Description of these weights.
        architecture: Architecture of the new network.
        labels: Label set of the new network.
        where: Name of the old weights in error messages.

    Raises:
        WeightsError: Another trunk or width, so that a trunk layer could not be copied.
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
    """Return the factors of the weights of the skips, by parameter name."""
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
    """Copy into the first classes: all of them if the shapes are equal."""
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
        expected=f"{tuple(parameter.shape)}, as in the trunk of the network to be trained",
        remedy="Name weights of the same trunk and width (model.width), or --init scratch.",
    )
