"""The Jobs API of a Ray cluster: where it is, who may ask, and what its errors mean to a person.

Ray itself is imported at the first call: importing this module costs nothing.
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
from pipeline.executors.ray_connection import _TOKEN, check_token
from pipeline.redact import masked
from pipeline.signals import own_sigterm_handler

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient


T = TypeVar("T")


CONNECT_SECONDS = 10.0

READ_SECONDS = 60.0
"""Ray's client waits for ever by itself."""


_API_ADDRESS = "RAY_API_SERVER_ADDRESS"

_ENVIRONMENT = threading.Lock()


class UnreachableError(ClusterError):
    """The cluster does not answer now; it may later."""


class Jobs:
    """The jobs of one cluster.

    Args:
        address: http(s)://host:8265 (the dashboard), ray://host:10001, or host:port of either the
            dashboard or the control service; None takes RAY_API_SERVER_ADDRESS or RAY_ADDRESS.

    Raises:
        ConfigError: no address.
        UnreachableError: nobody answers there.
        ClusterError: somebody answers who is no Ray cluster, or who wants another token.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = _address(address)
        check_token(f"Ray cluster {masked(self.address)}")
        self._client: JobSubmissionClient = self._guard(lambda: _client(self.address))
        self.dashboard: str = self._client.get_address()

    def page(self, submission_id: str) -> str:
        """URL of a job's page in the dashboard."""
        return f"{masked(self.dashboard)}/#/jobs/{submission_id}"

    def submit(self, submission_id: str, **parts: Any) -> bool:
        """Start a job, unless there is one of this id already; whether it was started.

        Args:
            submission_id: of the new job.
            parts: entrypoint, runtime_env, metadata, as Ray's `submit_job` takes them.

        Raises:
            ConfigError: Ray cannot use the runtime environment.
            ClusterError: as for the class, or the cluster refuses the job.
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
            if isinstance(error, OSError):  # requests' own, about an answer
                raise
            raise ConfigError(
                where="runtime environment",
                found=_first_line(str(error)),
                expected="what Ray can use",
                remedy="Check --working-dir and --runtime-env.",
            ) from None

    def all(self) -> list[JobDetails]:
        """Every job that was submitted to this cluster, ended ones too."""
        return [job for job in self._guard(self._client.list_jobs) if job.submission_id]

    def info(self, submission_id: str) -> JobDetails | None:
        """What the cluster knows of a job; None if it knows no such job."""
        try:
            return self._guard(lambda: self._client.get_job_info(submission_id))
        except ClusterError as error:
            if "does not exist" in error.found:
                return None
            raise

    def stop(self, submission_id: str) -> bool:
        """Ask a job to end (SIGTERM); whether it was running. Does not wait."""
        return self._guard(lambda: self._client.stop_job(submission_id))

    def tail(self, submission_id: str) -> Any:
        """Ray's asynchronous iterator over a job's log, from its first character on."""
        return self._client.tail_job_logs(submission_id)

    def _guard(self, action: Callable[[], T]) -> T:
        """An answer of the cluster, or an error for people."""
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
        except (ValueError, KeyError) as error:  # before requests' own, which are OSErrors too
            raise _no_cluster(where, error) from None
        except (OSError, RpcError) as error:
            raise _unreachable(where, error) from None
        except RuntimeError as error:
            found = re.search(r"status code (\d+): (.*)", str(error), re.DOTALL)
            if found is None:
                raise _no_cluster(where, error) from None
            raise _refused(where, int(found[1]), found[2]) from None


def patiently(action: Callable[[], T], seconds: float) -> T:
    """The result of an action that is tried again while the cluster does not answer.

    Raises:
        UnreachableError: it did not for that long.
        ClusterError: what the action raised otherwise.
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


def _address(named: str | None) -> str:
    address = named or os.environ.get(_API_ADDRESS) or os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError(
            where="--address",
            found="nothing",
            expected="the Ray cluster that is to do the work",
            remedy="For example --address http://127.0.0.1:8265, or set RAY_ADDRESS.",
        )
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        return address
    # Ray takes every host:port for a control service's, and waits long for a dashboard to be one.
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
    """Ray's client, with bounds on its waiting."""
    for name in ("dashboard_sdk", "job.sdk"):  # they log what is no news
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    from ray.job_submission import JobSubmissionClient

    class Bounded(JobSubmissionClient):
        def _do_request(self, *args: Any, **options: Any) -> Any:
            return super()._do_request(
                *args, **{"timeout": (CONNECT_SECONDS, READ_SECONDS), **options}
            )

    headers = json.loads(os.environ.get("RAY_JOB_HEADERS") or "null")  # as Ray's own command
    with _told(address), own_sigterm_handler():
        return Bounded(address, headers=headers)


@contextmanager
def _told(address: str) -> Iterator[None]:
    """What was asked for holds: by itself Ray lets RAY_ADDRESS win over its argument."""
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
    if type(error) is ConnectionError and error.__context__ is not None:  # Ray's, which says less
        error = error.__context__
    return UnreachableError(
        where=where,
        found=f"no answer ({_first_line(str(error)) or type(error).__name__})",
        expected="a running cluster with a dashboard, which serves the Jobs API",
        remedy="Check --address (usually http://HEAD:8265), and that this machine may reach it.",
    )


def _wrong_token(where: str, said: str) -> ClusterError:
    missing = "required" in said
    found = "no token was sent" if missing else "the token is not the cluster's"
    return ClusterError(where, found, *_TOKEN)


def _refused(where: str, status: int, said: str) -> ClusterError:
    # A traceback of the server: its last line says what it is about.
    lines = [line.strip() for line in said.strip().splitlines() if line.strip(" .")]
    found = f"HTTP {status}: {lines[-1] if lines else 'no reason given'}"
    if status in (429, 502, 503, 504) or "No available agent" in said or "head node agent" in said:
        return UnreachableError(where=where, found=found, expected="an answer", remedy="Try again.")
    return ClusterError(
        where=where, found=found, expected="an answer", remedy="The logs of the head say more."
    )


def _no_cluster(where: str, error: Exception) -> ClusterError:
    return ClusterError(
        where=where,
        found=f"no usable answer ({_first_line(str(error)) or type(error).__name__})",
        expected="the dashboard of a Ray cluster of a version this one can speak to",
        remedy="Check --address; usually it is http://HEAD:8265.",
    )


def _first_line(text: str) -> str:
    return masked(next((line.strip() for line in text.splitlines() if line.strip()), ""))
