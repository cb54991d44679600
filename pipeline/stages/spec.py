"""Settings of a plan and of a run: resolved once from the configuration, read by all stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from fcn_core.errors import FcnError
from fcn_core.labels import LabelSet
from pipeline.config import RunConfig
from pipeline.inputs.selection import EVERYTHING, Selection
from pipeline.inputs.shard import Sources
from pipeline.manifest import Manifest
from pipeline.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """Settings of a plan. Resolving them needs no weights: planning loads no network.

    Attributes:
        config: the configuration as the user gave it.
        images: store of INPUT.
        label_folder: store of the parallel label folder; None without one.
        output: store of OUTPUT.
        selection: which part of the input may become pending.
        fingerprint: fingerprint that a commit must have; None accepts any.
        only: ids of the shards that may be pending; None for all.
    """

    config: RunConfig
    images: Store
    label_folder: Store | None
    output: Store
    selection: Selection = EVERYTHING
    fingerprint: str | None = None
    only: frozenset[str] | None = None

    @property
    def sources(self) -> Sources:
        """Return the stores that the bytes of a chunk come from."""
        return Sources(self.images, self.label_folder or self.images)


@dataclass(frozen=True, kw_only=True)
class RunSpec(PlanSpec):
    """Settings of a run, shared by the driver and all stages. Small: the weights travel apart.

    Attributes:
        fingerprint: fingerprint of the manifest.
        labels: the label set of the run.
        manifest: what the output is made from; its chunk limits split the shards.
        masks: mask formats to write: the requested ones, and those of commits to be replaced.
        run: name of the run in the history, for logs and commits; empty until the lease is held.
    """

    fingerprint: str
    labels: LabelSet
    manifest: Manifest
    masks: tuple[str, ...]
    run: str = ""


@dataclass(frozen=True)
class ShardFailure:
    """A shard that could not be read: the run continues without it.

    Attributes:
        shard: id of the shard.
        reason: the whole message of the error.
        error: class name of the error.
    """

    shard: str
    reason: str
    error: str

    @classmethod
    def of(cls, shard: str, error: FcnError) -> ShardFailure:
        """Return the failure for the error that stopped a shard."""
        return cls(shard, str(error), type(error).__name__)


@dataclass(frozen=True)
class NetworkSettings:
    """Settings of the network in one worker process, besides its weights.

    Attributes:
        labels: the label set of the run.
        confidence: whether confidence maps are computed.
        precision: arithmetic of the convolutions: "fp32", "bf16", "fp16" or "int8".
        device: torch's name of the device.
        threads: CPU threads of the forward pass.
        batch_size: images of equal shape in one forward pass; None chooses by device.
        max_image_pixels: images with more pixels are quarantined.
        plain_forward: whether the whole padded canvas is computed.
        review_images: images that every chunk proposes for the review queue.
        decoders: threads that decode images; None chooses by CPU count.
        memory: bytes that the process may use; limits how many images are held at once.
    """

    labels: LabelSet
    confidence: bool = field(default=False, kw_only=True)
    precision: str
    device: str
    threads: int
    batch_size: int | None
    max_image_pixels: int
    plain_forward: bool = False
    review_images: int = 16
    decoders: int | None = None
    memory: int = 2**32
