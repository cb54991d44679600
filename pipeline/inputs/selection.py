"""Which part of an input a run looks at: globs on names, and how long ago something changed."""

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
    """A part of an input.

    Attributes:
        include: globs; with none, everything is included.
        exclude: globs; they win.
        since: seconds since the epoch; what was changed earlier is not looked at.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    since: float | None = None

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return not (self.include or self.exclude) and self.since is None

    def names(self, *names: str) -> bool:
        """Whether something of these names (its path, its id) is meant.

        As `fnmatch.fnmatchcase`: `*` matches any characters, `/` too; `?` one; `[ab]` one of them.

        >>> selection = Selection(include=("train/*",), exclude=("*-7",))
        >>> selection.names("train/x/a-7.tar", "train/x/a-7"), selection.names("train/a-8.tar")
        (False, True)
        """
        included = not self.include or any(map(self._include.fullmatch, names))
        return included and not (self.exclude and any(map(self._exclude.fullmatch, names)))

    def is_recent(self, modified: float | None, where: str) -> bool:
        """Whether something that was changed at that time is meant.

        Raises:
            ConfigError: `since` is asked for and the store knows no time.
        """
        if self.since is None:
            return True
        if modified is None or modified != modified:
            raise ConfigError(
                where=f"--since, {where}",
                found="a store that does not tell when its objects were changed",
                expected="modification times",
                remedy="Leave --since out: what is done already is never read again anyway.",
            )
        return modified >= self.since

    def refuse_none(self, where: str, matching: int, of: str) -> None:
        """Refuse globs that leave nothing of an input: most likely they are mistyped.

        Raises:
            InputError: `matching` is 0.
        """
        if matching or not (self.include or self.exclude):
            return
        globs = [f"--include {glob!r}" for glob in self.include]
        globs += [f"--exclude {glob!r}" for glob in self.exclude]
        raise InputError(
            where=where,
            found=f"nothing matches: none of {of}",
            expected=f"something for {' '.join(globs)}",
            remedy="Globs are of whole paths below INPUT; * matches / as well.",
        )

    @cached_property
    def _include(self) -> re.Pattern[str]:
        return _any_of(self.include)

    @cached_property
    def _exclude(self) -> re.Pattern[str]:
        return _any_of(self.exclude)


EVERYTHING = Selection()


def seconds_of(text: str) -> float | None:
    """Seconds of a duration such as "90m", "36h", "7d" or "2w"; None of anything else.

    >>> seconds_of("1.5h"), seconds_of("0s"), seconds_of("24")
    (5400.0, 0.0, None)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    return float(match[1]) * _SECONDS[match[2]] if match else None


def parse_since(text: str, now: float) -> float:
    """The moment that `--since` names, as seconds since the epoch.

    Args:
        text: an age (`90m`, `36h`, `7d`, `2w`), or an ISO date or date and time; UTC unless it
            says otherwise.
        now: seconds since the epoch.

    Raises:
        ConfigError: neither, or a moment that is still to come.

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
            found="no time",
            expected="an age (90m, 36h, 7d, 2w) or a date (2026-11-01, 2026-11-01T06:00)",
            remedy="Correct it.",
        ) from None
    if since > now:
        raise ConfigError(
            where=f"--since {text}",
            found="a moment that is still to come (UTC, unless a zone is given)",
            expected="an age (90m, 36h, 7d, 2w) or a date in the past",
            remedy="Correct it.",
        )
    return since


def _any_of(globs: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)))
