"""A weights file in shared memory: written once, mapped by every worker process."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from contextlib import suppress
from typing import IO

from fcn_core.weights.weights_file import WeightsFile


class SharedWeights:
    """Weights that worker processes map through a descriptor, instead of receiving a copy.

    Attributes:
        where: name of the weights file in errors.
        data: bytes of the weights file; empty once they are in shared memory.

    Args:
        file: the weights file. It is copied to shared memory at the first call of `fileno`.
    """

    def __init__(self, file: WeightsFile) -> None:
        self.where = file.where
        self.data = file.data
        self._lock = threading.Lock()
        self._memory: IO[bytes] | None = None

    def fileno(self) -> int:
        """Return the descriptor of the shared memory; of an unnamed temporary file if not Linux.

        Raises:
            OSError: a limit on file sizes, which also applies to shared memory, is too low.
        """
        with self._lock:
            if self._memory is None:
                memory = _unnamed_file()
                try:
                    memory.write(self.data)
                    memory.flush()
                except OSError:
                    with suppress(OSError):  # close() tries to write the rest of the buffer
                        memory.close()
                    raise
                self._memory, self.data = memory, b""  # 0.5 GiB: do not keep it twice
            return self._memory.fileno()

    def close(self) -> None:
        """Close the descriptor. No worker process can be started afterwards.

        The memory is freed when the last process that maps it ends.
        """
        with self._lock:
            if self._memory is not None:
                self._memory.close()
            self._memory = None


def _unnamed_file() -> IO[bytes]:
    if sys.platform == "linux":
        return open(os.memfd_create("weights"), "w+b")  # owns and closes the descriptor
    return tempfile.TemporaryFile()


def descriptor_path(descriptor: int) -> str:
    """Return the path at which this process can open one of its descriptors again."""
    return f"/dev/fd/{descriptor}"
