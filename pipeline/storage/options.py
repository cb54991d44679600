"""Options of the connection to a store. Credentials are not options: see `StoreOptions`."""

from __future__ import annotations

import os
import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.redact import has_secret


class StoreOptions(BaseModel):
    """Options of the connection to a store; the options of S3 have no effect on other stores.

    Credentials come from the environment, the profile, or the role of the machine, in the order of
    botocore. The libraries for Google Cloud and Azure have their own order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    endpoint_url: str | None = None
    """Address of an S3 server other than Amazon's; by default AWS_ENDPOINT_URL."""
    region: str | None = None
    """Region of the bucket; by default AWS_DEFAULT_REGION or the profile's."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Position of the bucket name: path (host/bucket) or virtual (bucket.host). auto: path if an
    endpoint other than Amazon's is set, else virtual."""
    verify_tls: bool = True
    """Check the certificate of the server."""
    ca_bundle: str | None = None
    """PEM file of trusted certificate authorities; by default AWS_CA_BUNDLE or the system's."""
    profile: str | None = None
    """Profile in the AWS configuration files that has the credentials; by default AWS_PROFILE."""
    anonymous: bool = False
    """Send requests without credentials, for public buckets."""
    connect_timeout: float = Field(default=10.0, gt=0)
    """Seconds to wait for a connection."""
    read_timeout: float = Field(default=60.0, gt=0)
    """Seconds to wait for the next bytes of a response."""
    attempts: int = Field(default=10, ge=1)
    """Attempts in all for a request that fails with a temporary error."""
    retry_seconds: float = Field(default=120.0, ge=0)
    """Seconds after which a failing request is not repeated."""

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
        """Addressing style of S3 requests, "path" or "virtual"; "auto" is resolved."""
        if self.addressing != "auto":
            return self.addressing
        named = self.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3")
        host = urlsplit(named or os.environ.get("AWS_ENDPOINT_URL") or "").hostname
        return "path" if host and not host.endswith(".amazonaws.com") else "virtual"
