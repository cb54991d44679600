"""A client of Ray's Jobs API: finds the address, sends the token, turns errors into ours.

Ray is imported at the first call, not when this module is imported.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import ClusterError, ConfigError
from pipeline.executors.ray_connection import check_token, token_error
from pipeline.redact import masked
from pipeline.signals import own_sigterm_handler

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient


T = TypeVar("T")


CONNECT_SECONDS = 10.0

READ_SECONDS = 60.0
"""Seconds to wait for an answer. Ray's own client has no limit."""


_API_ADDRESS = "RAY_API_SERVER_ADDRESS"

_ENVIRONMENT = threading.Lock()


class UnreachableError(ClusterError):
    """The cluster does not answer now; a later attempt may succeed."""


class Jobs:
    """The jobs of one cluster.

    Args:
        address: http(s)://host:8265 (the dashboard), ray://host:10001, or host:port of the
            dashboard or of the control service. None: RAY_API_SERVER_ADDRESS or RAY_ADDRESS.

    Raises:
        ConfigError: there is no address.
        UnreachableError: nothing answers at the address.
        ClusterError: the answer is not from a Ray cluster, or the token is missing or wrong.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = _find_address(address)
        check_token(f"Ray cluster {masked(self.address)}")
        self._client: JobSubmissionClient = self._guard(lambda: _client(self.address))
        self.dashboard: str = self._client.get_address()

    def page(self, submission_id: str) -> str:
        """Return the URL of a job's page in the dashboard."""
        return f"{masked(self.dashboard)}/#/jobs/{submission_id}"

    def submit(self, submission_id: str, **parts: Any) -> bool:
        """Start a job; return False if the cluster already has a job with this id.

        Args:
            submission_id: id of the new job.
            parts: arguments of Ray's `submit_job`: entrypoint, runtime_env, metadata.

        Raises:
            ConfigError: Ray cannot use the runtime environment.
            ClusterError: the cluster does not answer, or refuses the job.
        """
        try:
            self._guard(lambda: self._submit(submission_id, parts))
        except UnreachableError:
            raise
        except ClusterError as error:
            if "already exists" in error.found:
                return False
            raise
        return True

    def _submit(self, submission_id: str, parts: Mapping[str, Any]) -> None:
        try:
            self._client.submit_job(submission_id=submission_id, **parts)
        except (ValueError, TypeError) as error:
            if isinstance(error, OSError):  # an error of requests about the answer
                raise
            raise ConfigError(
                where="runtime environment",
                found=_first_line(str(error)),
                expected="a runtime environment that Ray can use",
                remedy="Check --working-dir and --runtime-env.",
            ) from None

    def all(self) -> list[JobDetails]:
        """Return all submitted jobs of this cluster, including those that have ended."""
        return [job for job in self._guard(self._client.list_jobs) if job.submission_id]

    def info(self, submission_id: str) -> JobDetails | None:
        """Return the details of a job; None if the cluster has no such job."""
        try:
            return self._guard(lambda: self._client.get_job_info(submission_id))
        except ClusterError as error:
            if "does not exist" in error.found:
                return None
            raise

    def stop(self, submission_id: str) -> bool:
        """Send SIGTERM to a job without waiting for its end; return whether the job was running."""
        return self._guard(lambda: self._client.stop_job(submission_id))

    def tail(self, submission_id: str) -> Any:
        """Return Ray's asynchronous iterator over a job's log, from the first character."""
        return self._client.tail_job_logs(submission_id)

    def _guard(self, action: Callable[[], T]) -> T:
        """Call an action; turn the errors of Ray and requests into a ClusterError."""
        import requests
        from ray.exceptions import AuthenticationError, RpcError

        where = f"Ray cluster {masked(self.address)}"
        try:
            return action()
        except AuthenticationError as error:
            raise _wrong_token(where, str(error)) from None
        except requests.exceptions.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            raise _refused(where, status, str(error)) from None
        except (ValueError, KeyError) as error:  # before OSError: errors of requests are both
            raise _not_a_cluster(where, error) from None
        except (OSError, RpcError) as error:
            raise _unreachable(where, error) from None
        except RuntimeError as error:
            answer = re.search(r"status code (\d+): (.*)", str(error), re.DOTALL)
            if answer is None:
                raise _not_a_cluster(where, error) from None
            raise _refused(where, int(answer[1]), answer[2]) from None


def retry_unreachable(action: Callable[[], T], seconds: float) -> T:
    """Return the result of an action; repeat it while the cluster does not answer.

    Args:
        action: function that calls the cluster.
        seconds: time after which an `UnreachableError` is raised.

    Raises:
        UnreachableError: the cluster did not answer for that time.
        ClusterError: the action raised another error.
    """
    deadline, pause = time.monotonic() + seconds, 0.5
    while True:
        try:
            return action()
        except UnreachableError:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def _find_address(given: str | None) -> str:
    address = given or os.environ.get(_API_ADDRESS) or os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError(
            where="--address",
            found="nothing",
            expected="the address of a Ray cluster",
            remedy="For example --address http://127.0.0.1:8265, or set RAY_ADDRESS.",
        )
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        return address
    # Ray treats every host:port as the control service, and waits long if it is the dashboard.
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(f"Ray cluster {address}", error) from None
    return f"http://{address}" if _speaks_http(address) else address


def _speaks_http(address: str) -> bool:
    import requests

    try:
        requests.get(f"http://{address}/api/version", timeout=CONNECT_SECONDS)
    except (requests.exceptions.RequestException, ValueError):
        return False
    return True


def _client(address: str) -> JobSubmissionClient:
    """Return Ray's client with limits on the time that it waits."""
    for name in ("dashboard_sdk", "job.sdk"):  # they log every request
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    from ray.job_submission import JobSubmissionClient

    class TimeLimitedClient(JobSubmissionClient):
        def _do_request(self, *args: Any, **options: Any) -> Any:
            return super()._do_request(
                *args, **{"timeout": (CONNECT_SECONDS, READ_SECONDS), **options}
            )

    headers = json.loads(os.environ.get("RAY_JOB_HEADERS") or "null")  # as `ray job` does
    with _address_in_environment(address), own_sigterm_handler():
        return TimeLimitedClient(address, headers=headers)


@contextmanager
def _address_in_environment(address: str) -> Iterator[None]:
    """Set Ray's variable for the address: Ray prefers RAY_ADDRESS to its own argument."""
    with _ENVIRONMENT:
        before = os.environ.get(_API_ADDRESS)
        os.environ[_API_ADDRESS] = address
        try:
            yield
        finally:
            if before is None:
                del os.environ[_API_ADDRESS]
            else:
                os.environ[_API_ADDRESS] = before


def _unreachable(where: str, error: BaseException) -> UnreachableError:
    if (
        type(error) is ConnectionError and error.__context__ is not None
    ):  # Ray's error: its cause says more
        error = error.__context__
    return UnreachableError(
        where=where,
        found=f"no answer ({_first_line(str(error)) or type(error).__name__})",
        expected="a running cluster with a dashboard (which serves the Jobs API)",
        remedy="Check --address (usually http://HEAD:8265), and the network to it.",
    )


def _wrong_token(where: str, message: str) -> ClusterError:
    is_missing = "required" in message
    found = "no token was sent" if is_missing else "the token is not the cluster's"
    return token_error(where, found)


def _refused(where: str, status: int, message: str) -> ClusterError:
    # The message may be a traceback of the server: its last line names the error.
    lines = [line.strip() for line in message.strip().splitlines() if line.strip(" .")]
    found = f"HTTP {status}: {lines[-1] if lines else 'no reason given'}"
    is_busy = status in (429, 502, 503, 504)
    if is_busy or "No available agent" in message or "head node agent" in message:
        return UnreachableError(where=where, found=found, expected="an answer", remedy="Try again.")
    return ClusterError(
        where=where, found=found, expected="an answer", remedy="See the logs of the head node."
    )


def _not_a_cluster(where: str, error: Exception) -> ClusterError:
    return ClusterError(
        where=where,
        found=f"no usable answer ({_first_line(str(error)) or type(error).__name__})",
        expected="the dashboard of a Ray cluster with a compatible version of Ray",
        remedy="Check --address (usually http://HEAD:8265).",
    )


def _first_line(text: str) -> str:
    return masked(next((line.strip() for line in text.splitlines() if line.strip()), ""))
