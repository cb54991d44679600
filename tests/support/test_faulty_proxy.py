"""The proxy breaks what it is told to break, in the way it says, and nothing else."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.faulty_proxy import KINDS, Faults, FaultyProxy, Rule

ACTED = {"lose": True, "stall-after": True, "truncate": True, "delay": True}


class Upstream(BaseHTTPRequestHandler):
    """Answers with what it was sent, and remembers it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    seen: list[tuple[str, str, str, bytes]]

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.command, self.path, self.headers["Host"], body))
        answer = b"" if self.command == "HEAD" else b"answer " + body
        self.send_response(200)
        self.send_header("ETag", '"tag"')
        self.send_header("Content-Length", str(len(answer) or 77))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_HEAD = do_DELETE = _any  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[str]:
    Upstream.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def ask(
    proxy: FaultyProxy, method: str, path: str, body: bytes = b"", *, wait: float = 60,
    **headers: str,
) -> str:  # fmt: skip
    """What a client meets that waits so many seconds: status and body, or the kind of failure."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=wait)
    try:
        connection.request(method, path, body, {"Host": "a.name:1", **headers})
        answer = connection.getresponse()
        return f"{answer.status} {answer.read().decode()}"
    except ConnectionResetError as error:
        return "closed" if isinstance(error, http.client.RemoteDisconnected) else "reset"
    except http.client.IncompleteRead as error:
        return f"half {error.partial.decode()}"
    except TimeoutError:
        return "nothing"
    finally:
        connection.close()


def test_without_faults_nothing_changes_on_the_way(upstream: str) -> None:
    with FaultyProxy(upstream) as proxy:
        assert ask(proxy, "PUT", "/b/a%20%C3%A9?x=1", b"body") == "200 answer body"
        assert ask(proxy, "HEAD", "/b/a") == "200 "
        assert ask(proxy, "DELETE", "/b/a") == "200 answer "
    assert Upstream.seen == [
        ("PUT", "/b/a%20%C3%A9?x=1", "a.name:1", b"body"),  # the host is signed
        ("HEAD", "/b/a", "a.name:1", b""),
        ("DELETE", "/b/a", "a.name:1", b""),
    ]
    assert proxy.counters == {"requests": 3, "writes": 2}


@pytest.mark.parametrize(
    ("kind", "met"),
    [
        ("drop", "closed"),
        ("reset", "reset"),
        ("throttle", "503 .*SlowDown"),
        ("error", "500 .*InternalError"),
        ("expire", "400 .*ExpiredToken"),
        ("stall", "nothing"),
        ("lose", "closed"),
        ("stall-after", "nothing"),
        ("truncate", "half answer$"),
        ("delay", "200 answer 123456"),
    ],
)
def test_each_kind_is_what_it_says_and_strikes_once(upstream: str, kind: str, met: str) -> None:
    with FaultyProxy(upstream) as proxy:
        proxy.add(Rule(kind, seconds=0.2))
        started = time.monotonic()
        wait = 0.5 if met == "nothing" else 60
        assert re.match(met, ask(proxy, "PUT", "/b/a", b"123456", wait=wait))
        assert time.monotonic() - started > 0.2 or kind not in ("delay", "stall", "stall-after")
        assert len(Upstream.seen) == ACTED.get(kind, False)
        assert ask(proxy, "PUT", "/b/a", b"123456") == "200 answer 123456"
        assert proxy.counters[kind] == 1
    assert set(ACTED) <= set(KINDS)


def test_a_rule_is_about_methods_paths_tokens_and_turns(upstream: str) -> None:
    with FaultyProxy(upstream) as proxy:
        proxy.add(Rule.parse("error:PUT,DELETE:/b/*é.json:1:2"))
        proxy.add(Rule("throttle", with_token=True, times=None))
        path = "/b/_commits/x%C3%A9.json"
        met = [ask(proxy, "PUT", path)[:3] for _ in range(4)]
        assert met == ["200", "500", "500", "200"]
        assert ask(proxy, "GET", path)[:3] == ask(proxy, "PUT", "/b/y")[:3] == "200"
        token = {"X-Amz-Security-Token": "t"}
        assert [ask(proxy, "GET", "/b/y", **token)[:3] for _ in range(2)] == ["503", "503"]
    with pytest.raises(ValueError, match="'quake' is none of drop"):
        Rule("quake")


def test_chance_is_the_seeds_and_not_the_threads(upstream: str) -> None:
    def strikes(seed: int, reverse: bool = False) -> list[str]:
        with FaultyProxy(upstream, Faults(throttle=0.3), seed) as proxy:
            paths = [f"/b/{n}" for n in range(40)]
            met = {p: ask(proxy, "GET", p)[:3] for p in (paths[::-1] if reverse else paths)}
        return [met[path] for path in paths]

    first = strikes(1)
    assert first == strikes(1, reverse=True) != strikes(2)
    assert 3 <= Counter(first)["503"] <= 24


def test_what_stalls_is_counted_and_let_go(upstream: str) -> None:
    with FaultyProxy(upstream) as proxy:
        proxy.add(Rule("stall", times=None))
        clients = [threading.Thread(target=ask, args=(proxy, "PUT", "/b/a")) for _ in range(3)]
        for client in clients:
            client.start()
        deadline = time.monotonic() + 50
        while proxy.snapshot().get("stalled") != 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        proxy.clear()
        for client in clients:
            client.join()
        while proxy.snapshot()["stalled"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert ask(proxy, "PUT", "/b/a") == "200 answer "


def test_it_runs_as_a_process_of_its_own(upstream: str) -> None:
    command = [sys.executable, "-m", "tests.support.faulty_proxy", upstream, "--rule", "error:PUT"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        told = json.loads(process.stdout.readline())
        assert told["pid"] == process.pid

        def call(method: str, path: str, body: bytes = b"") -> bytes:
            request = urllib.request.Request(told["url"] + path, body or None, method=method)
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bytes(answer.read())

        with pytest.raises(urllib.error.HTTPError, match="500") as caught:
            call("PUT", "/b/a", b"1")
        caught.value.close()
        call("POST", "/_proxy/rules", json.dumps({"kind": "throttle", "times": None}).encode())
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            call("GET", "/b/a")
        caught.value.close()
        call("DELETE", "/_proxy/rules")
        assert call("GET", "/b/a") == b"answer "
        counters = json.loads(call("GET", "/_proxy/counters"))
        assert counters == {"requests": 3, "error": 1, "throttle": 1}
        process.stdin.close()  # as when who started it dies
        assert process.wait(10) == 0
