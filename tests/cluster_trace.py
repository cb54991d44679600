"""Who did what on a cluster: every chunk read, computed and written, by node, as it happens.

A `sitecustomize` module on the search path of all processes wraps three functions of the product:
each appends a line to a file when it begins and when it ends. The network also waits a while per
chunk, as if the driver of a GPU worked: it costs no core, and leaves time for faults.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SITECUSTOMIZE = """
import importlib.abc, importlib.util, functools, os, sys, time

FILE, NODE = os.environ["FCNSEG_TEST_TRACE"], os.environ.get("FCNSEG_TEST_NODE", "?")
PAUSE = os.environ["FCNSEG_TEST_PAUSE"]

def tell(what, moment, name):
    with open(FILE, "a") as file:
        file.write(f"{what} {moment} {NODE} {name}\\n")

def pause():
    with open(PAUSE) as file:
        time.sleep(float(file.read()))

def wrapped(what, call, name_of, pause=lambda: None):
    def traced(*args, **kwargs):
        name = name_of(*args)
        tell(what, "begins", name)
        pause()
        result = call(*args, **kwargs)
        tell(what, "ends", name)
        return result
    return functools.wraps(call)(traced)

def chunks_traced(call):
    def traced(shard, *args, **kwargs):
        for chunk in call(shard, *args, **kwargs):
            tell("read", "ends", chunk.samples[0].location)
            yield chunk
    return traced

def patch_chunks(module):
    module.read_chunks = chunks_traced(module.read_chunks)

def patch_segment(module):
    plain = module.Segmenter.__call__
    name_of = lambda self, samples, *more: samples[0].location
    module.Segmenter.__call__ = wrapped("compute", plain, name_of, pause)

def patch_writers(module):
    name_of = lambda segmented, job: f"{segmented.shard} {segmented.seq}"
    module.write_chunk = wrapped("write", module.write_chunk, name_of)

class Finder(importlib.abc.MetaPathFinder):
    patches = {"pipeline.chunks": patch_chunks, "pipeline.segment": patch_segment,
               "pipeline.writers": patch_writers}

    def find_spec(self, name, path, target=None):
        patch = self.patches.pop(name, None)
        if patch is None:
            return None
        spec = importlib.util.find_spec(name)
        plain = spec.loader.exec_module
        def exec_module(module):
            plain(module)
            patch(module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


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
        self.site = folder / "site"
        self.site.mkdir()
        (self.site / "sitecustomize.py").write_text(SITECUSTOMIZE)
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
