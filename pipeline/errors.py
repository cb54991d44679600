"""Errors of the pipeline. `fcn_core.errors` defines the other subclasses of `FcnError`.

    FcnError
    ├── ConfigError          an unknown key, an impossible value, flags that contradict (exit 2)
    ├── OutputError          an output that belongs to another input, weights or format (exit 2)
    ├── StoreError           an object or prefix that cannot be read or written
    │   └── MissingError     an object or prefix that does not exist
    ├── InputError           an input without images, or with two shards of the same name
    ├── ShardError           a shard that cannot be read; the run continues without it
    ├── SampleError          a sample without image, or with an invalid or repeated key
    ├── PoisonError          a sample that crashes, hangs or starves its worker process
    ├── WorkerError          a worker process that cannot start, or fails by its own fault
    ├── ClusterError         a Ray cluster that is unreachable, refuses a request, or lost a job
    ├── LeaseError           another driver works on this output (exit 75)
    ├── LimitsError          more failures than the limits allow (exit 4)
    └── VerifyError          objects that differ from their commit

Every error has the four parts of `FcnError`: where, found, expected, remedy.
"""

from __future__ import annotations

from fcn_core.errors import FcnError


class ConfigError(FcnError):
    """An unknown key, an impossible value, or flags that contradict each other."""

    exit_code = 2


class OutputError(FcnError):
    """An output that belongs to another input, other weights or another format."""

    exit_code = 2


class StoreError(FcnError):
    """An object or prefix that cannot be read or written."""


class MissingError(StoreError):
    """An object or prefix that does not exist."""


class InputError(FcnError):
    """An input without images, or with two shards of the same name."""


class ShardError(FcnError):
    """A shard that cannot be read as a whole."""


class SampleError(FcnError):
    """A sample without an image, or with an invalid or repeated key."""


class PoisonError(FcnError):
    """A sample that crashes, hangs or starves the process that works on it."""


class WorkerError(FcnError):
    """A worker process that cannot start, or that fails by its own fault."""


class ClusterError(FcnError):
    """A Ray cluster that is unreachable, refuses a request, or lost a job."""


class LeaseError(FcnError):
    """Another driver works on this output."""

    exit_code = 75


class LimitsError(FcnError):
    """More failures than the limits allow."""

    exit_code = 4


class VerifyError(FcnError):
    """Objects that differ from their commit."""
