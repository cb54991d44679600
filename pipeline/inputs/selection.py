"""Selection of a part of an input: globs on paths, and a minimum modification time."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from pipeline.errors import ConfigError, InputError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Selection:
    """The part of an input that a run reads.

    Attributes:
        include: globs of paths to read; empty for all.
        exclude: globs of paths not to read; they have priority over `include`.
        since: earliest modification time in seconds since the epoch; None for any.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    since: float | None = None

    @property
    def is_all(self) -> bool:
        """Whether the whole input is selected."""
        return not (self.include or self.exclude) and self.since is None

    def names(self, *names: str) -> bool:
        """Return whether the globs select an object by any of its names, such as path and id.

        Globs match as in `fnmatch.fnmatchcase`: `*` any characters including `/`, `?` any one
        character, `[ab]` one of the characters.

        >>> selection = Selection(include=("train/*",), exclude=("*-7",))
        >>> selection.names("train/x/a-7.tar", "train/x/a-7"), selection.names("train/a-8.tar")
        (False, True)
        """
        included = not self.include or any(map(self._include.fullmatch, names))
        return included and not (self.exclude and any(map(self._exclude.fullmatch, names)))

    def is_recent(self, modified: float | None, where: str) -> bool:
        """Return whether an object with this modification time is selected.

        Args:
            modified: seconds since the epoch; None or NaN if unknown.
            where: path of the object, for messages.

        Raises:
            ConfigError: `since` is set and the modification time is unknown.
        """
        if self.since is None:
            return True
        if modified is None or modified != modified:
            raise ConfigError(
                where=f"--since, {where}",
                found="a store without modification times",
                expected="modification times",
                remedy="Omit --since: a run never reads shards again that are already committed.",
            )
        return modified >= self.since

    def refuse_none(self, where: str, matching: int, of: str) -> None:
        """Refuse globs that select nothing, which are probably mistyped.

        Args:
            where: URL of the input.
            matching: number of selected objects.
            of: what was searched, like "12 shards".

        Raises:
            InputError: `matching` is 0 and there are globs.
        """
        if matching or not (self.include or self.exclude):
            return
        globs = [f"--include {glob!r}" for glob in self.include]
        globs += [f"--exclude {glob!r}" for glob in self.exclude]
        raise InputError(
            where=where,
            found=f"no match among {of}",
            expected=f"at least one match of {' '.join(globs)}",
            remedy="Globs match whole paths below INPUT; * also matches /.",
        )

    @cached_property
    def _include(self) -> re.Pattern[str]:
        return _any_of(self.include)

    @cached_property
    def _exclude(self) -> re.Pattern[str]:
        return _any_of(self.exclude)


EVERYTHING = Selection()


def seconds_of(text: str) -> float | None:
    """Return the seconds of a duration like "90m", "36h", "7d" or "2w", or None if it is not one.

    >>> seconds_of("1.5h"), seconds_of("0s"), seconds_of("24")
    (5400.0, 0.0, None)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    return float(match[1]) * _SECONDS[match[2]] if match else None


def parse_since(text: str, now: float) -> float:
    """Return the time that `--since` names, in seconds since the epoch.

    Args:
        text: an age (`90m`, `36h`, `7d`, `2w`), or an ISO date with or without time; UTC unless
            the text names a time zone.
        now: current time in seconds since the epoch.

    Raises:
        ConfigError: neither an age nor a date, or a time in the future.

    >>> parse_since("36h", 1_000_000.0), parse_since("1970-01-02", 1_000_000.0)
    (870400.0, 86400.0)
    """
    age = seconds_of(text)
    if age is not None:
        return now - age
    try:
        moment = datetime.fromisoformat(text.strip())
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ConfigError(
            where=f"--since {text}",
            found="neither an age nor a date",
            expected="an age (90m, 36h, 7d, 2w) or a date (2026-11-01, 2026-11-01T06:00)",
            remedy="Correct --since.",
        ) from None
    if since > now:
        raise ConfigError(
            where=f"--since {text}",
            found="a time in the future (UTC, unless a time zone is given)",
            expected="an age (90m, 36h, 7d, 2w) or a date in the past",
            remedy="Correct --since.",
        )
    return since


def _any_of(globs: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)))
