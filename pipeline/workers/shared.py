"""A weights file in memory, written once and mapped by every worker process of this one."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from typing import IO

from fcn_core.checkpoint import WeightsFile


class SharedWeights:
    """Weights that worker processes are given by a descriptor, not by a copy through a socket.

    Args:
        file: their bytes are written when the first process asks for them.
    """

    def __init__(self, file: WeightsFile) -> None:
        self.where = file.where
        self._data = file.data
        self._lock = threading.Lock()
        self._memory: IO[bytes] | None = None

    def fileno(self) -> int:
        """Its descriptor: of memory, or of a nameless file where a system has none such."""
        with self._lock:
            if self._memory is None:
                memory = _nameless()
                memory.write(self._data)
                memory.flush()
                self._memory, self._data = memory, b""  # half a gigabyte, once is enough
            return self._memory.fileno()

    def close(self) -> None:
        """Give it back, as far as no process maps it; nothing can be started any more."""
        with self._lock:
            if self._memory is not None:
                self._memory.close()
            self._memory = None


def _nameless() -> IO[bytes]:
    if sys.platform == "linux":
        return open(os.memfd_create("weights"), "w+b")  # closes the descriptor, too
    return tempfile.TemporaryFile()


def path_of(descriptor: int) -> str:
    """Under which this process can open it again."""
    return f"/dev/fd/{descriptor}"
