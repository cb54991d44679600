"""Pictures that kill whatever decodes them, without any help from the product.

A `sitecustomize` module on the search path of worker processes makes Pillow's decoder obey the
JPEG comment of a picture. Pictures without such a comment decode as ever.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from tests import world

SITECUSTOMIZE = """
import ctypes, os, signal, time
from PIL import ImageFile

decode = ImageFile.ImageFile.load

def obey(order):
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
            hoard.append(b"x" * 2**25)
    elif order == "raise":
        raise KeyError("a bug of the decoder")
    elif order.startswith("gate "):  # a good picture, but only once that file exists
        open(order[5:] + ".reached", "w").close()
        while not os.path.exists(order[5:]):
            time.sleep(0.05)
    elif order.startswith("once "):  # killed from outside, as it were
        try:
            os.close(os.open(order[5:], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

def load(self):
    order = self.info.get("comment", b"")
    if order.startswith(b"poison: "):
        obey(order[8:].decode())
    return decode(self)

ImageFile.ImageFile.load = load
"""


def install(folder: Path) -> Path:
    """The folder to put on the search path."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return folder


def picture(order: str, seed: int = 77, size: tuple[int, int] = world.SIZES[0]) -> bytes:
    """A JPEG that the patched decoder obeys."""
    buffer = io.BytesIO()
    image = Image.fromarray(world.picture(seed, size))
    image.save(buffer, "JPEG", quality=95, comment=f"poison: {order}".encode())
    return buffer.getvalue()
