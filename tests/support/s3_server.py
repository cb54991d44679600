"""A real S3 server on loopback for tests: Ceph's RADOS gateway, one monitor, one store in memory.

From Python: `with S3Server.started() as server: …`; as a process of its own, until it is stopped:

    python -m tests.support.s3_server            # prints one line of JSON: url, keys, pids

It needs four Debian packages (`PACKAGES`), no root, no Docker; it starts in two seconds, listens on
127.0.0.1 only, and on leaving stops exactly the processes it started. There are two users: an owner
of all buckets, and a reader, who may read those that `share` names.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-common")
HOW_TO_GET = f"apt-get install -y --no-install-recommends {' '.join(PACKAGES)}"
REGION = "us-east-1"

# Every directory and port is our own; the intervals make the monitor answer in milliseconds, and
# without tcp_nodelay each small request waits 40 ms.
_CONFIG = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port}]
keyring = {dir}/keyring
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
run dir = {dir}/run
admin socket = {dir}/run/$name.asok
log file = {dir}/log/$name.log
crash dir = {dir}/log
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail crit = 1
mon data avail warn = 1
auth allow insecure global id reclaim = false
paxos propose interval = 0.02
paxos min wait = 0.01
[mon.a]
mon data = {dir}/mon
[osd]
osd data = {dir}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd class load list = *
osd class default list = *
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw enable usage log = false
rgw enable ops log = false
rgw thread pool size = 64
rgw run sync thread = false
rgw enable quota threads = false
rgw data = {dir}
"""


@dataclass(frozen=True)
class User:
    """Who may ask the server for something."""

    name: str
    access_key: str
    secret_key: str

    def environment(self, url: str) -> dict[str, str]:
        """What a client needs to know, as environment variables."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": url,
            # Nothing of the machine's own configuration, and no question to a cloud's metadata.
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            # For pyarrow's client, not for ours: Ceph 16 answers its newer checksums with 411.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }


def is_installed() -> bool:
    """Whether the programs are there."""
    names = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool")
    return all(shutil.which(name) for name in names)


@dataclass
class S3Server:
    """A running server."""

    directory: Path
    port: int
    owner: User = field(default_factory=lambda: _user("owner"))
    reader: User = field(default_factory=lambda: _user("reader"))
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _clients: dict[str, Any] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def started(cls) -> Iterator[S3Server]:
        """A server with an empty store; gone, with its files, on leaving.

        Raises:
            RuntimeError: it is not installed, or does not come up.
        """
        if not is_installed():
            raise RuntimeError(f"no S3 server on this machine: {HOW_TO_GET}")
        # Short: the path of a Unix socket has at most 107 characters.
        directory = Path(tempfile.mkdtemp(prefix="s3-", dir="/tmp"))
        server = cls(directory, _free_port())
        try:
            server._start()
            yield server
        finally:
            server.stop()
            shutil.rmtree(directory, ignore_errors=True)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, user: User | None = None) -> Any:
        """A botocore client of a user, for what the product itself never does."""
        import botocore.session
        from botocore.config import Config

        user = user or self.owner
        if user.name not in self._clients:  # each takes a second to make
            style = {"addressing_style": "path"}
            self._clients[user.name] = botocore.session.Session().create_client(
                "s3",
                REGION,
                endpoint_url=self.url,
                aws_access_key_id=user.access_key,
                aws_secret_access_key=user.secret_key,
                config=Config(s3=style, request_checksum_calculation="when_required"),
            )
        return self._clients[user.name]

    def new_bucket(self) -> str:
        """The name of a new, empty bucket of the owner."""
        name = f"bucket-{uuid.uuid4().hex[:16]}"
        self.client().create_bucket(Bucket=name)
        return name

    def share(self, bucket: str) -> None:
        """Let the reader list and read a bucket, and nothing more."""
        who = {"AWS": [f"arn:aws:iam:::user/{self.reader.name}"]}
        what = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
        statement = {
            "Effect": "Allow",
            "Principal": who,
            "Action": ["s3:ListBucket", "s3:GetObject"],
            "Resource": what,
        }
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        self.client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))

    def stop(self) -> None:
        """Stop the processes that were started here; the store is in memory and throw-away."""
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def _start(self) -> None:
        home = self.directory
        for name in ("mon", "osd", "log", "run"):
            (home / name).mkdir()
        fsid, mon_port = str(uuid.uuid4()), _free_port()
        config = _CONFIG.format(dir=home, fsid=fsid, port=self.port, mon_port=mon_port)
        (home / "ceph.conf").write_text(config)
        self._make_keys()
        self._run("monmaptool", "--create", "--clobber", "--fsid", fsid,
                  "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", f"{home}/monmap")  # fmt: skip
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", f"{home}/monmap",
                  "--keyring", f"{home}/keyring")  # fmt: skip
        self._serve("ceph-mon", "-f", "-i", "a")
        osd = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._serve("ceph-osd", "-f", "-i", "0")
        self._until("the store is up", lambda: "1 up" in self._run("ceph", "osd", "stat"))
        for user in (self.owner, self.reader):
            self._run("radosgw-admin", "user", "create", f"--uid={user.name}",
                      f"--display-name={user.name}", f"--access-key={user.access_key}",
                      f"--secret={user.secret_key}")  # fmt: skip
        self._serve("radosgw", "-f", "-n", "client.rgw")
        self._until("the gateway listens", self._listens)

    def _make_keys(self) -> None:
        ring = str(self.directory / "keyring")
        rights = {
            "mon.": ("mon", "allow *"),
            "client.admin": ("mon", "allow *", "osd", "allow *", "mgr", "allow *"),
            "client.rgw": ("mon", "allow rw", "osd", "allow rwx"),
            "osd.0": ("mon", "allow profile osd", "osd", "allow *"),
        }
        for index, (name, caps) in enumerate(rights.items()):
            pairs = zip(caps[::2], caps[1::2], strict=True)
            words = [word for kind, right in pairs for word in ("--cap", kind, right)]
            create = [] if index else ["--create-keyring"]
            self._run("ceph-authtool", *create, ring, "--gen-key", "-n", name, *words)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": str(self.directory / "ceph.conf")}

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self._environment(), capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed ({done.returncode}): {done.stderr[-2000:]}")
        return done.stdout

    def _serve(self, *command: str) -> None:
        with open(self.directory / "log" / f"{command[0]}.out", "wb") as log:
            process = subprocess.Popen(
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for the tests
            )
        self.processes.append(process)

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def _until(self, what: str, condition: Any, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [process.args for process in self.processes if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"not within {seconds} s: {what} (ended: {ended})")
            time.sleep(0.05)


def _user(name: str) -> User:
    return User(name, secrets.token_hex(10).upper(), secrets.token_urlsafe(30))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Serve until SIGTERM, Ctrl-C or the end of stdin."""

    def stop(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    with S3Server.started() as server:
        users = {user.name: vars(user) for user in (server.owner, server.reader)}
        pids = [process.pid for process in server.processes]
        print(json.dumps({"url": server.url, "users": users, "pids": pids}), flush=True)
        try:
            sys.stdin.read()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
