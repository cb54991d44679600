"""The errors of the science.

    FcnError                 everything this project raises on purpose
    ├── ImageError           bytes that are no readable image
    ├── LabelError           a ground-truth label that does not fit its image or its label set
    ├── LabelSetError        an unknown or malformed label set
    ├── MissingPackageError  an optional package that is needed and not installed
    ├── TrainingError        a training that diverged
    └── WeightsError         a weights file that is missing, damaged or of another network

`pipeline.errors` adds those of the factory. Every message has four parts, in this order: where,
what was found, what was expected, what to do.
"""

from __future__ import annotations


class FcnError(Exception):
    """An error written for the person who meets it.

    Args:
        where: the object concerned, as exactly as it is known ("shard s3://b/a.tar, sample 7").
        found: what is there ("label is 500x366, image is 500x375").
        expected: what should be there ("labels must match the image size").
        remedy: what to do now, as a sentence.
    """

    exit_code = 1

    def __init__(self, where: str, found: str, expected: str, remedy: str = "") -> None:
        # All four go to Exception.args, which is what pickle hands back to __init__.
        super().__init__(where, found, expected, remedy)
        self.where = where
        self.found = found
        self.expected = expected
        self.remedy = remedy

    @property
    def reason(self) -> str:
        """What was found and expected, without the place, for tables that name it already."""
        return f"{self.found}; {self.expected}"

    def at(self, where: str) -> FcnError:
        """The same error, with a more exact place, as a new object of the same class."""
        return type(self)(where, self.found, self.expected, self.remedy)

    def __str__(self) -> str:
        text = f"{self.where}: {self.found}; {self.expected}."
        return f"{text} {self.remedy}" if self.remedy else text


class ImageError(FcnError):
    """Bytes that are no readable image."""


class LabelError(FcnError):
    """A ground-truth label that does not fit its image or its label set."""

    exit_code = 2


class LabelSetError(FcnError):
    """An unknown or malformed label set."""

    exit_code = 2


class MissingPackageError(FcnError):
    """An optional package that is needed here and not installed."""


class TrainingError(FcnError):
    """A training that diverged."""

    exit_code = 4


class WeightsError(FcnError):
    """A weights file that is missing, damaged, or made for another network."""
