"""Many short texts that become one object: kept in a temporary file, not in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path


class Lines:
    """Texts without line breaks, in order.

    Args:
        files: closes the temporary file.
    """

    def __init__(self, files: ExitStack) -> None:
        file = tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n")
        self._file = files.enter_context(file)

    def add(self, texts: Iterable[str]) -> None:
        """Some more."""
        self._file.writelines(f"{text}\n" for text in texts)

    def __iter__(self) -> Iterator[str]:
        self._file.seek(0)
        for line in self._file:
            yield line[:-1]

    def write_to(self, path: Path, around: tuple[str, str], between: str) -> None:
        """All of them into a file, with something before, behind and between them."""
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(around[0])
            for index, text in enumerate(self):
                file.write(f"{between}{text}" if index else text)
            file.write(around[1])
