"""What every stage needs to know of a run, in one small object that travels to every worker."""

from __future__ import annotations

from dataclasses import dataclass, field

from fcn_core.errors import FcnError
from fcn_core.labels import LabelSet
from pipeline.chunks import ChunkLimits, Sources
from pipeline.config import ComputeConfig, LimitsConfig, MonitoringConfig
from pipeline.store import Store


@dataclass(frozen=True)
class Job:
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
