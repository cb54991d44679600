"""`LabelSet`: what the class numbers mean, and what label files that use them hold.

Values and colours of label files to class indices, by tables.
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
"""The value of pixels without truth in every label this project handles (VOC's void)."""


MAX_CLASSES = 255
"""Masks are 8-bit and 255 is void, so that class indices end at 254."""


@dataclass(frozen=True)
class LabelSet:
    """Class names and colours, and what label files of this kind hold.

    Attributes:
        name: how commands name it.
        classes: class names; the position is the class index.
        ignore: raw values of label files that count as void (255 always does).
        palette: one (R, G, B) per class, 0-255. Void is drawn in VOC's colour for 255.
        mapping: (raw value, class index) pairs; empty where raw values are class indices. What is
            neither mapped nor ignored is an error. Kept in one canonical form: sorted, pairs to
            void moved to `ignore`, and empty if it says nothing.
        colours: ((R, G, B), class index or 255) pairs of RGB-coded labels; empty where these are
            refused. None stands for those of the built-in set of this name and these classes.

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
        colours = self._own_colours() if self.colours is None else self.colours
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
                f"between 1 and {MAX_CLASSES} fit an 8-bit mask",
                "Merge classes.",
            )
        if len(set(self.classes)) != len(self.classes):
            raise self._error("a class name occurs twice", "names must differ", "Rename one.")

    def _check_palette(self) -> None:
        if len(self.palette) != len(self.classes):
            raise self._error(
                f"{len(self.palette)} colours for {len(self.classes)} classes",
                "one colour per class is needed",
                "Leave the palette out to get VOC's colours.",
            )
        if not all(_is_colour(colour) for colour in self.palette):
            raise self._error(
                "a colour out of range",
                "colours are three numbers from 0 to 255",
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
                "map names a raw value twice", "one class per raw value", "Remove one of the two."
            )
        if {index for _, index in self.mapping} == {VOID}:
            raise self._error(
                "map makes every value void", "values of classes", "Use ignore for what is void."
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
        says_nothing = classes == tuple((index, index) for index in range(len(self.classes)))
        object.__setattr__(self, "ignore", tuple(sorted(ignore)))
        object.__setattr__(self, "mapping", () if says_nothing else classes)

    def _check_colours(self) -> None:
        assert self.colours is not None
        for colour, index in self.colours:
            if not _is_colour(colour) or (index != VOID and not 0 <= index < len(self.classes)):
                raise self._error(
                    f"the RGB code {colour} for class {index}",
                    "three numbers from 0 to 255, and a class",
                    "Correct the colours.",
                )
        twice = [c for c, count in Counter(c for c, _ in self.colours).items() if count > 1]
        if twice:
            raise self._error(
                f"the RGB code {twice[0]} stands for two classes",
                "one class per colour",
                "Remove one of the two.",
            )
        if tables.VOID_NAME in self.classes and VOID in dict(self.colours).values():
            raise self._error(
                f"a class {tables.VOID_NAME!r} and colours that are void",
                f"in the colours, {tables.VOID_NAME!r} means pixels without truth",
                "Rename the class.",
            )

    def _own_colours(self) -> Colours:
        """The colours of the built-in set of this name and these classes."""
        codes = tables.COLOURS.get(self.name, {})
        if set(codes) != {*self.classes, tables.VOID_NAME}:
            return ()
        return _colours_by_index(codes, self.classes)

    def _class_values(self) -> Iterable[tuple[int, int]]:
        return self.mapping or ((index, index) for index in range(len(self.classes)))

    @property
    def num_classes(self) -> int:
        """K: the number of classes, void not counted."""
        return len(self.classes)

    @property
    def values(self) -> Values:
        """(raw value, class index or 255) of every raw value that means something."""
        void = {VOID, *self.ignore}
        return (*self._class_values(), *((raw, VOID) for raw in sorted(void)))

    def value_palette(self) -> tuple[Colour, ...]:
        """The 256 colours of a palette PNG that holds raw values; void ones in VOC's colour of 255.

        Values that mean nothing have VOC's colours.
        """
        shown = list(tables.voc_palette())
        void = shown[VOID]
        for raw, index in self.values:
            if 0 <= raw <= VOID:
                shown[raw] = void if index == VOID else self.palette[index]
        return tuple(shown)

    def encode(self, raw: NDArray[np.integer[Any]], where: str = "label") -> NDArray[np.uint8]:
        """Class indices from what a label file holds.

        Args:
            raw: (H, W), any integer dtype: values; or (H, W, 3), 0-255: RGB codes.
            where: named in the error.

        Returns:
            (H, W) uint8 in [0, K) or 255 (void).

        Raises:
            LabelError: a value or colour is neither a class nor ignored.
        """
        assert self.colours is not None
        found = (
            lookup_colours(raw, self.colours) if raw.ndim == 3 else lookup_values(raw, self.values)
        )
        if found.min(initial=0) == UNKNOWN:
            raise self._unknown(raw, found, where)
        return found.astype(np.uint8)

    def _unknown(
        self, raw: NDArray[np.integer[Any]], found: NDArray[np.int16], where: str
    ) -> LabelError:
        value, count, (row, column) = first_unknown(raw, found)
        if raw.ndim == 3:
            expected = (
                f"label set {self.name!r} has RGB codes for {len(self.colours or ())} colours"
            )
        else:
            first = f"maps {_runs(raw for raw, _ in self.mapping)} to classes"
            first = first if self.mapping else f"has classes 0-{self.num_classes - 1}"
            ignored = ", ".join(str(v) for v in sorted({VOID, *self.ignore}))
            expected = f"label set {self.name!r} {first} and ignores {ignored}"
        kind = "colour" if raw.ndim == 3 else "label value"
        return LabelError(
            where=where,
            found=f"{kind} {value} in {count} pixels, the first in row {row}, column {column}",
            expected=expected,
            remedy="Fix the label or name the right --label-set.",
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form that `from_dict` reads back; sets that mean the same have the same.

        `map` and `colours` are left out where they say nothing beyond the rest.
        """
        document: dict[str, Any] = {
            "name": self.name,
            "classes": list(self.classes),
            "ignore": list(self.ignore),
            "palette": [list(colour) for colour in self.palette],
        }
        if self.mapping:
            document["map"] = {str(raw): index for raw, index in self.mapping}
        if self.colours != tuple(sorted(self._own_colours())):
            codes: dict[str, list[list[int]]] = {}
            for colour, index in self.colours or ():
                name = tables.VOID_NAME if index == VOID else self.classes[index]
                codes.setdefault(name, []).append(list(colour))
            document["colours"] = codes
        return document

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "label set") -> LabelSet:
        """The label set of a parsed YAML or JSON file.

        Raises:
            LabelSetError: a key is missing, unknown or of the wrong type.
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
            remedy="Add what is missing.",
        )
    texts = [key for key in ("classes", *_OPTIONAL) if isinstance(data.get(key), str)]
    if texts:  # Python would take a text for the list of its letters
        raise LabelSetError(
            where=where,
            found=f"{texts[0]} is a text",
            expected="a list or table",
            remedy="Write it as such.",
        )
    names = data["classes"]
    if not isinstance(names, list | tuple):
        raise LabelSetError(
            where=where, found=f"classes is a {type(names).__name__}", expected="a list of names: the first is class 0",
            remedy="Write it as a list.",
        )  # fmt: skip
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise LabelSetError(
                where=where, found=f"class {index} is {name!r}, which is no text", expected="names of classes",
                remedy="Put it in quotes: YAML takes no, yes, on, off and digits for something else.",
            )  # fmt: skip
    unknown = set(data) - {"name", "classes", *_OPTIONAL}
    if unknown:
        raise LabelSetError(
            where=where,
            found=f"unknown key {sorted(unknown)[0]!r}",
            expected=_EXPECTED,
            remedy="Remove it.",
        )


def _colours_by_index(
    codes: Mapping[str, Iterable[Iterable[int]]], classes: tuple[str, ...]
) -> Colours:
    """((R, G, B), class index) pairs of a table from class names to colours."""
    pairs = []
    for name, colours in codes.items():
        if name not in classes and name != tables.VOID_NAME:
            raise ValueError(f"colours of {name!r}, which is no class")
        index = classes.index(name) if name in classes else VOID
        pairs += [((_whole(r), _whole(g), _whole(b)), index) for r, g, b in colours]
    return tuple(pairs)


def _whole(value: Any) -> int:
    """A whole number; keys of JSON objects are texts."""
    return int(value) if isinstance(value, str) else operator.index(value)


def _is_colour(colour: Colour) -> bool:
    return len(colour) == 3 and 0 <= min(colour) <= max(colour) <= 255


def _runs(values: Iterable[int]) -> str:
    """Sorted numbers as runs.

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
    if raw.dtype in (np.uint8, np.uint16):  # what image files give
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
