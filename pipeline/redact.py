"""Credentials in URLs: find them, and mask them in messages, logs and reports."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^/@\s?#]*:[^/@\s]*@")

_PARAMETER = re.compile(
    r"(?i)([?&;](?:x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig|token"
    r"|access_?token|access_?key(?:_?id)?|secret(?:_?key)?|password|api_?key)=)[^&\s'\")]+"
)


def has_secret(url: str) -> bool:
    """Return whether a URL contains credentials.

    >>> has_secret("s3://key:secret@bucket/a"), has_secret("s3://bucket/a@b:c")
    (True, False)
    """
    return masked(url) != url


def masked(text: str) -> str:
    """Return a text with the credentials of every URL in it replaced by "***".

    >>> masked("http://me:word@host/a?sig=abc&x=1: refused")
    'http://***@host/a?sig=***&x=1: refused'
    """
    return _PARAMETER.sub(r"\1***", _USER.sub("***@", text))
