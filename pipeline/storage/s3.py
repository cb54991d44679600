"""Objects of S3 and compatible servers, through the client of s3fs. A write is one request.

Neither s3fs nor botocore retries: `pipeline.storage.retry` does. No write is a multipart upload,
because Ceph ignores conditions on these and a broken one leaves parts that cost money. The
exception is `upload` of a large file.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import s3fs
from fsspec.asyn import sync

from pipeline.storage.backend import Attempt, Leftover, ObjectInfo, TruncatedError
from pipeline.storage.options import StoreOptions
from pipeline.storage.retry import response_of

_CONNECTIONS = 64

PART_BYTES = 16 * 2**20


class _SingleTry(s3fs.S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """s3fs without its own retry loop, which does not report whether a request was repeated."""

    retries = 1


class S3Backend:
    """Backend for the objects in a bucket, or below a prefix of a bucket."""

    def __init__(self, url: str, options: StoreOptions) -> None:
        self.fs = _client(options)
        self.bucket, root, _ = self.fs.split_path(url)
        self.root = f"{root.strip('/')}/" if root.strip("/") else ""
        self.atomic_create = True
        self.atomic_replace = True
        # Form of a tag in If-Match: with quotes by RFC 9110, but Ceph 16 only matches without.
        self._tag_form = '"{}"'

    def listing(self, prefix: str, attempt: Attempt) -> Iterator[ObjectInfo]:
        """Yield the objects below a folder in byte order, one page of the server at a time."""
        folder = f"{self.root}{prefix}/" if prefix else self.root
        arguments = {"Bucket": self.bucket, "Prefix": folder}
        while True:
            page = attempt(lambda: self.fs.call_s3("list_objects_v2", **arguments))
            for found in page.get("Contents", ()):
                # Consoles create an empty object `a/` to show an empty folder.
                if not found["Key"].endswith("/"):
                    tag = str(found["ETag"]).strip('"')
                    path, changed = found["Key"][len(self.root) :], found["LastModified"]
                    yield ObjectInfo(path, int(found["Size"]), tag, changed.timestamp())
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def stat(self, path: str) -> ObjectInfo:
        """Return size, tag and modification time of an object."""
        head = self._call("head_object", path)
        changed = head["LastModified"].timestamp()
        return ObjectInfo(path, int(head["ContentLength"]), _tag(head), changed)

    def read(self, path: str, start: int | None, end: int | None) -> tuple[bytes, str]:
        """Return the bytes in [start, end) and the tag of the object, complete or not at all."""
        if start is not None and start < 0 and end is not None:
            size = self.stat(path).size
            start, end, _ = slice(start, end).indices(size)
        if start is not None and end is not None and start >= end:
            return b"", self.stat(path).etag
        wanted = _range(start, end)
        arguments = {"Range": wanted} if wanted else {}
        try:
            found = sync(self.fs.loop, self._get, path, arguments)
        except OSError as error:
            if response_of(error)[0] != 416:  # a range that starts after the end
                raise
            return b"", self.stat(path).etag
        return found  # type: ignore[no-any-return]

    def open(self, path: str) -> None:
        """Return None: S3 objects are read in ranges."""

    def write(self, path: str, data: bytes) -> str:
        """Write an object with one PutObject request and return its tag."""
        return self._put(path, data)

    def upload(self, path: str, source: Path) -> None:
        """Write a local file: one request up to 16 MiB, a multipart upload above.

        A process that is killed during a multipart upload leaves parts that no listing shows. The
        lifecycle rule AbortIncompleteMultipartUpload of a bucket deletes them.
        """
        if source.stat().st_size <= PART_BYTES:
            self._put(path, source.read_bytes())
            return
        where = f"{self.bucket}/{self.root}{path}"
        self.fs.put_file(str(source), where, chunksize=PART_BYTES, max_concurrency=2)

    def create(self, path: str, data: bytes) -> str | None:
        """Write a new object with `If-None-Match: *`; return its tag, or None if it exists."""
        if self.atomic_create:
            try:
                return self._put(path, data, IfNoneMatch="*")
            except OSError as error:
                status, _ = response_of(error)
                if status == 412:
                    return None
                if status != 501:
                    raise
            self.atomic_create = False  # the server does not support the condition
        return self._put(path, data) if self._tag_of(path) is None else None

    def replace(self, path: str, data: bytes, tag: str) -> str | None:
        """Write over one version with `If-Match`, trying both forms of tags that servers accept."""
        for form in (self._tag_form, "{}", '"{}"') if self.atomic_replace else ():
            try:
                new = self._put(path, data, IfMatch=form.format(tag))
            except OSError as error:
                status, _ = response_of(error)
                if status == 404:
                    return None
                if status not in (412, 501):
                    raise
                if self._tag_of(path) != tag:
                    return None
                if status == 501:
                    break
                continue  # the object has this tag, so the form was wrong
            self._tag_form = form
            return new
        self.atomic_replace = False
        return self._put(path, data) if self._tag_of(path) == tag else None

    def delete(self, path: str, tag: str | None) -> None:
        """Compare the tag, then delete: few servers support a condition on a delete."""
        try:
            if tag is None or self._tag_of(path) == tag:
                self._call("delete_object", path)
        except FileNotFoundError:
            return

    def sweep(self) -> None:
        """Do nothing: S3 has no temporary files."""

    def leftovers(self, attempt: Attempt) -> Iterator[Leftover]:
        """Yield the multipart uploads, of any program, that were started and not finished."""
        arguments = {"Bucket": self.bucket, "Prefix": self.root}
        while True:
            page = attempt(lambda: self.fs.call_s3("list_multipart_uploads", **arguments))
            for found in page.get("Uploads", ()):
                path, began = found["Key"][len(self.root) :], found["Initiated"].timestamp()
                yield Leftover(path, 0, began, found["UploadId"])
            if not page.get("IsTruncated"):
                return
            arguments["KeyMarker"] = page["NextKeyMarker"]
            arguments["UploadIdMarker"] = page["NextUploadIdMarker"]

    def discard(self, leftover: Leftover) -> None:
        """Abort a multipart upload."""
        try:
            self._call("abort_multipart_upload", leftover.path, UploadId=leftover.handle)
        except OSError as error:
            if response_of(error)[0] != 404:
                raise

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        key = f"{self.root}{path}"
        found = self.fs.call_s3(method, Bucket=self.bucket, Key=key, **arguments)
        return found  # type: ignore[no-any-return]

    def _put(self, path: str, data: bytes, **condition: str) -> str:
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        md5 = base64.b64encode(digest).decode()  # lets the server refuse damaged data
        return _tag(self._call("put_object", path, Body=data, ContentMD5=md5, **condition))

    async def _get(self, path: str, arguments: dict[str, str]) -> tuple[bytes, str]:
        # The body must be read in the event loop of s3fs, to which the client belongs.
        key = f"{self.root}{path}"
        found = await self.fs._call_s3("get_object", Bucket=self.bucket, Key=key, **arguments)
        try:
            data = await found["Body"].read()
        finally:
            found["Body"].close()
        if len(data) != found["ContentLength"]:
            raise TruncatedError(f"received {len(data)} of {found['ContentLength']} bytes")
        return data, _tag(found)

    def _tag_of(self, path: str) -> str | None:
        try:
            return self.stat(path).etag
        except FileNotFoundError:
            return None


_CLIENTS: dict[object, _SingleTry] = {}
"""Clients by process, options and AWS environment: equal stores share connections."""


def _client(options: StoreOptions) -> _SingleTry:
    # fsspec's own cache would keep a client after its credentials in the environment changed.
    environment = frozenset(item for item in os.environ.items() if item[0].startswith("AWS_"))
    key = (os.getpid(), options, environment)
    if key not in _CLIENTS:
        _CLIENTS[key] = _SingleTry(skip_instance_cache=True, **_arguments(options))
    return _CLIENTS[key]


def _tag(answer: dict[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')


def _range(start: int | None, end: int | None) -> str:
    """Return the HTTP Range header of a slice; "" for the whole object.

    >>> _range(None, 7), _range(3, None), _range(-5, None), _range(2, 4), _range(None, None)
    ('bytes=0-6', 'bytes=3-', 'bytes=-5', 'bytes=2-3', '')
    """
    if start is None and end is None:
        return ""
    if start is not None and start < 0:
        return f"bytes={start}"
    return f"bytes={start or 0}-{'' if end is None else end - 1}"


def _arguments(options: StoreOptions) -> dict[str, Any]:
    """Return our options under the names of s3fs and botocore.

    Options that are left out come from the environment.
    """
    client: dict[str, Any] = {}
    if options.region:
        client["region_name"] = options.region
    if not options.verify_tls or options.ca_bundle:
        client["verify"] = options.ca_bundle if options.verify_tls else False
    arguments: dict[str, Any] = {
        "anon": options.anonymous,
        "use_listings_cache": False,
        "client_kwargs": client,
        "config_kwargs": {
            "connect_timeout": options.connect_timeout,
            "read_timeout": options.read_timeout,
            "max_pool_connections": _CONNECTIONS,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "s3": {"addressing_style": options.resolved_addressing},
            # Older servers do not support the newer checksums; Content-MD5 is sent instead.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    }
    if options.endpoint_url:
        arguments["endpoint_url"] = options.endpoint_url
    if options.profile:
        arguments["profile"] = options.profile
    return arguments
