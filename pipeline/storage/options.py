"""How a store is reached. Never who reaches it: credentials stay where providers look for them."""

from __future__ import annotations

import os
import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.redact import has_secret


class StoreOptions(BaseModel):
    """How a store is reached; what only S3 knows does nothing elsewhere.

    Credentials come from the environment, the profile, or the machine's role, by botocore's own
    chain (Google's and Microsoft's libraries have theirs).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    endpoint_url: str | None = None
    """Address of an S3 server that is not Amazon's; by default AWS_ENDPOINT_URL."""
    region: str | None = None
    """Region of the bucket; by default AWS_DEFAULT_REGION or the profile's."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Where the bucket's name goes: path (host/bucket) or virtual (bucket.host); auto: path for a
    named endpoint."""
    verify_tls: bool = True
    """Whether the server's certificate is checked."""
    ca_bundle: str | None = None
    """PEM file of the authorities to trust; by default AWS_CA_BUNDLE or the system's."""
    profile: str | None = None
    """Profile of the shared AWS files to take credentials from; by default AWS_PROFILE."""
    anonymous: bool = False
    """Sign nothing: for public buckets."""
    connect_timeout: float = Field(default=10.0, gt=0)
    """Seconds to wait for a connection."""
    read_timeout: float = Field(default=60.0, gt=0)
    """Seconds to wait for the next bytes of an answer."""
    attempts: int = Field(default=10, ge=1)
    """Times a request is tried in all when it fails in a way that may pass."""
    retry_seconds: float = Field(default=120.0, ge=0)
    """Seconds after which a failing request is not tried again."""

    @field_validator("endpoint_url")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if not re.match(r"https?://[^/]", url):
            raise ValueError("an address that begins with http:// or https://")
        if has_secret(url):
            raise ValueError("an address without a user or password in it")
        return url

    @field_validator("ca_bundle")
    @classmethod
    def _is_there(cls, path: str | None) -> str | None:
        if path is not None and not os.path.exists(path):
            raise ValueError("a file that exists")
        return path

    @property
    def resolved_addressing(self) -> str:
        """`path` or `virtual`; `auto` is path-style for every endpoint that is not Amazon's."""
        if self.addressing != "auto":
            return self.addressing
        named = self.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3")
        host = urlsplit(named or os.environ.get("AWS_ENDPOINT_URL") or "").hostname
        return "path" if host and not host.endswith(".amazonaws.com") else "virtual"
