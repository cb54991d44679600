"""`LabelSet`: class names and colors, and the encoding of label files as class indices.

Lookup tables convert the raw values and RGB codes of label files to class indices.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_core.errors import LabelError, LabelSetError
from fcn_core.labels import tables
from fcn_core.labels.tables import Colour

VOID = 255
"""Class index of pixels without ground truth, in all labels of this project (PASCAL VOC's void)."""


MAX_CLASSES = 255
"""Largest number of classes: masks are 8-bit and 255 is void, so class indices end at 254."""


@dataclass(frozen=True)
class LabelSet:
    """Class names and colors, and the meaning of raw values in label files.

    Attributes:
        name: Name of the label set in commands.
        classes: Class names; the position is the class index.
        ignore: Raw values of label files that count as void (255 always does).
        palette: One (R, G, B) per class, 0-255. Void has VOC's color of index 255.
        mapping: (raw value, class index) pairs; empty where raw values are class indices. Values
            that are neither mapped nor ignored are errors. The canonical form is sorted, has no
            pairs to void (they are moved to `ignore`), and is empty if it is the identity.
        colours: ((R, G, B), class index or 255) pairs of RGB-coded labels; empty if RGB labels are
            not accepted. None stands for the codes of the built-in set with this name and classes.

    Examples:
        >>> LabelSet("pets", ("background", "cat")).num_classes
        2
    """

    name: str
    classes: tuple[str, ...]
    ignore: tuple[int, ...] = (VOID,)
    palette: tuple[Colour, ...] = ()
    mapping: Values = ()
    colours: Colours | None = None

    def __post_init__(self) -> None:
        self._check_classes()
        if not self.palette:
            object.__setattr__(self, "palette", tables.voc_palette(len(self.classes)))
        self._check_palette()
        if self.mapping:
            self._check_mapping()
            self._make_mapping_canonical()
        bad = sorted(v for v in self.ignore if v != VOID and v in dict(self._class_values()))
        if bad:
            raise self._error(
                f"ignore value {bad[0]} is also the class "
                f"{self.classes[dict(self._class_values())[bad[0]]]!r}",
                "a raw value is either a class or ignored",
                "Remove one of the two.",
            )
        colours = self._builtin_colours() if self.colours is None else self.colours
        object.__setattr__(self, "colours", tuple(sorted(set(colours))))
        self._check_colours()

    def _error(self, found: str, expected: str, remedy: str) -> LabelSetError:
        return LabelSetError(
            where=f"label set {self.name!r}", found=found, expected=expected, remedy=remedy
        )

    def _check_classes(self) -> None:
        if not 1 <= len(self.classes) <= MAX_CLASSES:
            raise self._error(
                f"{len(self.classes)} classes",
                f"an 8-bit mask has room for 1 to {MAX_CLASSES} classes",
                "Merge classes.",
            )
        if len(set(self.classes)) != len(self.classes):
            raise self._error(
                "a class name occurs twice", "class names must differ", "Rename one of the classes."
            )

    def _check_palette(self) -> None:
        if len(self.palette) != len(self.classes):
            raise self._error(
                f"{len(self.palette)} colors for {len(self.classes)} classes",
                "one color per class is needed",
                "Leave the palette out to get VOC's colors.",
            )
        if not all(_is_colour(colour) for colour in self.palette):
            raise self._error(
                "a color out of range",
                "a color is three numbers from 0 to 255",
                "Correct the palette.",
            )

    def _check_mapping(self) -> None:
        for raw, index in self.mapping:
            if index != VOID and not 0 <= index < len(self.classes):
                raise self._error(
                    f"map sends {raw} to {index}",
                    f"class indices are 0-{len(self.classes) - 1}, and {VOID} is void",
                    "Correct the map.",
                )
        if len(dict(self.mapping)) != len(set(self.mapping)):
            raise self._error(
                "map has a raw value twice", "one class per raw value", "Remove one of the two."
            )
        if {index for _, index in self.mapping} == {VOID}:
            raise self._error(
                "map makes every value void",
                "at least one value of a class",
                "Use ignore for values that are void.",
            )
        if dict(self.mapping).get(VOID, VOID) != VOID:
            raise self._error(
                f"map makes {VOID} a class",
                f"{VOID} is always void",
                "Give the class another value.",
            )

    def _make_mapping_canonical(self) -> None:
        ignore = {*self.ignore, VOID, *(raw for raw, index in self.mapping if index == VOID)}
        classes = tuple(sorted({(raw, index) for raw, index in self.mapping if index != VOID}))
        is_identity = classes == tuple((index, index) for index in range(len(self.classes)))
        object.__setattr__(self, "ignore", tuple(sorted(ignore)))
        object.__setattr__(self, "mapping", () if is_identity else classes)

    def _check_colours(self) -> None:
        assert self.colours is not None
        for colour, index in self.colours:
            if not _is_colour(colour) or (index != VOID and not 0 <= index < len(self.classes)):
                raise self._error(
                    f"the RGB code {colour} for class {index}",
                    "three numbers from 0 to 255, and a class",
                    "Correct the colors.",
                )
        twice = [c for c, count in Counter(c for c, _ in self.colours).items() if count > 1]
        if twice:
            raise self._error(
                f"the RGB code {twice[0]} stands for two classes",
                "one class per color",
                "Remove one of the two.",
            )
        if tables.VOID_NAME in self.classes and VOID in dict(self.colours).values():
            raise self._error(
                f"a class {tables.VOID_NAME!r} and colors that mean void",
                f"in the colors, {tables.VOID_NAME!r} means pixels without ground truth",
                "Rename the class.",
            )

    def _builtin_colours(self) -> Colours:
        """Return the RGB codes of the built-in set with this name and these classes, or none."""
        codes = tables.COLOURS.get(self.name, {})
        if set(codes) != {*self.classes, tables.VOID_NAME}:
            return ()
        return _colours_by_index(codes, self.classes)

    def _class_values(self) -> Iterable[tuple[int, int]]:
        return self.mapping or ((index, index) for index in range(len(self.classes)))

    @property
    def num_classes(self) -> int:
        """Number of classes K, without void."""
        return len(self.classes)

    @property
    def values(self) -> Values:
        """The (raw value, class index or 255) pairs of all raw values with a meaning."""
        void = {VOID, *self.ignore}
        return (*self._class_values(), *((raw, VOID) for raw in sorted(void)))

    def value_palette(self) -> tuple[Colour, ...]:
        """Return the 256 colors of a palette PNG that holds raw values.

        Values of a class have its color; void values have VOC's color of 255, and values without a
        meaning have VOC's color of the same index.
        """
        palette = list(tables.voc_palette())
        void = palette[VOID]
        for raw, index in self.values:
            if 0 <= raw <= VOID:
                palette[raw] = void if index == VOID else self.palette[index]
        return tuple(palette)

    def encode(self, raw: NDArray[np.integer[Any]], where: str = "label") -> NDArray[np.uint8]:
        """Convert the pixels of a label file to class indices.

        Args:
            raw: (H, W) values of any integer dtype, or (H, W, 3) RGB codes, 0-255.
            where: Name of the label in error messages.

        Returns:
            (H, W) uint8 in [0, K), or 255 for void.

        Raises:
            LabelError: A value or color that is neither a class nor ignored.
        """
        assert self.colours is not None
        indices = (
            lookup_colours(raw, self.colours) if raw.ndim == 3 else lookup_values(raw, self.values)
        )
        if indices.min(initial=0) == UNKNOWN:
            raise self._unknown_value_error(raw, indices, where)
        return indices.astype(np.uint8)

    def _unknown_value_error(
        self, raw: NDArray[np.integer[Any]], indices: NDArray[np.int16], where: str
    ) -> LabelError:
        value, count, (row, column) = first_unknown(raw, indices)
        if raw.ndim == 3:
            expected = f"label set {self.name!r} has RGB codes for {len(self.colours or ())} colors"
        else:
            values = _runs(raw for raw, _ in self.mapping)
            values = values if self.mapping else f"0-{self.num_classes - 1}"
            ignored = ", ".join(str(v) for v in sorted({VOID, *self.ignore}))
            expected = f"label set {self.name!r} has classes for {values} and ignores {ignored}"
        kind = "color" if raw.ndim == 3 else "label value"
        return LabelError(
            where=where,
            found=f"{kind} {value} in {count} pixels, the first in row {row}, column {column}",
            expected=expected,
            remedy="Correct the label, or name the right --label-set.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `from_dict` reads; sets of equal meaning have equal forms.

        `map` and `colours` are left out where they add nothing to the other keys.
        """
        document: dict[str, Any] = {
            "name": self.name,
            "classes": list(self.classes),
            "ignore": list(self.ignore),
            "palette": [list(colour) for colour in self.palette],
        }
        if self.mapping:
            document["map"] = {str(raw): index for raw, index in self.mapping}
        if self.colours != tuple(sorted(self._builtin_colours())):
            codes: dict[str, list[list[int]]] = {}
            for colour, index in self.colours or ():
                name = tables.VOID_NAME if index == VOID else self.classes[index]
                codes.setdefault(name, []).append(list(colour))
            document["colours"] = codes
        return document

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "label set") -> LabelSet:
        """Build a label set from a parsed YAML or JSON document.

        Raises:
            LabelSetError: A key that is missing, unknown or of the wrong type.
        """
        _check_document(data, where)
        try:
            classes = tuple(str(name) for name in data["classes"])
            colours = data.get("colours")
            return cls(
                name=str(data["name"]),
                classes=classes,
                ignore=tuple(int(value) for value in data.get("ignore", (VOID,))),
                palette=tuple((int(r), int(g), int(b)) for r, g, b in data.get("palette", ())),
                mapping=tuple((_whole(v), _whole(i)) for v, i in data.get("map", {}).items()),
                colours=None if colours is None else _colours_by_index(colours, classes),
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise LabelSetError(
                where=where, found=f"unreadable values ({error})", expected=_EXPECTED
            ) from error


_OPTIONAL = ("ignore", "palette", "map", "colours")

_EXPECTED = f"keys are name, classes and optionally {', '.join(_OPTIONAL[:-1])} and {_OPTIONAL[-1]}"


def _check_document(data: Any, where: str) -> None:
    if not isinstance(data, Mapping) or not {"name", "classes"} <= set(data):
        raise LabelSetError(
            where=where,
            found="no name or no classes",
            expected=_EXPECTED,
            remedy="Add the missing key.",
        )
    texts = [key for key in ("classes", *_OPTIONAL) if isinstance(data.get(key), str)]
    if texts:  # Python would treat a string as the list of its letters
        raise LabelSetError(
            where=where,
            found=f"{texts[0]} is a string",
            expected="a list or a mapping",
            remedy="Write it as a list or a mapping.",
        )
    names = data["classes"]
    if not isinstance(names, list | tuple):
        raise LabelSetError(
            where=where,
            found=f"classes is a {type(names).__name__}",
            expected="a list of names, starting with class 0",
            remedy="Write it as a list.",
        )
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise LabelSetError(
                where=where,
                found=f"class {index} is {name!r}, which is not a string",
                expected="a class name",
                remedy="Put the name in quotes. Otherwise YAML reads no, yes, on, off and digits "
                "as other types.",
            )
    unknown = set(data) - {"name", "classes", *_OPTIONAL}
    if unknown:
        raise LabelSetError(
            where=where,
            found=f"unknown key {sorted(unknown)[0]!r}",
            expected=_EXPECTED,
            remedy="Remove this key.",
        )


def _colours_by_index(
    codes: Mapping[str, Iterable[Iterable[int]]], classes: tuple[str, ...]
) -> Colours:
    """Convert a mapping from class names to colors into ((R, G, B), class index) pairs."""
    pairs = []
    for name, colours in codes.items():
        if name not in classes and name != tables.VOID_NAME:
            raise ValueError(f"colours of {name!r}, which is not a class")
        index = classes.index(name) if name in classes else VOID
        pairs += [((_whole(r), _whole(g), _whole(b)), index) for r, g, b in colours]
    return tuple(pairs)


def _whole(value: Any) -> int:
    """Convert to int: keys of JSON objects are strings, and floats are refused."""
    return int(value) if isinstance(value, str) else operator.index(value)


def _is_colour(colour: Colour) -> bool:
    return len(colour) == 3 and 0 <= min(colour) <= max(colour) <= 255


def _runs(values: Iterable[int]) -> str:
    """Format numbers as sorted runs.

    >>> _runs([1, 2, 3, 7])
    '1-3, 7'
    """
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


UNKNOWN = -1
"""Marks a value or color without a meaning in the lookup tables."""


Values = tuple[tuple[int, int], ...]

Colours = tuple[tuple[Colour, int], ...]


_VALUES = 2**16

_COLOURS = 2**24


def lookup_values(raw: NDArray[np.integer[Any]], values: Values) -> NDArray[np.int16]:
    """Return the class index of every value of a label.

    Args:
        raw: (H, W), any integer dtype.
        values: (raw value, class index) pairs.

    Returns:
        (H, W) int16, `UNKNOWN` for values without a pair.
    """
    if raw.dtype in (np.uint8, np.uint16):  # the dtypes of image files
        indices_of_pixels: NDArray[np.int16] = _value_table(values).take(raw)
        return indices_of_pixels
    distinct, places = np.unique(raw, return_inverse=True)
    known = dict(values)
    indices = np.array([known.get(int(value), UNKNOWN) for value in distinct], np.int16)
    return indices[places].reshape(raw.shape)


def lookup_colours(rgb: NDArray[np.integer[Any]], colours: Colours) -> NDArray[np.int16]:
    """Return the class index of every color of an RGB label.

    Args:
        rgb: (H, W, 3), any integer dtype, 0-255.
        colours: ((R, G, B), class index) pairs.

    Returns:
        (H, W) int16, `UNKNOWN` for colors without a pair.
    """
    indices: NDArray[np.int16] = _colour_table(colours).take(_codes(rgb))
    return indices


def first_unknown(
    raw: NDArray[np.integer[Any]], indices: NDArray[np.int16]
) -> tuple[int | Colour, int, tuple[int, int]]:
    """Return the lowest unknown value or color, its number of pixels, and its first (row, column).

    Args:
        raw: (H, W) values or (H, W, 3) colors of the label.
        indices: (H, W) result of the lookup, with at least one `UNKNOWN`.
    """
    codes = _codes(raw) if raw.ndim == 3 else raw
    unknown = indices == UNKNOWN
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


# 32 MiB, built only for RGB labels; searching among the few colors would take 50 times longer.
@lru_cache(maxsize=2)
def _colour_table(colours: Colours) -> NDArray[np.int16]:
    table = np.full(_COLOURS, UNKNOWN, np.int16)
    for (red, green, blue), index in colours:
        table[red << 16 | green << 8 | blue] = index
    return table
