"""What every stage needs to know of a run, in one small object that travels to every worker."""

from __future__ import annotations

from dataclasses import dataclass, field

from fcn_core.errors import FcnError
from fcn_core.labels import LabelSet
from pipeline.config import ComputeConfig, LimitsConfig, MonitoringConfig
from pipeline.inputs.shard import ChunkLimits, Sources
from pipeline.storage.store import Store


@dataclass(frozen=True)
class RunSpec:
    """The resolved parts of a `RunConfig`. Small: weights travel apart.

    Attributes:
        sources: INPUT and the labels' folder.
        output: OUTPUT; None when nothing is to be written.
        labels: the label set in force.
        masks: forms of the masks to write.
        precision: of the convolutions.
        compute: device, threads, batch size, number of workers.
        chunk_limits: where shards are split.
        max_image_pixels: larger pictures are quarantined.
        limits: of a worker process, and of bad images in a shard.
        monitoring: how workers on other machines log.
        run: its name in the history, for logs.
        review_images: the review queue's length: so many are put forward by every chunk.
    """

    sources: Sources
    output: Store
    labels: LabelSet
    masks: tuple[str, ...]
    precision: str
    compute: ComputeConfig
    chunk_limits: ChunkLimits
    max_image_pixels: int
    limits: LimitsConfig
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)
    run: str = ""
    review_images: int = 16


@dataclass(frozen=True)
class ShardFailure:
    """A shard that could not be read: the run goes on without it."""

    shard: str
    reason: str
    error: str

    @classmethod
    def of(cls, shard: str, error: FcnError) -> ShardFailure:
        """From the error that stopped the shard."""
        return cls(shard, str(error), type(error).__name__)


@dataclass(frozen=True)
class NetworkSettings:
    """What the network of a worker process is built with, besides its weights."""

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
    """Bytes of the process: what it may hold at once follows from it."""
