"""Values and colours of label files to class indices, by tables."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_core.label_tables import Colour

UNKNOWN = -1
"""What the tables say of a value or colour that means nothing."""

Values = tuple[tuple[int, int], ...]
Colours = tuple[tuple[Colour, int], ...]

_VALUES = 2**16
_COLOURS = 2**24


def lookup_values(raw: NDArray[np.integer[Any]], values: Values) -> NDArray[np.int16]:
    """The class index of every value of a label.

    Args:
        raw: (H, W), any integer dtype.
        values: (value, class index) pairs.

    Returns:
        (H, W) int16, `UNKNOWN` for values without a pair.
    """
    if raw.dtype in (np.uint8, np.uint16):  # what picture files give
        found: NDArray[np.int16] = _value_table(values).take(raw)
        return found
    distinct, places = np.unique(raw, return_inverse=True)
    known = dict(values)
    indices = np.array([known.get(int(value), UNKNOWN) for value in distinct], np.int16)
    return indices[places].reshape(raw.shape)


def lookup_colours(rgb: NDArray[np.integer[Any]], colours: Colours) -> NDArray[np.int16]:
    """The class index of every colour of an RGB label.

    Args:
        rgb: (H, W, 3), any integer dtype, 0-255.
        colours: ((R, G, B), class index) pairs.

    Returns:
        (H, W) int16, `UNKNOWN` for colours without a pair.
    """
    found: NDArray[np.int16] = _colour_table(colours).take(_codes(rgb))
    return found


def first_unknown(
    raw: NDArray[np.integer[Any]], found: NDArray[np.int16]
) -> tuple[int | Colour, int, tuple[int, int]]:
    """The lowest value or colour that means nothing: (it, its number of pixels, its first place).

    Args:
        raw: (H, W) or (H, W, 3), what was looked up.
        found: (H, W), what came of it, with at least one `UNKNOWN`.
    """
    codes = _codes(raw) if raw.ndim == 3 else raw
    unknown = found == UNKNOWN
    lowest = codes[unknown].min()
    same = (codes == lowest) & unknown
    row, column = (int(place) for place in np.unravel_index(int(same.argmax()), same.shape))
    value: int | Colour = int(lowest)
    if raw.ndim == 3:
        red, green, blue = (int(channel) for channel in raw[row, column])
        value = (red, green, blue)
    return value, int(same.sum()), (row, column)


def _codes(rgb: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
    codes = rgb[..., 0].astype(np.int32)
    for channel in (1, 2):
        codes <<= 8
        codes |= rgb[..., channel].astype(np.int32)
    return codes


@lru_cache(maxsize=16)
def _value_table(values: Values) -> NDArray[np.int16]:
    table = np.full(_VALUES, UNKNOWN, np.int16)
    for value, index in values:
        if 0 <= value < _VALUES:
            table[value] = index
    return table


# 32 MiB, made only where RGB labels are read; a search among the few colours takes 50 times longer.
@lru_cache(maxsize=2)
def _colour_table(colours: Colours) -> NDArray[np.int16]:
    table = np.full(_COLOURS, UNKNOWN, np.int16)
    for (red, green, blue), index in colours:
        table[red << 16 | green << 8 | blue] = index
    return table
