"""A weights file in memory, written once and mapped by every worker process of this one."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from contextlib import suppress
from typing import IO

from fcn_core.weights.weights_file import WeightsFile


class SharedWeights:
    """Weights that worker processes are given by a descriptor, not by a copy through a socket.

    Attributes:
        where: names them in errors.
        data: their bytes, as long as they are not in memory that can be mapped.

    Args:
        file: their bytes are written when the first process asks for them.
    """

    def __init__(self, file: WeightsFile) -> None:
        self.where = file.where
        self.data = file.data
        self._lock = threading.Lock()
        self._memory: IO[bytes] | None = None

    def fileno(self) -> int:
        """Its descriptor: of memory, or of a nameless file where a system has none such.

        Raises:
            OSError: a limit on the size of files, which memory counts among, is lower.
        """
        with self._lock:
            if self._memory is None:
                memory = _nameless()
                try:
                    memory.write(self.data)
                    memory.flush()
                except OSError:
                    with suppress(OSError):  # closing tries to write what is left
                        memory.close()
                    raise
                self._memory, self.data = memory, b""  # half a gigabyte, once is enough
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
