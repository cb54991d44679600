"""Whether a Ray head answers at an address: `ray.init` would wait for it for ever. Needs no Ray."""

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
"""A head that is being started is waited for so long."""


_TRY_SECONDS = 5.0

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""How a client of HTTP/2, which gRPC is, begins: RFC 9113, section 3.4, with empty settings."""

_SETTINGS = 4

_FRAME_TYPE = 3


def check_reachable(address: str | None, patience: float = PATIENCE_SECONDS) -> None:
    """Refuse an address at which no Ray head answers.

    Args:
        address: host:port. Others are Ray's to judge: auto, local, ray://…, or none.
        patience: seconds that a head may still take.

    Raises:
        ClusterError: nothing answers, or something else does.
    """
    if address is None or "://" in address or ":" not in address:
        return
    try:
        place = urlsplit(f"//{address}")
        host, port = place.hostname or "", place.port or 0
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
        raise _unreachable(address, "something answers there that is no Ray head")


def _speaks_grpc(host: str, port: int) -> bool:
    with socket.create_connection((host, port), _TRY_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("0", "false"):  # which Ray is left to judge
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
        where=f"ray {address}", found=found, expected="the head of a Ray cluster (port 6379, where ray start says none)",
        remedy="Check --address and the network; http://HOST:8265 is for fcnseg submit and doctor.",
    )  # fmt: skip


_OBJECT_STORE_BYTES = 512 * 2**20
"""Of an embedded Ray. A few chunks in flight fit; the default would take 30 % of the memory."""


_STARTS = 3
"""Of an embedded Ray: on a busy machine the first may be too slow for Ray."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A Ray to work on: the caller's, the surrounding job's, the one at the address, or a new one.

    Raises:
        ClusterError: it cannot be reached, or does not start.
    """
    import ray

    if ray.is_initialized():  # the caller's Ray (a test session, a notebook): left as it is
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    # Ray's core prints an error about its own actor arguments (ray#53727) at every start.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address or inside_job:
        check_reachable(address)
        check_token(f"ray {address or 'auto'}")
        options["address"] = address or "auto"
    else:
        # Ray warns that an embedded cluster has a token.
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

    for left in reversed(range(_STARTS)):
        try:
            with own_sigterm_handler():  # Ray's would skip the release of the lease
                ray.init(**options)
            return
        except Exception as error:
            # Ray raises a bare one where a node is not there in time; what it had begun ends with
            # this process.
            too_slow = type(error) is Exception and options["address"] == "local"
            if not too_slow or not left:
                raise _not_connected(options["address"], error) from error
            log.warning("Ray did not start within its 30 s; tried again")


def _not_connected(address: str, error: Exception) -> ClusterError:
    where, found = f"ray {address}", " ".join(str(error).split())
    if address == "local":
        return ClusterError(
            where=where,
            found=found,
            expected="an embedded Ray",
            remedy="Try again: Ray gives its processes 30 s to start; a busy machine may need longer.",
        )
    return ClusterError(
        where=where,
        found=found,
        expected="a reachable Ray cluster of the same versions",
        remedy="Check --address (and RAY_AUTH_TOKEN for a cluster with tokens).",
    )


_TOKEN = (
    "the token of the cluster (`ray get-auth-token` on its head)",
    "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.",
)


def check_token(where: str) -> None:
    """Refuse to speak to a cluster with tokens without one: Ray's core would abort the process.

    Raises:
        ClusterError: RAY_AUTH_MODE says token, and there is none.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        found = path.read_text().strip()
    except OSError:
        found = ""
    if not found:
        raise ClusterError(where, f"no token: {path} is missing or empty", *_TOKEN)
