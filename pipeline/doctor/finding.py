"""One thing that `fcnseg doctor` looked at: what is there, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fcn_core.errors import FcnError

FindingLevel = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What a look at one thing gave.

    Attributes:
        level: ok; warning: a run starts, but may be slow or surprising; problem: it cannot work.
        subject: what was looked at.
        found: what is there.
        remedy: what to do, as a sentence; empty where nothing is to be done.
    """

    level: FindingLevel
    subject: str
    found: str
    remedy: str = ""

    @classmethod
    def of(cls, error: FcnError) -> Finding:
        """What one of our errors tells, as a problem."""
        found = f"{error.found}; expected: {error.expected}"
        return cls("problem", error.where, found, error.remedy)

    @property
    def blocks(self) -> bool:
        """Whether a run cannot work with this."""
        return self.level == "problem"

    def __str__(self) -> str:
        text = f"{self.level:8} {self.subject}: {self.found}"
        return f"{text}. {self.remedy}" if self.remedy else text


def fine(subject: str, found: str) -> Finding:
    """Something as it should be."""
    return Finding("ok", subject, found)


def warning(subject: str, found: str, remedy: str) -> Finding:
    """Something that a run survives."""
    return Finding("warning", subject, found, remedy)


def problem(subject: str, found: str, remedy: str) -> Finding:
    """Something without which no run works."""
    return Finding("problem", subject, found, remedy)
