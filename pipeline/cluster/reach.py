"""Whether a Ray head answers at an address: `ray.init` would wait for it for ever. Needs no Ray."""

from __future__ import annotations

import os
import socket
import time
from urllib.parse import urlsplit

from pipeline.errors import ClusterError

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
        f"ray {address}", found, "the head of a Ray cluster (port 6379, where ray start says none)",
        "Check --address and the network; http://HOST:8265 is for fcnseg submit and doctor.",
    )  # fmt: skip
