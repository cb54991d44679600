"""Connect to Ray: check that the address answers and that a token is set, then call `ray.init`.

The checks come first because `ray.init` waits for ever for an address that does not answer, and
aborts the process without a token. Importing this module does not import Ray.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import ClusterError
from pipeline.signals import own_sigterm_handler

log = logging.getLogger("fcnseg")


PATIENCE_SECONDS = 20.0
"""Seconds to wait for a head node that is just starting."""


_TRY_SECONDS = 5.0

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""First bytes of an HTTP/2 client with empty settings (RFC 9113, section 3.4). gRPC is HTTP/2."""

_SETTINGS = 4
"""Frame type of the settings, which every HTTP/2 server sends first."""


_FRAME_TYPE = 3
"""Position of the type byte in an HTTP/2 frame."""


_OBJECT_STORE_BYTES = 512 * 2**20
"""Object store of an embedded Ray: holds a few chunks. Ray's default is 30 % of the memory."""


_STARTS = 3
"""Attempts to start an embedded Ray: on a busy machine the first may exceed Ray's time limit."""


_EXPECTED_TOKEN = "the token of the cluster (`ray get-auth-token` on its head)"

_TOKEN_REMEDY = "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."


def check_reachable(address: str | None, patience: float = PATIENCE_SECONDS) -> None:
    """Raise an error if no Ray head answers at an address.

    Args:
        address: "host:port". Other forms (auto, local, ray://…, None) are left to Ray.
        patience: seconds to wait for the head.

    Raises:
        ClusterError: nothing answers, or the answer is not from a Ray head.
    """
    if address is None or "://" in address or ":" not in address:
        return
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname or "", parts.port or 0
    except ValueError as error:
        raise _unreachable(address, str(error)) from error
    deadline = time.monotonic() + patience
    while True:
        try:
            is_head = _speaks_grpc(host, port)
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                raise _unreachable(address, f"{error.strerror or error}") from error
        time.sleep(min(1.0, patience))
    if not is_head:
        raise _unreachable(address, "another service answers there, not a Ray head")


def _speaks_grpc(host: str, port: int) -> bool:
    with socket.create_connection((host, port), _TRY_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("0", "false"):  # left to Ray
            return True
        connection.sendall(_PREFACE)
        answer = b""
        while len(answer) <= _FRAME_TYPE:
            part = connection.recv(64)
            if not part:
                return False
            answer += part
    return answer[_FRAME_TYPE] == _SETTINGS


def _unreachable(address: str, found: str) -> ClusterError:
    return ClusterError(
        where=f"ray {address}",
        found=found,
        expected="the head of a Ray cluster (port 6379 by default)",
        remedy="Check --address and the network; http://HOST:8265 is for fcnseg submit and doctor.",
    )


@contextmanager
def connect_ray(address: str | None) -> Iterator[None]:
    """Connect to Ray for the time of a `with` block.

    The first that applies: the Ray that the caller has initialized (left as it is), the cluster at
    `address` or RAY_ADDRESS, the cluster of the surrounding Ray job, a new embedded Ray.

    Args:
        address: address of the cluster, as for `ray.init`.

    Raises:
        ClusterError: the cluster cannot be reached, or Ray does not start.
    """
    import ray

    if ray.is_initialized():  # by a notebook or a test
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    is_inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    # Ray's core prints an error about its own actor arguments (ray#53727) at every start.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address or is_inside_job:
        check_reachable(address)
        check_token(f"ray {address or 'auto'}")
        options["address"] = address or "auto"
    else:
        # Ray warns that an embedded cluster uses a token.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    _init(options)
    try:
        yield
    finally:
        ray.shutdown()


def _init(options: Mapping[str, Any]) -> None:
    import ray

    for starts_left in reversed(range(_STARTS)):
        try:
            with own_sigterm_handler():  # Ray's handler would not release the lease
                ray.init(**options)
            return
        except Exception as error:
            # Ray raises a plain Exception if a node does not start in time. The processes that it
            # has started end with this process.
            is_too_slow = type(error) is Exception and options["address"] == "local"
            if not is_too_slow or not starts_left:
                raise _not_connected(options["address"], error) from error
            log.warning("Ray did not start within its limit of 30 s; trying again")


def _not_connected(address: str, error: Exception) -> ClusterError:
    where, found = f"ray {address}", " ".join(str(error).split())
    if address == "local":
        return ClusterError(
            where=where,
            found=found,
            expected="an embedded Ray that starts",
            remedy="Try again: Ray gives its processes 30 s to start, which may be too short on a "
            "busy machine.",
        )
    return ClusterError(
        where=where,
        found=found,
        expected="a reachable Ray cluster of the same versions",
        remedy="Check --address (and RAY_AUTH_TOKEN for a cluster with tokens).",
    )


def token_error(where: str, found: str) -> ClusterError:
    """Return the error for a missing or wrong token of a cluster."""
    return ClusterError(where=where, found=found, expected=_EXPECTED_TOKEN, remedy=_TOKEN_REMEDY)


def check_token(where: str) -> None:
    """Raise an error if RAY_AUTH_MODE asks for a token and none is set.

    Without this check, Ray's core would abort the process.

    Args:
        where: name of the cluster in the error.

    Raises:
        ClusterError: the token is missing.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        token = path.read_text().strip()
    except OSError:
        token = ""
    if not token:
        raise token_error(where, f"no token: {path} is missing or empty")
