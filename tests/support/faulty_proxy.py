"""An S3 store on a bad day: a small HTTP proxy that breaks requests, by chance or on command.

From Python, in the process of a test:

    with FaultyProxy(server.url, Faults(lose=0.05, throttle=0.05), seed=1) as proxy:
        proxy.add(Rule("stall", "PUT", "*/_commits/*", skip=2))     # the third commit hangs
        ...                                                          # clients speak to proxy.url
        proxy.counters["lose"], proxy.counters["requests"]

As a process of its own, which prints one line of JSON with `url` and `pid`, and ends with SIGTERM
or when its stdin does, so that it never outlives who started it:

    python -m tests.support.faulty_proxy http://127.0.0.1:7480 --seed 1 --lose 0.05 \\
        --rule stall:PUT:*:2

and is then asked and told through its own address:

    GET    /_proxy/counters   counters as JSON
    POST   /_proxy/rules      one more rule, as a JSON object of `Rule`'s fields
    DELETE /_proxy/rules      forget all rules, set all rates to 0, let go of what stalls

What can go wrong (`KINDS`; "acted" means that the server got the whole request):

    drop      not acted; the connection closes without an answer
    reset     not acted; the connection is reset
    throttle  not acted; 503 SlowDown
    error     not acted; 500 InternalError
    expire    not acted; 400 ExpiredToken
    stall     not acted; nothing comes until `clear` or the client goes
    lose      acted; the connection closes without an answer
    stall-after  acted; nothing comes until `clear` or the client goes
    truncate  acted; half of the answer's body comes, then the connection closes
    delay     acted; the answer comes late

By chance: each request, told by its method, its address and how many like it came before, has its
own random number of the seed, so that the order in which threads ask changes nothing. S3 signatures
cover the Host header: it is passed on as it came.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import http.client
import json
import os
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

WRITES = "PUT,POST,DELETE"
_XML = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>{}</Message></Error>'
_ANSWERS = {
    "throttle": (503, "SlowDown", "Please reduce your request rate."),
    "error": (500, "InternalError", "We encountered an internal error."),
    "expire": (400, "ExpiredToken", "The provided token has expired."),
}
_TURN_SECONDS = 0.05


@dataclass(frozen=True)
class Faults:
    """How often each kind of fault strikes, by chance: shares of all requests, together at most 1.

    `delay_seconds` is how late a delayed answer is.
    """

    drop: float = 0.0
    reset: float = 0.0
    throttle: float = 0.0
    error: float = 0.0
    lose: float = 0.0
    truncate: float = 0.0
    delay: float = 0.0
    delay_seconds: float = 0.2

    def pick(self, number: float) -> str | None:
        """The fault of a random number in [0, 1)."""
        for kind in ("drop", "reset", "throttle", "error", "lose", "truncate", "delay"):
            number -= getattr(self, kind)
            if number < 0:
                return kind
        return None

    @classmethod
    def of_each(cls, share: float) -> Faults:
        """All kinds, alike, so that this share of the requests is hit."""
        names = [f.name for f in fields(cls) if f.name != "delay_seconds"]
        return cls(**{name: share / len(names) for name in names})


KINDS = (
    "drop", "reset", "throttle", "error", "expire", "stall", "lose", "stall-after", "truncate",
    "delay",
)  # fmt: skip


@dataclass
class Rule:
    """A fault on command.

    Attributes:
        kind: one of `KINDS`.
        methods: comma-separated HTTP methods, or "*".
        path: glob over the decoded path (`/bucket/key`), as `fnmatch` has it.
        skip: so many matching requests pass first.
        times: then so many are hit; None: all.
        seconds: of a delay.
        with_token: only requests with a session token.
    """

    kind: str
    methods: str = "*"
    path: str = "*"
    skip: int = 0
    times: int | None = 1
    seconds: float = 0.5
    with_token: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is none of {', '.join(KINDS)}")

    @classmethod
    def parse(cls, text: str) -> Rule:
        """`KIND[:METHODS[:PATH[:SKIP[:TIMES]]]]`; TIMES may be `all`."""
        kind, *rest = text.split(":")
        values: dict[str, Any] = dict(zip(("methods", "path", "skip", "times"), rest, strict=False))
        if "skip" in values:
            values["skip"] = int(values["skip"])
        if "times" in values:
            values["times"] = None if values["times"] == "all" else int(values["times"])
        return cls(kind, **values)

    def takes(self, method: str, path: str, token: bool) -> bool:
        """Whether the request is hit; counts it."""
        if self.methods != "*" and method not in self.methods.split(","):
            return False
        if (self.with_token and not token) or not fnmatch.fnmatchcase(path, self.path):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times == 0:
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class FaultyProxy:
    """The proxy, as a context manager: serves on its own threads.

    Attributes:
        upstream: the store's address.
        faults: by chance.
        seed: of the chance.
        port: 0 for any.
        host: address to listen on.
        counters: `requests`, `writes` (PUT, POST, DELETE that were passed on) and one per kind of
            fault that struck; `stalled`: how many requests hang now.
    """

    upstream: str
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    port: int = 0
    host: str = "127.0.0.1"
    counters: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()
        self._release = threading.Event()
        self._server = _Server((self.host, self.port), _Handler)
        self._server.proxy = self
        self.port = int(self._server.server_address[1])
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(_TURN_SECONDS,), daemon=True)

    @property
    def url(self) -> str:
        """What clients take for the store."""
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, rule: Rule) -> None:
        """One more fault on command; earlier rules come first."""
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        """No more faults; what stalls is closed."""
        with self._lock:
            self._rules.clear()
            self.faults = Faults()
            release, self._release = self._release, threading.Event()
        release.set()

    def snapshot(self) -> dict[str, int]:
        """The counters at this moment."""
        with self._lock:
            return dict(self.counters)

    def count(self, name: str, change: int = 1) -> None:
        """Count something."""
        with self._lock:
            self.counters[name] += change

    def decide(self, method: str, target: str, token: bool) -> tuple[str | None, float]:
        """What goes wrong with a request, and for how long."""
        path = unquote(urlsplit(target).path)
        with self._lock:
            self.counters["requests"] += 1
            for rule in self._rules:
                if rule.takes(method, path, token):
                    self.counters[rule.kind] += 1
                    return rule.kind, rule.seconds
            request = f"{self.seed} {method} {target} "
            self._seen[request] += 1
            digest = hashlib.sha256(f"{request}{self._seen[request]}".encode()).digest()
            kind = self.faults.pick(int.from_bytes(digest[:7]) / 2**56)
            if kind is not None:
                self.counters[kind] += 1
            return kind, self.faults.delay_seconds

    def hang(self, connection: socket.socket) -> None:
        """Wait until `clear`, or until the client has gone."""
        release = self._release
        self.count("stalled")
        connection.settimeout(_TURN_SECONDS)
        while not release.is_set():
            try:
                if not connection.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        self.count("stalled", -1)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultyProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that break off are what this is about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def parse_request(self) -> bool:
        """Every method is handled alike."""
        parsed = super().parse_request()
        if parsed:
            setattr(self, f"do_{self.command}", self._handle)
        return parsed

    def _handle(self) -> None:
        body = self._body()
        if self.path.startswith("/_proxy/"):
            self._control(body)
            return
        proxy = self.server.proxy
        token = "x-amz-security-token" in self.headers
        kind, seconds = proxy.decide(self.command, self.path, token)
        if kind in _ANSWERS:
            self._answer(*_ANSWERS[kind])
        elif kind in ("drop", "reset", "stall"):
            self._break(kind)
        else:
            if self.command in WRITES:
                proxy.count("writes")
            self._pass_on(body, kind, seconds)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _pass_on(self, body: bytes, kind: str | None, seconds: float) -> None:
        address = urlsplit(self.server.proxy.upstream)
        upstream = http.client.HTTPConnection(str(address.hostname), address.port, timeout=110)
        try:
            upstream.putrequest(self.command, self.path, True, True)
            hop = ("connection", "transfer-encoding", "expect", "content-length")
            for name, value in self.headers.items():
                if name.lower() not in hop:
                    upstream.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        if kind in ("lose", "stall-after"):
            self._break(kind)
            return
        if kind == "delay":
            time.sleep(seconds)
        self._return(answer, data, truncated=kind == "truncate")

    def _return(self, answer: http.client.HTTPResponse, data: bytes, truncated: bool) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        # To HEAD and 304 the length is told though nothing comes.
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
        if length is not None and answer.status != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if truncated else data)
        self.close_connection |= truncated

    def _break(self, kind: str) -> None:
        if kind.startswith("stall"):
            self.server.proxy.hang(self.connection)
        if kind == "reset":  # closed at once and without lingering, the kernel sends RST, not FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        self.close_connection = True

    def _answer(self, status: int, code: str, message: str) -> None:
        data = b"" if self.command == "HEAD" else _XML.format(code, message).encode()
        self._send(status, "application/xml", data)

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _control(self, body: bytes) -> None:
        proxy = self.server.proxy
        if self.command == "POST":
            proxy.add(Rule(**json.loads(body)))
        elif self.command == "DELETE":
            proxy.clear()
        self._send(200, "application/json", json.dumps(proxy.snapshot()).encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description="A faulty proxy in front of an S3 server.")
    parser.add_argument("upstream")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rule", action="append", default=[], help="KIND:METHODS:PATH:SKIP:TIMES")
    for name, value in asdict(Faults()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value)
    given = parser.parse_args(arguments)
    faults = Faults(**{name: getattr(given, name) for name in asdict(Faults())})
    with FaultyProxy(given.upstream, faults, given.seed, given.port) as proxy:
        for rule in given.rule:
            proxy.add(Rule.parse(rule))
        print(json.dumps({"url": proxy.url, "pid": os.getpid()}), flush=True)
        with suppress(KeyboardInterrupt):
            sys.stdin.read()


if __name__ == "__main__":
    main()
