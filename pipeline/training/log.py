"""The log of a training: metrics.jsonl, curves.png and TensorBoard event files.

All lines stay in memory and the whole object is written again, because object stores cannot append.
Lines are written before the checkpoint of their step, so a resumed training finds every line up to
its own step; it drops the lines of later steps.
"""

from __future__ import annotations

import io
import json
import logging
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcn_core.labels import LabelSet
from fcn_core.metrics import Scores
from fcn_core.training.learner import StepResult
from pipeline.errors import MissingError
from pipeline.storage.store import Store
from pipeline.text import shorten

METRICS = "metrics.jsonl"

CURVES = "curves.png"

EVENTS = "tensorboard"

_INSTALL = "pip install 'fcn-pipeline[train]'"

log = logging.getLogger("fcnseg")


class TrainLog:
    """The metrics lines of a training, including the lines before a resume.

    Args:
        output: store of the training's directory.
        step: step to resume from; lines of later steps are dropped.
        labels: label set, for class names.
    """

    def __init__(self, output: Store, step: int, labels: LabelSet) -> None:
        self.output = output
        self.labels = labels
        self.lines = [line for line in read_metrics(output) if line["step"] <= step]
        self._results: list[StepResult] = []
        self._pixels = self._images = 0
        self._seconds = 0.0
        self._drawn = time.monotonic()
        self._events = _Events(output, step)

    def add_step(self, result: StepResult, images: int, pixels: int, seconds: float) -> None:
        """Add a finished step to the next line."""
        self._results.append(result)
        self._images, self._pixels = self._images + images, self._pixels + pixels
        self._seconds += seconds

    @property
    def waiting(self) -> int:
        """Number of steps collected for the next line."""
        return len(self._results)

    def end_line(self, step: int, **about: Any) -> dict[str, Any] | None:
        """Make a line from the steps since the last line; return None if there are none.

        Args:
            step: number of the last step, over all stages.
            about: further entries of the line.
        """
        if not self._results:
            return None
        seconds = max(self._seconds, 1e-9)
        line = {
            "step": step,
            "loss": math.fsum(result.loss for result in self._results) / len(self._results),
            "learning_rate": self._results[-1].learning_rate,
            "steps": len(self._results),
            "seconds": round(seconds, 3),
            "images_per_second": round(self._images / seconds, 3),
            "pixels_per_second": round(self._pixels / seconds),
            **about,
        }
        self._results, self._images, self._pixels, self._seconds = [], 0, 0, 0.0
        self.lines.append(line)
        names = ("loss", "learning_rate", "images_per_second", "pixels_per_second")
        self._events.add(step, {f"train/{name}": line[name] for name in names})
        return line

    def add_evaluation(self, step: int, scores: Scores, **about: Any) -> dict[str, Any]:
        """Add a line with the scores of a validation, and return the line."""
        values = scores.to_dict()
        line = {"step": step, "evaluation": values, **about}
        self.lines.append(line)
        four = {f"val/{name}": value for name, value in values.items() if name != "iou"}
        named = zip(self.labels.classes, values["iou"], strict=True)
        classes = {f"val_iou/{name}": value for name, value in named}
        self._events.add(step, {k: v for k, v in (four | classes).items() if v is not None})
        return line

    def evaluations(self) -> list[dict[str, Any]]:
        """Return the lines that hold scores."""
        return [line for line in self.lines if "evaluation" in line]

    def write(self) -> None:
        """Write all lines and events to the store."""
        self.output.write(METRICS, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        self._events.put()

    def write_curves(self, seconds: float = 0.0) -> None:
        """Draw and write the curves, if matplotlib is installed; drawing takes about a second.

        Args:
            seconds: do nothing if the curves were drawn less than this time ago, s.
        """
        if time.monotonic() - self._drawn < seconds:
            return
        self._drawn = time.monotonic()
        image = draw_curves(self.lines, self.labels.classes)
        if image is not None:
            self.output.write(CURVES, image)

    def close(self) -> None:
        """Close the event file and delete its temporary folder."""
        self._events.close()


def read_metrics(output: Store) -> list[dict[str, Any]]:
    """Return the metrics lines of a training; empty if there are none, or if unreadable."""
    try:
        data = output.read(METRICS)
        return [json.loads(line) for line in data.splitlines()]
    except MissingError:
        return []
    except ValueError:
        log.warning("%s is unreadable and is started again", output.location(METRICS))
        return []


class _Events:
    """Writes TensorBoard event files locally and uploads them; does nothing without tensorboard."""

    def __init__(self, output: Store, step: int) -> None:
        self.output = output
        self._writer: Any = None
        self._folder = tempfile.TemporaryDirectory(prefix="fcnseg-")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.warning("no TensorBoard event files: tensorboard is not installed (%s)", _INSTALL)
            return
        # Hides events of later steps that an earlier process wrote.
        self._writer = SummaryWriter(self._folder.name, purge_step=step + 1 if step else None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if self._writer is not None:
                self._writer.add_scalar(name, value, step)

    def put(self) -> None:
        if self._writer is None:
            return
        self._writer.flush()
        for path in Path(self._folder.name).iterdir():
            self.output.upload(f"{EVENTS}/{path.name}", path)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._folder.cleanup()


def draw_curves(lines: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> bytes | None:
    """Return a PNG of loss, learning rate, scores and IoU per class; None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("no %s: matplotlib is not installed (%s)", CURVES, _INSTALL)
        return None
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    (loss, rate), (scores, iou) = figure.subplots(2, 2)
    steps = [line for line in lines if "loss" in line]
    scored = [line for line in lines if "evaluation" in line]
    for axes, name in ((loss, "loss"), (rate, "learning_rate")):
        axes.plot([line["step"] for line in steps], [line[name] for line in steps])
    numbers = [line["step"] for line in scored]
    for name in ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou"):
        values = [line["evaluation"][name] for line in scored]
        scores.plot(numbers, _known(values), marker=".", label=name)
    drawn = []
    for index, name in enumerate(classes):
        values = _known([line["evaluation"]["iou"][index] for line in scored])
        (curve,) = iou.plot(numbers, values, **_style(index))
        last = values[-1] if values else math.nan
        drawn.append((-1.0 if math.isnan(last) else last, curve, name))
    titles = ("training loss, nats per labeled pixel", "learning rate", "VAL", "VAL, IU per class")
    for axes, title in zip((loss, rate, scores, iou), titles, strict=True):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    if scored:
        scores.legend(fontsize="x-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
        # Legend entries have the order of the curves' right ends.
        drawn.sort(key=lambda one: -one[0])
        title = "last IU per class, %"
        if len(drawn) > _MOST_ENTRIES:
            half = _MOST_ENTRIES // 2
            drawn = drawn[:half] + drawn[-half:]
            title += f": highest {half}, lowest {half}"
        letters = 20 if len(drawn) <= _COLUMN else 14
        figure.legend(
            [curve for _, curve, _ in drawn],
            [_entry(name, last, letters) for last, _, name in drawn],
            loc="outside right upper",
            title=title,
            title_fontsize="small",
            handlelength=3.2,
            columnspacing=1,
            **_legend_size(len(drawn)),
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


_COLOURS = 10

_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))

_MARKERS = (".", "s", "^", "x", "D", "v", "+")


_COLUMN = 60

_MOST_ENTRIES = 150
"""Upper bound of legend entries; more would be too small to read."""


def _style(index: int) -> dict[str, Any]:
    """Return the line style of a class: 280 distinct styles, the first ten by color alone."""
    dashes = index // _COLOURS
    return {
        "color": f"C{index % _COLOURS}",
        "linestyle": _DASHES[dashes % len(_DASHES)],
        "marker": _MARKERS[dashes // len(_DASHES) % len(_MARKERS)],
        "markersize": 4,
    }


def _entry(name: str, last: float, letters: int) -> str:
    """Return the legend text of a class, shortened, with `$` escaped; last < 0: no IoU."""
    name = shorten(name, letters).replace("$", r"\$")
    return f"{name}  —" if last < 0 else f"{name}  {100 * last:.1f}"


def _legend_size(entries: int) -> dict[str, Any]:
    """Return legend settings that fit the entries into the image, in one or two columns."""
    columns = 1 if entries <= _COLUMN else 2
    points = min(8.0, 400 / max(1, math.ceil(entries / columns)))
    return {"ncols": columns, "fontsize": points, "labelspacing": 0.4 if points == 8.0 else 0.15}


def _known(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
