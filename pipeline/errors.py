"""The errors of the factory; `fcn_core.errors` draws the rest of the tree.

    FcnError
    ├── ConfigError          an unknown key, an impossible value, flags that contradict (exit 2)
    ├── OutputError          an output that belongs to another input, weights or format (exit 2)
    ├── StoreError           an object or prefix that cannot be read or written
    │   └── MissingError     …because it does not exist
    ├── InputError           an input that holds nothing to label, or two shards of one name
    ├── ShardError           a shard that cannot be read as a whole; the run goes on without it
    ├── SampleError          a sample without image, with an impossible or repeated key
    ├── PoisonError          a sample that crashes, hangs or starves the process that works on it
    ├── WorkerError          a worker process that cannot start, or a fault of its own code
    ├── ClusterError         a Ray cluster that cannot be reached, refuses, or lost a job
    ├── LeaseError           another driver works on this output (exit 75)
    ├── LimitsError          more failures than the limits allow (exit 4)
    └── VerifyError          objects that differ from their commit

All of them have the four parts of `FcnError`.
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
    """An input that holds nothing to label, or two shards of one name."""


class ShardError(FcnError):
    """A shard that cannot be read as a whole."""


class SampleError(FcnError):
    """A sample without an image, or with an impossible or repeated key."""


class PoisonError(FcnError):
    """A sample that crashes, hangs or starves the process that works on it."""


class WorkerError(FcnError):
    """A worker process that cannot start, or that fails through a fault of its own."""


class ClusterError(FcnError):
    """A Ray cluster that cannot be reached, refuses what it is asked, or lost a job."""


class LeaseError(FcnError):
    """Another driver works on this output."""

    exit_code = 75


class LimitsError(FcnError):
    """More failures than the limits allow."""

    exit_code = 4


class VerifyError(FcnError):
    """Objects that differ from their commit."""
