"""Pillow's decoder, made to obey the JPEG comment of an image; see `tests.support.poison`."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from types import ModuleType
from typing import Any


def obey(order: str) -> None:
    if order == "segv":
        ctypes.string_at(0)
    elif order == "exit":
        os._exit(7)
    elif order == "hang":
        while True:
            time.sleep(1)
    elif order == "memory":
        hoard = []
        while True:
            hoard.append(bytes(2**25))  # counted at once, though no page of it is touched
    elif order == "raise":
        raise KeyError("a bug of the decoder")
    elif order.startswith("gate "):  # a good image, but only once that file exists
        open(order[5:] + ".reached", "w").close()
        while not os.path.exists(order[5:]):
            time.sleep(0.05)
    elif order.startswith("once "):  # killed from outside, as it were
        try:
            os.close(os.open(order[5:], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def patch(image_file: ModuleType) -> None:
    """Of `PIL.ImageFile`."""
    decode = image_file.ImageFile.load

    def load(self: Any) -> Any:
        order = self.info.get("comment", b"")
        if order.startswith(b"poison: "):
            obey(order[8:].decode())
        return decode(self)

    image_file.ImageFile.load = load
