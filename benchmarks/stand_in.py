"""Replace S3 with a server for the few requests of a driver, each answered as slowly as by S3.

The server keeps objects in memory and counts requests by verb and folder. With a cap, it answers
503 SlowDown to all requests above a number of writes or reads per second in one folder, as S3 does
for a prefix that it has not split. It checks no signature. It is a separate process, so that its
CPU time is not counted with the driver's:

    with StandIn.started(latency=(0.03, 0.05), cap=(3500, 5500)) as server: server.url, server.env
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from aiohttp import web

BUCKET = "bucket"
PAGE = 1000
WRITES = ("PUT", "POST", "DELETE")
_MOMENT = "2026-01-01T00:00:00.000Z"
_HTTP_MOMENT = "Thu, 01 Jan 2026 00:00:00 GMT"


class _Cap:
    """So many requests a second in each folder, and for writes and reads apart."""

    def __init__(self, writes: float, reads: float) -> None:
        self.rates = {True: writes, False: reads}
        self._left: dict[tuple[str, bool], tuple[float, float]] = {}

    def takes(self, folder: str, is_write: bool) -> bool:
        """Whether one more request is within the rate; a second's worth may come at once."""
        rate, now = self.rates[is_write], time.monotonic()
        left, last = self._left.get((folder, is_write), (rate, now))
        left = min(rate, left + (now - last) * rate)
        self._left[folder, is_write] = (left - 1 if left >= 1 else left, now)
        return left >= 1


class _Server:
    def __init__(self, latency: tuple[float, float], cap: _Cap | None) -> None:
        self.latency = latency
        self.cap = cap
        self.objects: dict[str, bytes] = {}
        self.counts: Counter[str] = Counter()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """One request."""
        if request.path == "/counts":
            counts = {**self.counts, "cpu_seconds": time.process_time()}
            return web.json_response(counts)
        if "Expect" in request.headers:  # botocore sends no body before it is told to
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = await request.content.read()  # `request.read` takes 1 MiB at most
        await asyncio.sleep(random.uniform(*self.latency))
        key = request.path.removeprefix(f"/{BUCKET}").lstrip("/")
        place = request.query.get("prefix", key) if not key else key
        folder = f"{place.split('/')[1]}/" if place.count("/") > 1 else "(top)"
        if self.cap and not self.cap.takes(folder, request.method in WRITES):
            self.counts["503"] += 1
            return _error(503, "SlowDown")
        verb = "LIST" if not key else request.method
        self.counts[f"{verb} {folder}"] += 1
        return self._do(verb, key, body, request)

    def _do(self, verb: str, key: str, body: bytes, request: web.BaseRequest) -> web.Response:
        if verb == "LIST":
            return self._list(request)
        if verb == "PUT":
            return self._put(key, body, request)
        if verb == "DELETE":
            self.objects.pop(key, None)
            return web.Response(status=204)
        if key not in self.objects:
            return _error(404, "NoSuchKey")
        return _found(self.objects[key], request)

    def _put(self, key: str, body: bytes, request: web.BaseRequest) -> web.Response:
        there = self.objects.get(key)
        if request.headers.get("If-None-Match") == "*" and there is not None:
            return _error(412, "PreconditionFailed")
        wanted = request.headers.get("If-Match")
        if wanted is not None and (there is None or wanted.strip('"') != _tag(there)):
            return _error(404, "NoSuchKey") if there is None else _error(412, "PreconditionFailed")
        self.objects[key] = body
        return web.Response(headers={"ETag": f'"{_tag(body)}"'})

    def _list(self, request: web.BaseRequest) -> web.Response:
        if "uploads" in request.query:
            return _xml("<ListMultipartUploadsResult></ListMultipartUploadsResult>")
        prefix, after = (request.query.get(n, "") for n in ("prefix", "continuation-token"))
        keys = sorted(k for k in self.objects if k.startswith(prefix) and k > after)
        rows = "".join(
            f"<Contents><Key>{escape(k)}</Key><Size>{len(self.objects[k])}</Size>"
            f"<ETag>&quot;{_tag(self.objects[k])}&quot;</ETag>"
            f"<LastModified>{_MOMENT}</LastModified></Contents>"
            for k in keys[:PAGE]
        )
        more = ""
        if is_cut := len(keys) > PAGE:
            token = escape(keys[PAGE - 1])
            more = f"<NextContinuationToken>{token}</NextContinuationToken>"
        return _xml(
            f"<ListBucketResult><IsTruncated>{'true' if is_cut else 'false'}</IsTruncated>"
            f"{more}{rows}</ListBucketResult>"
        )


def _tag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def _found(data: bytes, request: web.BaseRequest) -> web.Response:
    headers = {"ETag": f'"{_tag(data)}"', "Last-Modified": _HTTP_MOMENT}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not wanted:
        return web.Response(body=data, headers=headers)
    start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
    if start >= len(data):
        return _error(416, "InvalidRange")
    headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
    return web.Response(status=206, body=data[start : end + 1], headers=headers)


def _error(status: int, code: str) -> web.Response:
    return _xml(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>", status)


def _xml(text: str, status: int = 200) -> web.Response:
    return web.Response(status=status, text=text, content_type="application/xml")


@dataclass(frozen=True)
class StandIn:
    """A server that runs: its address, and how a store reaches a folder in it."""

    address: str

    url = f"s3://{BUCKET}/out"

    @property
    def env(self) -> dict[str, str]:
        """What a client finds it by."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "stand-in",
            "AWS_SECRET_ACCESS_KEY": "stand-in",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def counts(self) -> dict[str, float]:
        """Requests by verb and folder, refusals (`503`), and the server's own CPU seconds."""
        with urllib.request.urlopen(f"{self.address}/counts") as answer:
            return json.load(answer)  # type: ignore[no-any-return]

    @classmethod
    @contextlib.contextmanager
    def started(
        cls, latency: tuple[float, float], cap: tuple[float, float] | None = None
    ) -> Iterator[StandIn]:
        """A server in a process of its own, gone afterwards.

        Args:
            latency: the shortest and the longest time until an answer, seconds.
            cap: writes and reads a second in one folder; None for no limit.
        """
        command = [sys.executable, "-m", "benchmarks.stand_in", "--latency", *map(str, latency)]
        command += ["--cap", *map(str, cap)] if cap else []
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            yield cls(process.stdout.readline().strip())
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


async def _serve(server: _Server) -> None:
    runner: Any = web.ServerRunner(web.Server(server.answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    while os.getppid() != 1:  # whoever started it is gone
        await asyncio.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, nargs=2, default=(0.03, 0.05))
    parser.add_argument("--cap", type=float, nargs=2, metavar=("WRITES", "READS"))
    arguments = parser.parse_args()
    cap = _Cap(*arguments.cap) if arguments.cap else None
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(_Server(tuple(arguments.latency), cap)))


if __name__ == "__main__":
    main()
