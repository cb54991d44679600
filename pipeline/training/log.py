"""What a training tells of itself: metrics.jsonl, curves.png, TensorBoard event files.

Lines are kept here and the whole object is put again, because object stores cannot append. They
are put before the checkpoint of their step, so that a resumed training finds all up to its own
step, and forgets what lies behind.
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
    """The lines of a training, those before a resume included.

    Args:
        output: its directory.
        step: that it goes on from; later lines are forgotten.
        labels: for the names of classes.
    """

    def __init__(self, output: Store, step: int, labels: LabelSet) -> None:
        self.output = output
        self.labels = labels
        self.lines = [line for line in read_metrics(output) if line["step"] <= step]
        self._lessons: list[StepResult] = []
        self._pixels = self._images = 0
        self._seconds = 0.0
        self._drawn = time.monotonic()
        self._events = _Events(output, step)

    def add_lesson(self, lesson: StepResult, images: int, pixels: int, seconds: float) -> None:
        """A finished step: of the next line."""
        self._lessons.append(lesson)
        self._images, self._pixels = self._images + images, self._pixels + pixels
        self._seconds += seconds

    @property
    def waiting(self) -> int:
        """Steps of the next line so far."""
        return len(self._lessons)

    def end_line(self, step: int, **about: Any) -> dict[str, Any] | None:
        """Make a line of the steps since the last one, if there are any.

        Args:
            step: of all stages together, of the last of them.
            about: further entries.
        """
        if not self._lessons:
            return None
        seconds = max(self._seconds, 1e-9)
        line = {
            "step": step,
            "loss": math.fsum(lesson.loss for lesson in self._lessons) / len(self._lessons),
            "learning_rate": self._lessons[-1].learning_rate,
            "steps": len(self._lessons),
            "seconds": round(seconds, 3),
            "images_per_second": round(self._images / seconds, 3),
            "pixels_per_second": round(self._pixels / seconds),
            **about,
        }
        self._lessons, self._images, self._pixels, self._seconds = [], 0, 0, 0.0
        self.lines.append(line)
        names = ("loss", "learning_rate", "images_per_second", "pixels_per_second")
        self._events.add(step, {f"train/{name}": line[name] for name in names})
        return line

    def add_evaluation(self, step: int, scores: Scores, **about: Any) -> dict[str, Any]:
        """A line of scores."""
        found = scores.to_dict()
        line = {"step": step, "evaluation": found, **about}
        self.lines.append(line)
        four = {f"val/{name}": value for name, value in found.items() if name != "iou"}
        named = zip(self.labels.classes, found["iou"], strict=True)
        classes = {f"val_iou/{name}": value for name, value in named}
        self._events.add(step, {k: v for k, v in (four | classes).items() if v is not None})
        return line

    def evaluations(self) -> list[dict[str, Any]]:
        """The lines that have scores."""
        return [line for line in self.lines if "evaluation" in line]

    def write(self) -> None:
        """Put the lines and the events."""
        self.output.write(METRICS, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        self._events.put()

    def write_curves(self, seconds: float = 0.0) -> None:
        """Draw the lines, where matplotlib is installed.

        Args:
            seconds: not if that was done less than so long ago; it takes a second.
        """
        if time.monotonic() - self._drawn < seconds:
            return
        self._drawn = time.monotonic()
        picture = draw_curves(self.lines, self.labels.classes)
        if picture is not None:
            self.output.write(CURVES, picture)

    def close(self) -> None:
        """Let go of the event file."""
        self._events.close()


def read_metrics(output: Store) -> list[dict[str, Any]]:
    """The lines of a training so far; none if there are none."""
    try:
        data = output.read(METRICS)
        return [json.loads(line) for line in data.splitlines()]
    except MissingError:
        return []
    except ValueError:
        log.warning("%s is unreadable: begun anew", output.location(METRICS))
        return []


class _Events:
    """TensorBoard's event file, written here and put as a whole; nothing without tensorboard."""

    def __init__(self, output: Store, step: int) -> None:
        self.output = output
        self._writer: Any = None
        self._folder = tempfile.TemporaryDirectory(prefix="fcnseg-")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.warning("no TensorBoard event files: tensorboard is not installed (%s)", _INSTALL)
            return
        # What an earlier process told of later steps is not to be shown.
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
    """A PNG of loss, rate, scores and classes over steps; None without matplotlib."""
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
    asked = [line for line in lines if "evaluation" in line]
    for axes, name in ((loss, "loss"), (rate, "learning_rate")):
        axes.plot([line["step"] for line in steps], [line[name] for line in steps])
    numbers = [line["step"] for line in asked]
    for name in ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou"):
        values = [line["evaluation"][name] for line in asked]
        scores.plot(numbers, _known(values), marker=".", label=name)
    drawn = []
    for index, name in enumerate(classes):
        values = _known([line["evaluation"]["iou"][index] for line in asked])
        (curve,) = iou.plot(numbers, values, **_style(index))
        last = values[-1] if values else math.nan
        drawn.append((-1.0 if math.isnan(last) else last, curve, name))
    titles = ("training loss, nats per labelled pixel", "learning rate", "VAL", "VAL, IU per class")
    for axes, title in zip((loss, rate, scores, iou), titles, strict=True):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    if asked:
        scores.legend(fontsize="x-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
        # In the order of the curves' right ends, so that the eye need not search.
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
"""Of the legend: more would be too small to read."""


def _style(index: int) -> dict[str, Any]:
    """How the curve of a class is drawn: 280 are told apart, the first ten by colour alone."""
    dashes = index // _COLOURS
    return {
        "color": f"C{index % _COLOURS}",
        "linestyle": _DASHES[dashes % len(_DASHES)],
        "marker": _MARKERS[dashes // len(_DASHES) % len(_MARKERS)],
        "markersize": 4,
    }


def _entry(name: str, last: float, letters: int) -> str:
    """A class in the legend, of bounded length and without formulas; below 0 it has no IU."""
    name = shorten(name, letters).replace("$", r"\$")
    return f"{name}  —" if last < 0 else f"{name}  {100 * last:.1f}"


def _legend_size(entries: int) -> dict[str, Any]:
    """So many entries in the height of the picture, in two columns if they have to be."""
    columns = 1 if entries <= _COLUMN else 2
    points = min(8.0, 400 / max(1, math.ceil(entries / columns)))
    return {"ncols": columns, "fontsize": points, "labelspacing": 0.4 if points == 8.0 else 0.15}


def _known(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
