"""Images that kill whatever decodes them, without any help from the product.

Pillow's decoder in worker processes is made to obey the JPEG comment of an image. Images without
such a comment decode as ever.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from tests.support import child_patches, world


def install(folder: Path) -> Path:
    """The folder to put on the search path."""
    return child_patches.install(folder, {"PIL.ImageFile": "tests.support.patches.poison:patch"})


def image(order: str, seed: int = 77, size: tuple[int, int] = world.SIZES[0]) -> bytes:
    """A JPEG that the patched decoder obeys."""
    buffer = io.BytesIO()
    Image.fromarray(world.image(seed, size)).save(
        buffer, "JPEG", quality=95, comment=f"poison: {order}".encode()
    )
    return buffer.getvalue()
