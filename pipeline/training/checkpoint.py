"""Checkpoints: the complete state of a training, as one safetensors object (no pickle)."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fcn_core.errors import WeightsError
from fcn_core.weights.weights_file import read_header
from pipeline.errors import MissingError
from pipeline.storage.store import Store
from pipeline.training.data import Cursor
from pipeline.training.prepare import CHECKPOINTS

if TYPE_CHECKING:
    from torch import Tensor


_KEY = "fcn_training"

_NAME = re.compile(rf"{CHECKPOINTS}/step-\d{{8}}\.safetensors")

_REMEDY = "Remove it: the training then resumes from the checkpoint before it."

log = logging.getLogger("fcnseg")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after one step.

    Attributes:
        step: last finished step, counted over all stages.
        cursor: position in the stream of samples.
        model: state dict of the network.
        optimizer: tensors of the optimizer, see `Learner.optimizer_tensors`.
    """

    step: int
    cursor: Cursor
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


def path_of(step: int) -> str:
    """Return the path of a step's checkpoint."""
    return f"{CHECKPOINTS}/step-{step:08d}.safetensors"


def write_checkpoint(output: Store, checkpoint: Checkpoint, keep: int) -> None:
    """Write a checkpoint atomically, then delete all but the newest `keep` up to its step.

    Checkpoints of later steps are deleted too: they are unreadable, otherwise this training would
    have resumed from them.

    Raises:
        StoreError: the store fails.
    """
    import safetensors.torch

    tensors = {f"model.{name}": tensor for name, tensor in checkpoint.model.items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in checkpoint.optimizer.items()}
    tensors = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    document = {"step": checkpoint.step, "cursor": asdict(checkpoint.cursor)}
    data = safetensors.torch.save(tensors, metadata={_KEY: json.dumps(document, sort_keys=True)})
    output.write(path_of(checkpoint.step), bytes(data))
    paths, written = _paths(output), path_of(checkpoint.step)
    later, earlier = [p for p in paths if p > written], [p for p in paths if p < written]
    for path in later + earlier[keep - 1 :]:
        output.delete(path)


def latest_checkpoint(output: Store) -> Checkpoint | None:
    """Return the newest readable checkpoint, or None.

    Raises:
        StoreError: the store fails.
    """
    for path in _paths(output):
        try:
            return _read(output.read(path), output.location(path))
        except (WeightsError, MissingError) as error:
            log.warning("%s", error)
    return None


def latest_step(output: Store) -> int:
    """Return the step of the newest checkpoint, from its file name; 0 without a checkpoint.

    Raises:
        StoreError: the store fails.
    """
    paths = _paths(output)
    return int(paths[0].removesuffix(".safetensors").rpartition("-")[2]) if paths else 0


def _paths(output: Store) -> list[str]:
    """Return the paths of all checkpoints, newest first."""
    paths = (info.path for info in output.objects(CHECKPOINTS))
    return sorted((path for path in paths if _NAME.fullmatch(path)), reverse=True)


def _read(data: bytes, where: str) -> Checkpoint:
    import safetensors.torch

    try:
        document: dict[str, Any] = json.loads(read_header(data, where, _REMEDY).metadata[_KEY])
        cursor = Cursor(**document["cursor"])
        tensors = safetensors.torch.load(data)
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        expected = "a checkpoint written by fcnseg train"
        raise WeightsError(
            where=where, found=f"unreadable ({error})", expected=expected, remedy=_REMEDY
        ) from error
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    return Checkpoint(int(document["step"]), cursor, parts["model"], parts["optimizer"])
