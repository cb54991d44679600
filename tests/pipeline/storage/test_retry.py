"""Laws of the retry loop: what may pass is tried again, bounded and counted; nothing else is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import botocore.exceptions as boto
import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3fs.errors import translate_boto_error

from pipeline.errors import StoreError
from pipeline.storage import retry
from pipeline.storage.backend import TruncatedError
from pipeline.storage.errors import explained
from pipeline.storage.retry import GaveUpError, RetryPolicy, is_transient, with_retries

QUICK = RetryPolicy(attempts=5, seconds=10, first=0.0001, ceiling=0.001)


def answer(status: int, code: str = "", **headers: str) -> boto.ClientError:
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    return boto.ClientError({"Error": {"Code": code}, "ResponseMetadata": metadata}, "PutObject")


PASSING: list[Exception] = [
    answer(503, "SlowDown"), answer(429), answer(500, "InternalError"), answer(502), answer(504),
    answer(409, "ConditionalRequestConflict"), answer(400, "RequestTimeout"),
    answer(400, "BadDigest"), answer(408),
    boto.EndpointConnectionError(endpoint_url="http://h"), boto.ReadTimeoutError(endpoint_url="h"),
    boto.ConnectTimeoutError(endpoint_url="h"), boto.ConnectionClosedError(endpoint_url="h"),
    boto.HTTPClientError(error="x"),
    aiohttp.ClientPayloadError(), aiohttp.ServerDisconnectedError(),
    ConnectionResetError(), BrokenPipeError(), TimeoutError(), TruncatedError("1 of 2 bytes"),
]  # fmt: skip
LASTING: list[Exception] = [
    answer(403, "AccessDenied"), answer(404, "NoSuchKey"), answer(412, "PreconditionFailed"),
    answer(400, "ExpiredToken"), answer(400, "InvalidToken"), answer(401), answer(405),
    answer(411), answer(416), answer(501, "NotImplemented"), answer(301, "PermanentRedirect"),
    answer(507, "InsufficientStorage"),
    boto.NoCredentialsError(), boto.ProfileNotFound(profile="p"),
    boto.SSLError(endpoint_url="h", error="x"), boto.ParamValidationError(report="x"),
    PermissionError(), FileNotFoundError(), OSError(28, "No space left on device"), ValueError(),
    StoreError("a", "b", "c"),
]  # fmt: skip


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert is_transient(error) and is_transient(translate_boto_error(error))


@pytest.mark.parametrize("error", LASTING, ids=str)
def test_what_cannot_get_better_is_tried_once(error: Exception) -> None:
    tries = []

    def fail() -> None:
        tries.append(1)
        raise error

    assert not is_transient(translate_boto_error(error))
    with pytest.raises(type(error)) as caught:
        with_retries(fail, QUICK)
    assert caught.value is error and len(tries) == 1


def failing(times: int, error: Exception | None = None) -> Callable[[], str]:
    left = iter(range(times))

    def call() -> str:
        if next(left, None) is None:
            return "done"
        raise error or TimeoutError()

    return call


@given(st.integers(0, 8), st.integers(1, 6))
def test_as_often_as_the_policy_says_and_every_repetition_is_counted(
    fails: int, attempts: int
) -> None:
    policy = RetryPolicy(attempts, seconds=10, first=0.0, ceiling=0.0)
    retry.drain()
    if fails < attempts:
        assert with_retries(failing(fails), policy) == "done"
    else:
        with pytest.raises(GaveUpError) as caught:
            with_retries(failing(fails), policy)
        assert caught.value.attempts == attempts
        assert isinstance(caught.value.__cause__, TimeoutError)
    assert retry.drain() == min(fails, attempts - 1)
    assert retry.drain() == 0


def test_no_longer_than_the_policy_says(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    clock = SimpleNamespace(monotonic=lambda: now, sleep=sleep)
    monkeypatch.setattr(retry, "time", clock)
    policy = RetryPolicy(attempts=1000, seconds=0.3, first=0.02, ceiling=0.05)
    with pytest.raises(GaveUpError) as caught:
        with_retries(failing(1000), policy)
    assert now <= 0.3
    assert 6 < caught.value.attempts < 1000


def pauses(policy: RetryPolicy, error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(GaveUpError):
        with_retries(failing(100, error), policy)
    return slept


def test_pauses_grow_to_a_ceiling_and_are_jittered(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = RetryPolicy(attempts=9, seconds=1000, first=0.1, ceiling=2.0)
    runs = [pauses(policy, TimeoutError(), monkeypatch) for _ in range(40)]
    for number in range(8):
        column = [run[number] for run in runs]
        most = min(2.0, 0.1 * 2 ** (number + 1))
        assert 0 <= min(column) < most / 3 and 2 * most / 3 < max(column) <= most
        assert len(set(column)) > 30


def test_a_store_that_names_a_time_is_left_alone_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = RetryPolicy(attempts=4, seconds=1000, first=0.001, ceiling=9.0)
    error = translate_boto_error(answer(503, "SlowDown", **{"retry-after": "7"}))
    assert pauses(policy, error, monkeypatch) == [7.0, 7.0, 7.0]
    error = translate_boto_error(answer(503, "SlowDown", **{"retry-after": "9999"}))
    assert pauses(policy, error, monkeypatch) == [9.0, 9.0, 9.0]


def test_an_address_that_never_answered_is_given_up_soon() -> None:
    refused = boto.EndpointConnectionError(endpoint_url="http://h")
    for reached, tries in ((False, 3), (True, 5)):
        with pytest.raises(GaveUpError) as caught:
            with_retries(failing(100, refused), QUICK, reached=reached)
        assert caught.value.attempts == tries


def test_who_lost_his_right_does_not_try_again() -> None:
    class LostError(Exception):
        pass

    calls: list[str] = []

    def before() -> None:
        calls.append("asked")
        if len(calls) > 2:
            raise LostError

    def fail() -> Any:
        calls.append("tried")
        raise TimeoutError

    with pytest.raises(LostError):
        with_retries(fail, QUICK, before=before)
    assert calls == ["asked", "tried", "asked"]


def test_counts_of_many_threads_add_up() -> None:
    retry.drain()
    policy = RetryPolicy(attempts=9, seconds=10, first=0.0, ceiling=0.0)
    work = [threading.Thread(target=with_retries, args=(failing(n % 5), policy)) for n in range(40)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert retry.drain() == sum(n % 5 for n in range(40))


def test_giving_up_is_told_with_its_cause() -> None:
    error = translate_boto_error(answer(503, "SlowDown"))
    with pytest.raises(StoreError) as caught, explained("s3://b/x"):
        with_retries(failing(100, error), QUICK)
    assert str(caught.value).startswith("s3://b/x: the store failed (503 SlowDown: ")
    assert "gave up after 5 tries in 0 s" in caught.value.found
    assert "Run the same command again" in caught.value.remedy
