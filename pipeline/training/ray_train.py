"""Train with several processes: Ray Train starts them, torch DDP averages the gradients.

Every process reads the same stream of samples and takes its share of each step, so the steps equal
those of one process with the same batch size. The first process writes; the driver holds the lease.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import ray
import ray.train
import ray.train.torch

from fcn_core.errors import FcnError
from pipeline.executors.ray_connection import connect_ray
from pipeline.manifest import absolute
from pipeline.training.config import SCRATCH, TrainConfig
from pipeline.training.progress import TrainOutcome, TrainProgress
from pipeline.training.source import BadSamples

_WAIT_SECONDS = 0.5


def train_on_ray(
    config: TrainConfig,
    check: Callable[[], None],
    is_stopped: Callable[[], bool],
    on_progress: Callable[[TrainProgress], None],
    bad: BadSamples | None = None,
) -> TrainOutcome:
    """Train with `compute.workers` processes until the end or a stop request; return the outcome.

    Connects to `compute.ray_address` or RAY_ADDRESS, uses the current Ray job, or starts an
    embedded Ray and stops it afterwards.

    Args:
        config: configuration; the directory is already claimed and the labels are checked.
        check: raises if another driver has taken over the directory.
        is_stopped: whether to stop after the current step.
        on_progress: called with the progress of the first process.
        bad: bad samples, if all labels were checked; otherwise None.

    Raises:
        FcnError: the error of a process, or the cluster cannot be reached.
    """
    with connect_ray(config.compute.ray_address), tempfile.TemporaryDirectory() as folder:
        mailbox: Any = ray.remote(num_cpus=0)(_Mailbox).remote()
        trainer = ray.train.torch.TorchTrainer(
            _work,
            train_loop_config={"config": _anywhere(config), "mailbox": mailbox, "bad": bad},
            scaling_config=_scaling(config),
            run_config=ray.train.RunConfig(storage_path=folder, name="fcnseg-train"),
        )
        failed: list[BaseException] = []
        thread = threading.Thread(target=_fit, args=(trainer, failed), daemon=True)
        thread.start()
        is_stop_sent = False
        while thread.is_alive():
            thread.join(_WAIT_SECONDS)
            check()
            if is_stopped() and not is_stop_sent:
                ray.get(mailbox.stop.remote())
                is_stop_sent = True
            for progress in ray.get(mailbox.take.remote()):
                on_progress(progress)
        for progress in ray.get(mailbox.take.remote()):
            on_progress(progress)
        ending = ray.get(mailbox.ending.remote())
    if isinstance(ending, TrainOutcome):
        return ending
    if isinstance(ending, FcnError):
        raise ending
    raise FcnError(
        where="ray train", found=f"{failed[0] if failed else 'no worker reported an outcome'}",
        expected="a training that ends",
        remedy="See the logs of Ray; run the same command again to resume.",
    )  # fmt: skip


def _anywhere(config: TrainConfig) -> TrainConfig:
    """Return the configuration with absolute paths: Ray workers have other working directories."""

    def placed(section: Any, *names: str) -> Any:
        found = {name: getattr(section, name) for name in names}
        return section.model_copy(update={n: v and absolute(v) for n, v in found.items()})

    sources = {
        name: source and placed(source, "url", "labels", "label_set")
        for name, source in (("input", config.input), ("val", config.val))
    }
    model = config.model if config.model.init == SCRATCH else placed(config.model, "init")
    return config.model_copy(
        update={**sources, "model": model, "output": placed(config.output, "url")}
    )


def _fit(trainer: Any, failed: list[BaseException]) -> None:
    try:
        trainer.fit()
    except Exception as error:  # raised again by the thread that waits for this one
        failed.append(error)


def _scaling(config: TrainConfig) -> ray.train.ScalingConfig:
    compute, has = config.compute, cast(dict[str, float], cast(Any, ray).cluster_resources())
    if compute.device == "cpu" or (compute.device == "auto" and not has.get("GPU")):
        share = min(1.0, has.get("CPU", 1.0) / (compute.workers + 1))
        return ray.train.ScalingConfig(
            num_workers=compute.workers, resources_per_worker={"CPU": share}
        )
    return ray.train.ScalingConfig(num_workers=compute.workers, use_gpu=True)


class _Mailbox:
    """Ray actor that passes the stop request, progress and outcome between driver and workers."""

    def __init__(self) -> None:
        self._is_stopped = False
        self._progress: list[TrainProgress] = []
        self._ending: TrainOutcome | FcnError | None = None

    def stop(self) -> None:
        self._is_stopped = True

    def is_stopped(self) -> bool:
        return self._is_stopped

    def report(self, progress: TrainProgress) -> None:
        self._progress.append(progress)

    def take(self) -> list[TrainProgress]:
        progress, self._progress = self._progress, []
        return progress

    def end(self, ending: TrainOutcome | FcnError) -> None:
        if not isinstance(self._ending, FcnError):  # the first error is the cause of the others
            self._ending = ending

    def ending(self) -> TrainOutcome | FcnError | None:
        return self._ending


class _Processes:
    """The process group of a Ray Train job (`ProcessGroup`), seen from one worker."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.size: int = context.get_world_size()

    def wrap(self, model: Any) -> Any:
        """Wrap a network in DistributedDataParallel."""
        return ray.train.torch.prepare_model(model, move_to_device=False)

    def no_sync(self, wrapped: Any) -> AbstractContextManager[Any]:
        """Return a context in which gradients are not averaged."""
        return cast(AbstractContextManager[Any], getattr(wrapped, "no_sync", nullcontext)())

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum values over all processes (torch all-reduce); all must call this method."""
        import torch

        sums = torch.tensor(values, dtype=torch.float64, device=ray.train.torch.get_device())
        torch.distributed.all_reduce(sums)
        return [float(value) for value in sums.cpu()]


def _work(arguments: dict[str, Any]) -> None:
    """Train as one worker; runs in every Ray Train process."""
    import torch

    from pipeline.training.loop import TrainingHooks, TrainingLoop
    from pipeline.training.prepare import prepare_training

    config: TrainConfig = arguments["config"]
    mailbox = arguments["mailbox"]
    group = _Processes()
    if config.compute.threads is not None:
        torch.set_num_threads(config.compute.threads)
    prepared = prepare_training(config)
    hooks = TrainingHooks(
        prepared.output,
        group,
        str(ray.train.torch.get_device()),
        stop=lambda: group.rank == 0 and ray.get(mailbox.is_stopped.remote()),
        on_progress=lambda progress: ray.get(mailbox.report.remote(progress)),
    )
    try:
        outcome = TrainingLoop(prepared, hooks, arguments["bad"]).run()
    except FcnError as error:
        ray.get(mailbox.end.remote(error))
        raise
    if group.rank == 0:
        ray.get(mailbox.end.remote(outcome))
