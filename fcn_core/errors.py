"""Error classes of the numerical core.

    FcnError                 base class of every error that this project raises on purpose
    ├── ImageError           image data that cannot be read
    ├── LabelError           a ground-truth label that does not fit its image or its label set
    ├── LabelSetError        an unknown or malformed label set
    ├── MissingPackageError  an optional package that is needed but not installed
    ├── TrainingError        a training run that diverged
    └── WeightsError         a weights file that is missing, damaged or of another network

`pipeline.errors` adds the error classes of the pipeline. Every message has four parts, in this
order: where, what was found, what was expected, what to do.
"""

from __future__ import annotations


class FcnError(Exception):
    """Base class of all errors that this project raises on purpose, with a message in four parts.

    Args:
        where: The object concerned, as precisely as known ("shard s3://b/a.tar, sample 7").
        found: The actual state ("label is 500x366, image is 500x375").
        expected: The required state ("labels must match the image size").
        remedy: What the user should do now, as a sentence.
    """

    exit_code = 1

    def __init__(self, where: str, found: str, expected: str, remedy: str = "") -> None:
        # Pickle calls __init__ with Exception.args, so all four parts go there.
        super().__init__(where, found, expected, remedy)
        self.where = where
        self.found = found
        self.expected = expected
        self.remedy = remedy

    @property
    def reason(self) -> str:
        """The found and expected parts without the place, for tables that have a column for it."""
        return f"{self.found}; {self.expected}"

    def at(self, where: str) -> FcnError:
        """Return a copy of the error, of the same class, with a more precise place."""
        return type(self)(where, self.found, self.expected, self.remedy)

    def __str__(self) -> str:
        text = f"{self.where}: {self.found}; {self.expected}."
        return f"{text} {self.remedy}" if self.remedy else text


class ImageError(FcnError):
    """Image data that cannot be read."""


class LabelError(FcnError):
    """A ground-truth label that does not fit its image or its label set."""

    exit_code = 2


class LabelSetError(FcnError):
    """An unknown or malformed label set."""

    exit_code = 2


class MissingPackageError(FcnError):
    """An optional package that is needed but not installed."""


class TrainingError(FcnError):
    """A training run that diverged."""

    exit_code = 4


class WeightsError(FcnError):
    """A weights file that is missing, damaged, or made for another network."""
