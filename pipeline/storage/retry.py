"""The retry loop of all stores: exponential backoff with full jitter, limited and counted.

The retry loops of the client libraries are off: they have no time limit and are not counted.
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

# Codes that S3 sends with status 400 although the request was damaged on the network.
_CODES = frozenset(
    {"RequestTimeout", "SlowDown", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}
)

# Errors without a response, by class name: importing the classes would load their packages.
_TRANSIENT = frozenset(
    {
        "HTTPClientError",  # botocore: closed connections, timeouts
        "ConnectionError",  # botocore and Python: refused, no route, unknown host name
        "ResponseStreamingError",
        "IncompleteReadError",
        "ResponseParserError",  # throttling proxies send broken XML
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
    """Limits of a retry loop.

    Attributes:
        attempts: attempts in all, at least 1.
        seconds: time after which no further attempt starts.
        first: base of the pauses in seconds; the pause after attempt n is random, from 0 to
            `first` * 2**n.
        ceiling: longest pause in seconds.
    """

    attempts: int
    seconds: float
    first: float = 0.1
    ceiling: float = 15.0


class GaveUpError(Exception):
    """A request failed with temporary errors until the limits of the policy were reached.

    The last failure is the cause of this exception.
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
    """Return the result of an action, repeated after temporary failures.

    Args:
        action: one attempt.
        policy: limits of attempts and time.
        reached: True if this store has answered this process before. If False, a wrong address is
            more likely than an outage, and a refused connection is tried only 3 times.
        before: called before every attempt; its exceptions end the loop.

    Raises:
        GaveUpError: the limits were reached; the last failure is its cause.
        Exception: the failure of an attempt, if it is not temporary.
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
            if not reached and _names(hidden_cause(error)) & _UNREACHABLE and not _was_reset(error):
                attempts = min(attempts, _FIRST_CONTACT_ATTEMPTS)
            if number >= attempts or waited + wait > policy.seconds:
                raise GaveUpError(number, waited) from error
            _COUNTER.add()
            log.debug("try %d failed (%s); again in %.1f s", number, type(error).__name__, wait)
        time.sleep(wait)


def _was_reset(error: BaseException | None) -> bool:
    """Return whether a server accepted the connection and then closed it.

    botocore raises the same class of error for that and for an unreachable address.
    """
    while error is not None:
        if isinstance(error, ConnectionResetError):
            return True
        error = error.__cause__ or error.__context__
    return False


def drain() -> int:
    """Return the number of retries of this process since the last call, and reset it to 0."""
    return _COUNTER.drain()


def count() -> int:
    """Return the number of retries since the last `drain`, without resetting it."""
    return _COUNTER.count()


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later.

    True for throttling, closed connections, timeouts, status 5xx, and truncated responses. False
    for 403, 404, 412, a wrong configuration, and errors of the local file system.
    """
    error = hidden_cause(error)
    status, code = response_of(error)
    if status is not None:
        return status in _STATUSES or code in _CODES
    names = _names(error)
    if names & _LASTING:
        return False
    return isinstance(error, TruncatedError | TimeoutError) or bool(names & _TRANSIENT)


def hidden_cause(error: BaseException) -> BaseException:
    """Return the real cause of a FileNotFoundError of fsspec over HTTP, else the error itself.

    fsspec raises FileNotFoundError for every failure over HTTP, including refused connections.
    """
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None:
        return error
    hidden = type(cause).__module__.startswith("aiohttp") and response_of(cause)[0] not in _GONE
    return cause if hidden else error


def response_of(error: BaseException | None) -> tuple[int | None, str]:
    """Return (HTTP status, error code of the store) of an error; (None, "") without a response.

    s3fs translates some responses into other exceptions; their causes have the response.
    """
    for name in ("status_code", "code", "status"):  # of Azure, gcsfs, aiohttp
        status = getattr(error, name, None)
        if isinstance(status, int) and 400 <= status < 600:
            return status, ""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # ClientError of botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return (int(status) if status else None), str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return None, ""


def _pause(policy: RetryPolicy, number: int, error: BaseException) -> float:
    wait = random.uniform(0, min(policy.ceiling, policy.first * 2**number))
    return max(wait, min(policy.ceiling, _retry_after(error)))


def _retry_after(error: BaseException | None) -> float:
    """Return the seconds that the store asks clients to wait (Retry-After), or 0."""
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
