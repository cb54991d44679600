"""A missing Ray head is reported within seconds; `ray.init` would wait for ever."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.errors import ClusterError
from pipeline.executors import ray_connection
from pipeline.executors.ray_connection import check_reachable
from tests.support.ray_head import ray_head

Fcnseg = Callable[..., tuple[int, str, str]]


@pytest.fixture
def closed_address() -> Iterator[str]:
    """An address at which no process listens; it is bound, so no other process can take it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def dashboard() -> Iterator[str]:
    """A server that speaks HTTP/1.1, as a dashboard does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("address", [None, "auto", "local", "ray://nowhere:1", "http://x:8265"])
def test_addresses_other_than_host_and_port_are_left_to_ray(address: str | None) -> None:
    check_reachable(address)


def test_a_head_is_waited_for_a_while(closed_address: str) -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError, match=rf"ray {closed_address}: Connection refused; the head"):
        check_reachable(closed_address, patience=0.3)
    assert time.monotonic() - started >= 0.3


def test_a_head_that_starts_during_the_wait_is_found() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            time.sleep(0.3)
            server.listen()
            connection, _ = server.accept()
            with connection:
                while len(connection.recv(64)) < 24:
                    pass
                connection.sendall(bytes(3) + b"\x04" + bytes(5))  # settings

        thread = threading.Thread(target=serve)
        thread.start()
        check_reachable(address)
        thread.join()


def test_another_service_is_not_a_head(dashboard: str) -> None:
    with pytest.raises(ClusterError, match="another service answers there, not a Ray head"):
        check_reachable(dashboard)


@pytest.mark.parametrize("address", ["[::1:6379", "host:port", "h:99999"])
def test_invalid_addresses_are_refused(address: str) -> None:
    with pytest.raises(ClusterError):
        check_reachable(address, patience=0)


def test_commands_report_it_before_anything_is_written(
    closed_address: str,
    shards: Path,
    weights: Path,
    tmp_path: Path,
    fcnseg: Fcnseg,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_connection.check_reachable, "__defaults__", (0.1,))
    out = tmp_path / "out"
    words = (shards, out, "--weights", weights, "--executor", "ray", "--address", closed_address)
    code, _, err = fcnseg("run", *words)
    assert code == 1 and f"ray {closed_address}: Connection refused" in err
    assert not out.exists()
    code, text, err = fcnseg("doctor", "--address", closed_address)
    assert (
        code == 1 and f"ray {closed_address}" in text + err and "Connection refused" in text + err
    )


@pytest.mark.ray
def test_a_head_is_found(tmp_path: Path) -> None:
    with ray_head() as head:
        check_reachable(head.address)
