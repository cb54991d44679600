"""`fcnseg predict --show`: draw images in terminals that can display them."""

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
    """Return (a function that draws an image, the name of its method), or (None, the reason).

    textual-image asks the terminal whether it supports the Kitty protocol or Sixel. In other
    terminals with colors, one half block character shows two pixels.

    Args:
        out: console to draw on; must be a terminal.

    Raises:
        MissingPackageError: textual-image is not installed.
    """
    if not out.is_terminal:
        return None, "the output is not a terminal"
    if os.environ.get("TERM", "") in ("", "dumb") or out.is_dumb_terminal:
        return None, f"the terminal ({os.environ.get('TERM') or 'TERM is not set'}) cannot draw"
    if 0 in _size():
        return None, "the terminal does not report its size"
    try:
        from textual_image import renderable
    except ImportError as error:
        raise MissingPackageError(
            where="--show",
            found=f"textual-image cannot be imported ({error})",
            expected="the package that draws images in terminals",
            remedy="Install fcn-pipeline[show], or leave --show out.",
        ) from error
    kind: Any = renderable.Image
    words = {renderable.TGPImage: "Kitty protocol", renderable.SixelImage: "Sixel"}.get(kind)
    if words is None:
        if out.no_color or out.color_system is None:
            return None, "the terminal has no colors, or NO_COLOR is set"
        # The library itself would choose gray levels if it was imported without a terminal.
        kind, words = (
            renderable.HalfcellImage,
            "half blocks: this terminal supports neither Kitty nor Sixel",
        )

    def show(image: NDArray[np.uint8]) -> None:
        out.print(kind(Image.fromarray(image), width="auto", height="auto"), soft_wrap=False)

    return show, words


def _size() -> tuple[int, int]:
    """Return (columns, lines) of the terminal itself, not of the environment variables."""
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return 0, 0
    return size.columns, size.lines
