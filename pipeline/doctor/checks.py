"""Check the weights, INPUT and OUTPUT of a run from this machine; part of `fcnseg doctor`."""

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
    """Configuration that `fcnseg doctor` checks, which may lack INPUT or OUTPUT.

    Attributes:
        config: configuration of the run; a URL that the user did not name holds a placeholder.
        has_input: whether the user named INPUT.
        has_output: whether the user named OUTPUT.
    """

    config: RunConfig
    has_input: bool = False
    has_output: bool = False


def examine_weights(config: RunConfig) -> Iterator[Finding]:
    """Yield a finding on the weights: readable, usable, which network. Builds no network."""
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


def examine_input(config: InputConfig) -> Iterator[Finding]:
    """Yield a finding on INPUT: listable, readable, all names valid UTF-8."""
    store = Store(config.url, config.store)
    where = f"INPUT {store.location('')}"
    try:
        first = next(store.listing(), None)
        if first is None:
            yield problem(where, "no objects there", "Check the URL; a run would segment nothing.")
            return
        if config.layout is None:  # a split of a dataset names its images itself
            check_names(store)
        store.read(first.path, 0, 1)
    except FcnError as error:
        yield Finding.of(error)
        return
    yield fine(where, f"can be listed and read; the first object is {first.path}")


def examine_writing(store: Store) -> Iterator[Finding]:
    """Yield a finding on OUTPUT: writable, readable and deletable from this machine."""
    try:
        store.probe()
    except FcnError as error:
        yield Finding.of(error)
        return
    yield fine(f"OUTPUT {store.location('')}", "can be written, read and deleted")


def examine_output(store: Store) -> Iterator[Finding]:
    """Yield findings on OUTPUT: permissions, guarantees of conditional writes, clock."""
    where = f"OUTPUT {store.location('')}"
    try:
        with _leaving_no_folder(store):
            next(store.listing(), None)
            guarantees = store.probe()
            skew = None if store.is_local else clock_skew(store)
    except FcnError as error:
        yield Finding.of(error)
        return
    yield fine(where, "can be listed, read, written and deleted")
    conditions = {
        "creates only new objects (If-None-Match)": guarantees.create_only,
        "replaces only the expected version (If-Match)": guarantees.compare_and_swap,
    }
    for name, is_supported in conditions.items():
        if is_supported:
            yield fine(where, name)
        else:
            remedy = "Make sure that only one driver runs; docs/object-stores.md explains why."
            yield warning(where, f"not supported: {name}", remedy)
    if skew is not None:
        yield _judge_clock(where, skew)


@contextmanager
def _leaving_no_folder(store: Store) -> Iterator[None]:
    """Remove the empty folders that a write to a local disk has to create."""
    path = Path(store.location(""))
    created = [folder for folder in (path, *path.parents) if store.is_local and not folder.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # another process wrote there meanwhile, or no folder was created
            for folder in created:
                folder.rmdir()


def clock_skew(store: Store) -> float | None:
    """Return how many seconds the clock of a store is ahead of ours; None if it reports no times.

    The result is 0.0 if the difference is within the precision of the measurement: the duration of
    one request, plus the whole seconds of HTTP dates.

    Raises:
        StoreError: the store cannot be written.
    """
    path = f"{PROBE}{uuid.uuid4().hex}"
    before = time.time()
    store.write(path, b"")
    after = time.time()
    try:
        modified = store.stat(path).modified
    finally:
        store.delete(path)
    if modified is None:
        return None
    return min(0.0, modified + 1 - before) + max(0.0, modified - after)


def _judge_clock(where: str, skew: float) -> Finding:
    if abs(skew) <= MARGIN_SECONDS:
        return fine(where, f"its clock and ours agree within {MARGIN_SECONDS:.0f} s")
    return warning(
        where,
        f"its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} ours",
        "Set the clock of this machine (NTP): drivers compare their times, and S3 refuses requests "
        "whose time is wrong by 15 minutes.",
    )
