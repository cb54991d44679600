"""`{date}` and `{yesterday}` in the URLs of a scheduled run: each night its own input and output.

Whoever schedules runs resolves them, once, from the moment that a run was scheduled for. That
moment stays the same however late the run starts and however often it is retried, so that a run
resumed after midnight goes on with its own night. Commands resolve nothing: a shell has `date`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pipeline.config import RunConfig
from pipeline.errors import ConfigError

_WORD = re.compile(r"\{([^{}]*)\}")
_KNOWN = re.compile(r"(date|yesterday)(?::(.+))?", re.DOTALL)
_NIGHTS = 31
"""How far back an earlier output is looked for: a run every month is the rarest."""


def refuse_dates(config: RunConfig) -> None:
    """Refuse words that nobody resolves here: a folder named `{date}` is not what was meant.

    Raises:
        ConfigError: naming the URL.
    """
    for name, url in (("INPUT", config.input.url), ("OUTPUT", config.output.url)):
        if any(_KNOWN.fullmatch(word) for word in _WORD.findall(url)):
            raise ConfigError(
                f"{name} {url}",
                "a date that only scheduled runs of Prefect fill in",
                "the place itself",
                "Let the shell fill it in: $(date +%F).",
            )


def resolve_dates(config: RunConfig, moment: datetime) -> RunConfig:
    """The configuration with real dates in `input.url`, `input.labels` and `output.url`.

    `{date}` is the day of the moment in `input.time_zone` as 2026-11-23, `{yesterday}` the day
    before; `{date:%Y/%m/%d}` has another form, by the codes of `strftime`.

    Args:
        config: perhaps without any of these words; then it is returned as it is.
        moment: with a time zone.

    Raises:
        ConfigError: an unknown word, an unknown zone, or an input of its own every night whose
            output is always the same.
    """
    urls = {"input.url": config.input.url, "output.url": config.output.url}
    if config.input.labels is not None:
        urls["input.labels"] = config.input.labels
    if not any(_WORD.search(url) for url in urls.values()):
        return config
    local = moment.astimezone(_zone(config.input.time_zone))
    found = {name: _resolve(name, url, local) for name, url in urls.items()}
    changed = {name for name, url in urls.items() if found[name] != url}
    if "input.url" in changed and "output.url" not in changed:
        raise ConfigError(
            f"config output.url {config.output.url}",
            f"no {{date}}, but input.url is {config.input.url}",
            "an output for every input: one belongs to the other",
            "Put the same {date} into output.url, or leave it out of input.url.",
        )
    images = {"url": found["input.url"], "labels": found.get("input.labels")}
    return config.model_copy(
        update={
            "input": config.input.model_copy(update=images),
            "output": config.output.model_copy(update={"url": found["output.url"]}),
        }
    )


def earlier_outputs(config: RunConfig, moment: datetime) -> Iterator[str]:
    """Outputs of the runs of the days before, latest first, where they are other ones.

    Args:
        config: not resolved yet.
        moment: of the present run.
    """
    here = resolve_dates(config, moment).output.url
    seen = {here}
    # Days of the wall: some have 23 or 25 hours.
    local = moment
    if here != config.output.url:
        local = moment.astimezone(_zone(config.input.time_zone))
    for days in range(1, _NIGHTS + 1):
        url = resolve_dates(config, local - timedelta(days=days)).output.url
        if url not in seen:
            seen.add(url)
            yield url


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(
            "config input.time_zone",
            repr(name),
            "the name of a time zone, for example Europe/Berlin or UTC",
            "Correct it.",
        ) from None


def _resolve(name: str, url: str, local: datetime) -> str:
    def value(match: re.Match[str]) -> str:
        known = _KNOWN.fullmatch(match[1])
        if known is None:
            raise ConfigError(
                f"config {name}",
                f"{match[0]} in {url}",
                "{date}, {yesterday}, or a form such as {date:%Y/%m/%d}",
                "Correct it.",
            )
        day = local - timedelta(days=1) if known[1] == "yesterday" else local
        return day.strftime(known[2] or "%Y-%m-%d")

    return _WORD.sub(value, url)
