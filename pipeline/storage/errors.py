"""Errors of file systems and store clients, translated into `StoreError`; secrets are masked."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from pipeline.errors import MissingError, StoreError
from pipeline.redact import masked
from pipeline.storage.retry import GaveUpError, hidden_cause, response_of

_KEYS = (
    "Check the credentials in the environment (for S3: AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY)."
)

_RIGHTS = "Check the credentials in the environment and the policy of the bucket or folder."

_RIGHTS_HERE = "Check the owner and the mode of the file and of its folders (ls -ld)."

_AGAIN = "Run the same command again when it works."

_SPACE = "Free space or raise the quota. Run the same command again."

_NEW_KEYS = "Get new credentials and run the same command again."

_REGION = "Set store.region and store.endpoint_url to those of the bucket."


# (found, expected, remedy) by the error code in a response of the store.
_CODES = {
    "InvalidAccessKeyId": ("an access key unknown to the store", "a known key", _KEYS),
    "SignatureDoesNotMatch": (
        "a secret key that does not match the access key",
        "a matching pair of keys",
        _KEYS,
    ),
    "ExpiredToken": ("the session token has expired", "valid credentials", _NEW_KEYS),
    "RequestExpired": ("the session has expired", "valid credentials", _NEW_KEYS),
    "TokenRefreshRequired": ("the session token has expired", "valid credentials", _NEW_KEYS),
    "InvalidToken": ("a session token refused by the store", "a valid token", _NEW_KEYS),
    "AccessDenied": ("permission denied (AccessDenied)", "permission for this operation", _RIGHTS),
    "RequestTimeTooSkewed": (
        "the clocks of this machine and of the store differ",
        "clocks that differ by less than 15 minutes",
        "Set this machine's clock.",
    ),
    "PermanentRedirect": (
        "the bucket is at another endpoint",
        "the endpoint of the bucket",
        _REGION,
    ),
    "IllegalLocationConstraintException": (
        "a bucket in another region",
        "the region of the bucket",
        _REGION,
    ),
    "AuthorizationHeaderMalformed": (
        "a request signed for another region",
        "the region of the bucket",
        _REGION,
    ),
    "InvalidBucketName": ("an invalid bucket name", "a valid bucket name", "Check the URL."),
    "QuotaExceeded": ("the store's quota is used up", "space for the object", _SPACE),
    "InsufficientStorage": ("the store is full", "space for the object", _SPACE),
    "EntityTooLarge": (
        "an object larger than the store accepts in one request",
        "a smaller object",
        "Lower limits.chunk_bytes in a new OUTPUT.",
    ),
}

_STATUSES = {401: _CODES["AccessDenied"], 403: _CODES["AccessDenied"], 507: _CODES["QuotaExceeded"]}


# (found, expected, remedy) by the class of an error without a response.
_CLASSES = {
    "NoCredentialsError": ("no credentials", "credentials in the environment", _KEYS),
    "PartialCredentialsError": ("incomplete credentials", "access key and secret key", _KEYS),
    "CredentialRetrievalError": (
        "credentials that cannot be retrieved",
        "valid credentials",
        _KEYS,
    ),
    "ProfileNotFound": (
        "a profile that does not exist",
        "a profile of the AWS configuration",
        "Check store.profile or AWS_PROFILE.",
    ),
    "SSLError": (
        "a certificate that is not trusted",
        "a trusted certificate",
        "Set store.ca_bundle to the PEM file of the certificate authority.",
    ),
    "EndpointConnectionError": (
        "no connection",
        "a reachable store",
        "Check the endpoint (store.endpoint_url, AWS_ENDPOINT_URL) and the network.",
    ),
    "ConnectTimeoutError": (
        "no connection in time",
        "a reachable store",
        "Check the endpoint (store.endpoint_url, AWS_ENDPOINT_URL) and the network.",
    ),
}

_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "azure", "google", "gcsfs", "adlfs")


@contextlib.contextmanager
def explained(where: str, *, writes: bool = False) -> Iterator[None]:
    """Turn errors of file systems and store clients inside the block into `StoreError`.

    Args:
        where: address of the object; credentials in it are masked.
        writes: True if the block writes or deletes the object.

    Raises:
        MissingError: the object, prefix or bucket does not exist.
        StoreError: the store is unreachable, refuses the request, or fails.
    """
    try:
        yield
    except GaveUpError as error:
        cause = error.__cause__ or error
        found = explain(masked(where), cause, writes=writes) or _failed(masked(where), cause)
        tries = f"{found.found}; gave up after {error.attempts} tries in {error.seconds:.0f} s"
        raise type(found)(
            where=found.where, found=tries, expected=found.expected, remedy=found.remedy
        ) from cause
    except Exception as error:
        explanation = explain(masked(where), error, writes=writes)
        if explanation is None:
            raise
        raise explanation from error


def explain(where: str, error: BaseException, *, writes: bool = False) -> StoreError | None:
    """Return the `StoreError` for an error of a store, or None for any other error."""
    status, code = response_of(error)
    if code == "NoSuchBucket":
        return MissingError(
            where=where,
            found="no such bucket",
            expected="an existing bucket",
            remedy="Check the name of the bucket.",
        )
    known = _CODES.get(code) or _STATUSES.get(status or 0)
    if known is None:
        names = [ancestor.__name__ for ancestor in type(error).__mro__]
        known = next((_CLASSES[name] for name in names if name in _CLASSES), None)
    if known is not None:
        found, expected, remedy = known
        detail = f" ({_text(error)})" if status is None else ""
        return StoreError(where=where, found=f"{found}{detail}", expected=expected, remedy=remedy)
    if isinstance(error, FileNotFoundError):
        hidden = hidden_cause(error)
        if hidden is not error:
            return explain(where, hidden, writes=writes)
        return _explain_missing(where, error, writes=writes)
    if isinstance(error, OSError):
        return _explain_os_error(where, error)
    if isinstance(error, ImportError):
        return StoreError(
            where=where,
            found=f"{error}",
            expected="the filesystem package for this protocol",
            remedy="Install it: pip install 'fcn-pipeline[gcs]' or 'fcn-pipeline[azure]'.",
        )
    # Errors of the client libraries are not subclasses of OSError.
    return _failed(where, error) if type(error).__module__.split(".")[0] in _CLIENTS else None


def _explain_missing(where: str, error: FileNotFoundError, *, writes: bool) -> StoreError:
    if not _is_path(where):
        return MissingError(
            where=where,
            found="nothing there",
            expected="an existing object",
            remedy="Check the spelling and the bucket.",
        )
    if writes:  # writing creates missing folders, which fails in places like /proc
        return StoreError(
            where=where,
            found=f"its folder is not writable ({_text(error)})",
            expected="a folder that can be created and written",
            remedy="Choose another folder.",
        )
    return MissingError(
        where=where, found="nothing there", expected="an existing file", remedy="Check the path."
    )


def _is_path(where: str) -> bool:
    return "://" not in where


def _explain_os_error(where: str, error: OSError) -> StoreError:
    if isinstance(error, IsADirectoryError):
        return StoreError(
            where=where,
            found="a folder",
            expected="a file",
            remedy="Name a file, for example one in this folder.",
        )
    if isinstance(error, NotADirectoryError | FileExistsError):
        return StoreError(
            where=where,
            found=f"a file instead of a folder, or a folder instead of a file ({_text(error)})",
            expected="a path of the right kind",
            remedy="Choose another path.",
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return StoreError(
            where=where,
            found=f"permission denied ({_text(error)})",
            expected="permission for this operation",
            remedy=_RIGHTS_HERE if _is_path(where) else _RIGHTS,
        )
    if error.errno == errno.ELOOP:
        return StoreError(
            where=where,
            found="symbolic links that form a cycle",
            expected="a file or folder",
            remedy="Correct the link.",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreError(
            where=where,
            found=f"the store is full ({_text(error)})",
            expected="space for the object",
            remedy=_SPACE,
        )
    return _failed(where, error)


def _failed(where: str, error: BaseException) -> StoreError:
    status, code = response_of(error)
    answer = " ".join(part for part in (str(status or ""), code) if part)
    text = f"{answer}: {_text(error)}" if answer else _text(error)
    return StoreError(
        where=where, found=f"the store failed ({text})", expected="a working store", remedy=_AGAIN
    )


def _text(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return masked(text) or type(error).__name__
