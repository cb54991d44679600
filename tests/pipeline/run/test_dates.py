"""Dates in URLs: one moment, one zone, one night."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError
from pipeline.resolve import earlier_outputs, resolve_dates

NIGHT = datetime(2026, 11, 22, 23, 30, tzinfo=UTC)  # half past midnight in Berlin


def config(source: str, output: str, **flags: object) -> RunConfig:
    dotted = {name.replace("__", "."): value for name, value in flags.items()}
    return load_config(None, [], {"input.url": source, "output.url": output, **dotted})


def test_words_become_days_of_the_zone() -> None:
    found = resolve_dates(
        config(
            "s3://b/in/{date:%Y/%m/%d}/",
            "s3://b/out/{date}",
            input__labels="s3://b/labels/{yesterday}",
            input__time_zone="Europe/Berlin",
        ),
        NIGHT,
    )
    assert found.input.url == "s3://b/in/2026/11/23/"
    assert found.output.url == "s3://b/out/2026-11-23"
    assert found.input.labels == "s3://b/labels/2026-11-22"
    assert resolve_dates(config("in-{date}", "out-{date}"), NIGHT).output.url == "out-2026-11-22"


def test_without_words_nothing_changes() -> None:
    growing = config("s3://b/in", "s3://b/out", input__time_zone="Nowhere/Land")
    assert resolve_dates(growing, NIGHT) is growing
    assert list(earlier_outputs(growing, NIGHT)) == []


@pytest.mark.parametrize(
    ("source", "output", "zone", "says"),
    [
        ("in/{date}", "out", "UTC", "no {date}, but input.url is in/{date}"),
        ("in/{dat}", "out/{date}", "UTC", "{dat} in in/{dat}"),
        ("in/{date}", "out/{date.year}", "UTC", "{date.year} in out/{date.year}"),
        ("in/{date}", "out/{date}", "Berlin", "'Berlin'"),
    ],
)
def test_what_cannot_be_meant_is_refused(source: str, output: str, zone: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_dates(config(source, output, input__time_zone=zone), NIGHT)
    assert says in str(caught.value)


def test_one_input_may_have_an_output_every_night() -> None:
    found = resolve_dates(config("in", "out/{date}"), NIGHT)
    assert (found.input.url, found.output.url) == ("in", "out/2026-11-22")


def test_earlier_outputs_are_other_ones_latest_first() -> None:
    daily = list(earlier_outputs(config("i/{date}", "o/{date}"), NIGHT))
    assert daily[:2] == ["o/2026-11-21", "o/2026-11-20"] and len(daily) == 31
    shorter = datetime(2026, 3, 29, 22, 30, tzinfo=UTC)  # half past midnight, after 23 hours
    berlin = config("i", "o/{date}", input__time_zone="Europe/Berlin")
    assert next(earlier_outputs(berlin, shorter)) == "o/2026-03-29"
    monthly = list(earlier_outputs(config("i/{date}", "o/{date:%Y-%m}"), NIGHT))
    assert monthly == ["o/2026-10"]


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)),
    st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Kiritimati"]),
)
def test_any_moment_is_the_day_that_a_clock_on_the_wall_shows(moment: datetime, zone: str) -> None:
    found = resolve_dates(
        config("i/{date}", "o/{yesterday}/{date}", input__time_zone=zone),
        moment.replace(tzinfo=UTC),
    )
    _, before, day = found.output.url.split("/")
    assert day == str(moment.replace(tzinfo=UTC).astimezone(ZoneInfo(zone)).date())
    assert date.fromisoformat(day) - date.fromisoformat(before) == timedelta(days=1)
