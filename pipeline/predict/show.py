"""`--show`: pictures in the terminal, where it can display them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from fcn_core.errors import MissingPackageError

Show = Callable[[NDArray[np.uint8]], None]


def find_terminal_display(out: Console) -> tuple[Show | None, str]:
    """(how to show a picture, in words how); (None, why not) where that is impossible.

    The terminal itself is asked (by textual-image) whether it knows the Kitty protocol or Sixel; on
    any other that has colours, half blocks stand for two pixels each.

    Args:
        out: where pictures are to appear; needs a terminal.

    Raises:
        MissingPackageError: textual-image is not installed.
    """
    if not out.is_terminal:
        return None, "the output is no terminal"
    if os.environ.get("TERM", "") in ("", "dumb") or out.is_dumb_terminal:
        return None, f"the terminal ({os.environ.get('TERM') or 'TERM is not set'}) cannot draw"
    if 0 in _size():
        return None, "the terminal does not say how large it is"
    try:
        from textual_image import renderable
    except ImportError as error:
        raise MissingPackageError(
            where="--show",
            found=f"textual-image is not to be had here ({error})",
            expected="the package that draws in terminals",
            remedy="Install fcn-pipeline[show], or leave --show out.",
        ) from error
    kind: Any = renderable.Image
    words = {renderable.TGPImage: "Kitty protocol", renderable.SixelImage: "Sixel"}.get(kind)
    if words is None:
        if out.no_color or out.color_system is None:
            return None, "the terminal has no colours, or NO_COLOR is set"
        # Where the library was not started on a terminal it would choose greys.
        kind, words = renderable.HalfcellImage, "half blocks: this terminal knows no better"

    def show(picture: NDArray[np.uint8]) -> None:
        out.print(kind(Image.fromarray(picture), width="auto", height="auto"), soft_wrap=False)

    return show, words


def _size() -> tuple[int, int]:
    """(columns, lines) as the terminal has them; not what the environment says of it."""
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return 0, 0
    return size.columns, size.lines
