"""Who did what on a cluster: every chunk read, computed and written, by node, as it happens.

Three functions of the product are wrapped in all processes: each appends a line to a file when it
begins and when it ends. The network also waits a while per chunk, as if the driver of a GPU worked:
it costs no core, and leaves time for faults.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.support import child_patches

PATCHES = {
    "pipeline.stages.read": "tests.support.patches.trace:chunks",
    "pipeline.stages.segment": "tests.support.patches.trace:segment",
    "pipeline.stages.write": "tests.support.patches.trace:writers",
}


@dataclass(frozen=True)
class Step:
    """One line of a trace: read, compute or write; begins or ends; where; of what."""

    what: str
    moment: str
    node: str
    name: str


class Trace:
    """The file, from the outside.

    Args:
        folder: for the file and the module.
        pause: seconds that the network waits per chunk.
    """

    def __init__(self, folder: Path, pause: float) -> None:
        self.file = folder / "trace"
        self.file.touch()
        self.site = child_patches.install(folder / "site", PATCHES)
        self._pause = folder / "pause"
        self.pause(pause)
        self.environment = {
            "FCNSEG_TEST_TRACE": str(self.file),
            "FCNSEG_TEST_PAUSE": str(self._pause),
        }

    def pause(self, seconds: float) -> None:
        """From now on, the network waits so long per chunk."""
        written = self._pause.with_suffix(".new")
        written.write_text(str(seconds))
        written.replace(self._pause)

    def steps(self, since: int = 0) -> list[Step]:
        """What happened after so many steps."""
        lines = self.file.read_text().splitlines()[since:]
        return [Step(*line.split(" ", 3)) for line in lines]


def redone(steps: list[Step]) -> dict[str, int]:
    """How often something was done that had been done or begun before, by kind of work."""
    found = {}
    for what, moment in (("read", "ends"), ("compute", "begins"), ("write", "begins")):
        times = Counter(s.name for s in steps if (s.what, s.moment) == (what, moment))
        found[what] = times.total() - len(times)
    return found


def places(steps: list[Step], what: str) -> Counter[str]:
    """Where a kind of work was done, and how often."""
    return Counter(step.node for step in steps if step.what == what and step.moment == "ends")
