"""The one retry loop of all stores: exponential backoff with full jitter, bounded and counted.

The libraries' own loops are off, because they are neither bounded in time nor counted.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.storage.backend import TruncatedError

T = TypeVar("T")

log = logging.getLogger("fcnseg")


_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})

# What S3 answers with status 400, though the request was damaged or cut off on its way.
_CODES = frozenset(
    {"RequestTimeout", "SlowDown", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}
)

# Errors without an answer, by name: their packages load only where they are used.
_TRANSIENT = frozenset(
    {
        "HTTPClientError",  # botocore: closed connections, timeouts
        "ConnectionError",  # botocore's and Python's: nobody listens, no route, no such name
        "ResponseStreamingError",
        "IncompleteReadError",
        "ResponseParserError",  # throttling proxies answer with broken XML
        "ClientPayloadError",  # aiohttp
        "ClientConnectionError",
        "ServerDisconnectedError",
        "FSTimeoutError",
    }
)

_LASTING = frozenset({"SSLError", "ProxyConnectionError", "InvalidURL"})

_UNREACHABLE = frozenset(
    {"EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError"}  # the last: aiohttp
)

_GONE = (404, 410)

_FIRST_CONTACT_ATTEMPTS = 3


@dataclass(frozen=True)
class RetryPolicy:
    """At most `attempts` tries within `seconds`; pauses grow from `first` to `ceiling` seconds."""

    attempts: int
    seconds: float
    first: float = 0.1
    ceiling: float = 15.0


class GaveUpError(Exception):
    """A request failed in a way that may pass, as often and as long as the policy allows.

    The last failure is the cause.
    """

    def __init__(self, attempts: int, seconds: float) -> None:
        super().__init__(attempts, seconds)
        self.attempts = attempts
        self.seconds = seconds


def with_retries(
    action: Callable[[], T],
    policy: RetryPolicy,
    *,
    reached: bool = True,
    before: Callable[[], None] | None = None,
) -> T:
    """The result of an action that is tried again while its failures may pass.

    Args:
        action: one try.
        policy: the bounds.
        reached: whether this store ever answered: if not, a wrong address is likelier than an
            outage, and a refused connection is tried a few times only.
        before: called before every try; what it raises is passed on.

    Raises:
        GaveUpError: the bounds were reached; from the last failure.
        Exception: what the action raised, if it cannot get better.
    """
    started = time.monotonic()
    number = 0
    while True:
        if before is not None:
            before()
        number += 1
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
            wait = _pause(policy, number, error)
            waited = time.monotonic() - started
            attempts = policy.attempts
            if not reached and _names(behind(error)) & _UNREACHABLE and not _was_reset(error):
                attempts = min(attempts, _FIRST_CONTACT_ATTEMPTS)
            if number >= attempts or waited + wait > policy.seconds:
                raise GaveUpError(number, waited) from error
            _COUNTER.add()
            log.debug("try %d failed (%s); again in %.1f s", number, type(error).__name__, wait)
        time.sleep(wait)


def _was_reset(error: BaseException | None) -> bool:
    """Whether somebody was there, and hung up: botocore has one name for that and for nobody."""
    while error is not None:
        if isinstance(error, ConnectionResetError):
            return True
        error = error.__cause__ or error.__context__
    return False


def drain() -> int:
    """How many tries this process has repeated since the last call of this function."""
    return _COUNTER.drain()


def count() -> int:
    """How many since then; the next `drain` says them all the same."""
    return _COUNTER.count()


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: throttling, resets, timeouts, 5xx, truncation.

    Never what cannot get better: 403, 404, 412, wrong configuration, a local file system.
    """
    error = behind(error)
    status, code = response_of(error)
    if status is not None:
        return status in _STATUSES or code in _CODES
    names = _names(error)
    if names & _LASTING:
        return False
    return isinstance(error, TruncatedError | TimeoutError) or bool(names & _TRANSIENT)


def behind(error: BaseException) -> BaseException:
    """What kept a client from an object that it calls missing; else the error itself.

    fsspec's HTTP raises FileNotFoundError from whatever happened, a refused connection too.
    """
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None:
        return error
    hidden = type(cause).__module__.startswith("aiohttp") and response_of(cause)[0] not in _GONE
    return cause if hidden else error


def response_of(error: BaseException | None) -> tuple[int | None, str]:
    """(HTTP status, the store's code) behind an error; (None, "") where no answer came.

    s3fs maps one status to several classes, and some statuses to none: the cause tells.
    """
    for name in ("status_code", "code", "status"):  # Azure's, gcsfs's, aiohttp's
        status = getattr(error, name, None)
        if isinstance(status, int) and 400 <= status < 600:
            return status, ""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore's ClientError
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return (int(status) if status else None), str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return None, ""


def _pause(policy: RetryPolicy, number: int, error: BaseException) -> float:
    wait = random.uniform(0, min(policy.ceiling, policy.first * 2**number))
    return max(wait, min(policy.ceiling, _retry_after(error)))


def _retry_after(error: BaseException | None) -> float:
    """Seconds the store asks to be left alone for."""
    while error is not None:
        response: Any = getattr(error, "response", None)
        if isinstance(response, dict):
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            value = str(headers.get("retry-after", "")).strip()
            return float(value) if value.isdigit() else 0.0
        error = error.__cause__
    return 0.0


def _names(error: BaseException) -> set[str]:
    return {ancestor.__name__ for ancestor in type(error).__mro__}


class _Counter:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def add(self) -> None:
        with self._lock:
            self._count += 1

    def count(self) -> int:
        with self._lock:
            return self._count

    def drain(self) -> int:
        with self._lock:
            count, self._count = self._count, 0
            return count


_COUNTER = _Counter()
