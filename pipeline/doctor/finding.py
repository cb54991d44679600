"""Findings of `fcnseg doctor`: the subject of a check, its state, and the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fcn_core.errors import FcnError

FindingLevel = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        level: "ok"; "warning": a run can start, but may be slow or behave unexpectedly; "problem":
            a run cannot work.
        subject: checked thing, such as a package, a store or a node.
        found: observed state.
        remedy: advice as a sentence; "" if nothing needs to be done.
    """

    level: FindingLevel
    subject: str
    found: str
    remedy: str = ""

    @classmethod
    def of(cls, error: FcnError) -> Finding:
        """Return an error of this package as a problem."""
        found = f"{error.found}; expected: {error.expected}"
        return cls("problem", error.where, found, error.remedy)

    @property
    def blocks(self) -> bool:
        """Whether the finding prevents a run."""
        return self.level == "problem"

    def __str__(self) -> str:
        text = f"{self.level:8} {self.subject}: {self.found}"
        return f"{text}. {self.remedy}" if self.remedy else text


def fine(subject: str, found: str) -> Finding:
    """Return a finding of level "ok"."""
    return Finding("ok", subject, found)


def warning(subject: str, found: str, remedy: str) -> Finding:
    """Return a finding of level "warning": a run can start in spite of it."""
    return Finding("warning", subject, found, remedy)


def problem(subject: str, found: str, remedy: str) -> Finding:
    """Return a finding of level "problem": a run cannot work."""
    return Finding("problem", subject, found, remedy)
