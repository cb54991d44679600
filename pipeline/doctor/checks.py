"""What is missing for a run, in words, before anything is started: `fcnseg doctor`.

Every check looks at one thing and gives findings; what it finds is never an exception.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fcn_core.errors import FcnError
from pipeline.config import InputConfig, RunConfig
from pipeline.doctor.finding import Finding, fine, problem, warning
from pipeline.inputs.listing import check_names
from pipeline.output.lease import MARGIN_SECONDS
from pipeline.paths import PROBE
from pipeline.storage.store import Store


@dataclass(frozen=True)
class DoctorInput:
    """What is to be examined.

    Attributes:
        config: of the run; its INPUT and OUTPUT count only where the next two say so.
        has_input: whether INPUT was named.
        has_output: whether OUTPUT was named.
    """

    config: RunConfig
    has_input: bool = False
    has_output: bool = False


def examine_weights(config: RunConfig) -> Iterator[Finding]:
    """Whether the weights can be read and used, and what they are; no network is built."""
    from pipeline.resolve import check_can_segment, load_weights, resolve_labels

    if config.model.weights is None:
        return
    try:
        file = load_weights(config.model.weights, config.input.store)
        check_can_segment(file, config.model.precision)
        labels = resolve_labels(config.input.label_set, file, config.input.store)
    except FcnError as error:
        yield Finding.of(error)
        return
    kind = f"{file.info.variant}, {labels.num_classes} classes ({labels.name})"
    size = f"{len(file.data) / 2**20:.1f} MiB"
    yield fine(file.where, f"{kind}, {size}, sha256 {file.sha256[:12]}…")


def examine_input(asked: InputConfig) -> Iterator[Finding]:
    """Whether INPUT can be listed and read, and whether all names there can stand in tables."""
    store = Store(asked.url, asked.store)
    where = f"INPUT {store.location('')}"
    try:
        first = next(store.listing(), None)
        if first is None:
            yield problem(where, "no objects there", "Check the URL; nothing would be labelled.")
            return
        if asked.layout is None:  # a split names its images itself
            check_names(store)
        store.read(first.path, 0, 1)
    except FcnError as error:
        yield Finding.of(error)
        return
    yield fine(where, f"can be listed and read; the first object is {first.path}")


def examine_writing(store: Store) -> Iterator[Finding]:
    """Whether OUTPUT can be written, read and deleted from this machine."""
    try:
        store.probe()
    except FcnError as error:
        yield Finding.of(error)
        return
    yield fine(f"OUTPUT {store.location('')}", "can be written, read and deleted")


def examine_output(store: Store) -> Iterator[Finding]:
    """Whether OUTPUT can be listed, read, written and deleted; what it guarantees; its clock."""
    where = f"OUTPUT {store.location('')}"
    try:
        with _leaving_no_folder(store):
            next(store.listing(), None)
            held = store.probe()
            skew = None if store.is_local else clock_skew(store)
    except FcnError as error:
        yield Finding.of(error)
        return
    yield fine(where, "can be listed, read, written and deleted")
    guarantees = {
        "creates only where nothing is (If-None-Match)": held.create_only,
        "replaces one version only (If-Match)": held.compare_and_swap,
    }
    for name, is_held in guarantees.items():
        if is_held:
            yield fine(where, name)
        else:
            remedy = "Keep to one driver by other means; docs/object-stores.md says why."
            yield warning(where, f"not held: {name}", remedy)
    if skew is not None:
        yield _judge_clock(where, skew)


@contextmanager
def _leaving_no_folder(store: Store) -> Iterator[None]:
    """Remove the empty folders that writing to a local disk makes on the way."""
    path = Path(store.location(""))
    mine = [one for one in (path, *path.parents) if store.is_local and not one.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # somebody wrote there meanwhile, or nothing was made
            for folder in mine:
                folder.rmdir()


def clock_skew(store: Store) -> float | None:
    """Seconds that the store's clock is ahead of ours; None where the store tells no times.

    Zero within what can be seen: the duration of a request, and the whole seconds of HTTP dates.

    Raises:
        StoreError: nothing can be written there.
    """
    path = f"{PROBE}{uuid.uuid4().hex}"
    before = time.time()
    store.write(path, b"")
    after = time.time()
    try:
        there = store.stat(path).modified
    finally:
        store.delete(path)
    if there is None:
        return None
    return min(0.0, there + 1 - before) + max(0.0, there - after)


def _judge_clock(where: str, skew: float) -> Finding:
    if abs(skew) <= MARGIN_SECONDS:
        return fine(where, f"its clock and ours agree within {MARGIN_SECONDS:.0f} s")
    return warning(
        where,
        f"its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} ours",
        "Set the clock of this machine (NTP): times of drivers are compared, and S3 refuses "
        "requests that are 15 minutes off.",
    )
