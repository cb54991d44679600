"""What filesystems and their clients raise, as our errors: once, here, and without credentials."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from pipeline.errors import MissingError, StoreError
from pipeline.redact import masked
from pipeline.storage.retry import GaveUpError, behind, response_of

_KEYS = (
    "Check the credentials in the environment (for S3: AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY)."
)

_RIGHTS = "Check the credentials in the environment and the policy of the bucket or folder."

_RIGHTS_HERE = "Check the owner and the mode of the file and of its folders (ls -ld)."

_AGAIN = "Run the same command again when it works."

_ROOM = "Make room or raise the quota. Run the same command again."

_NEW_KEYS = "Get new credentials and run the same command again."

_REGION = "Name the bucket's own region and endpoint (store.region, store.endpoint_url)."


# By the code in a store's answer: found, expected, remedy.
_CODES = {
    "InvalidAccessKeyId": ("an access key that the store does not know", "a known key", _KEYS),
    "SignatureDoesNotMatch": (
        "a secret key that does not fit the access key",
        "a matching pair",
        _KEYS,
    ),
    "ExpiredToken": ("the session token has expired", "valid credentials", _NEW_KEYS),
    "RequestExpired": ("the session has expired", "valid credentials", _NEW_KEYS),
    "TokenRefreshRequired": ("the session token has expired", "valid credentials", _NEW_KEYS),
    "InvalidToken": ("a session token that the store refuses", "a valid token", _NEW_KEYS),
    "AccessDenied": ("permission denied (AccessDenied)", "the right to do this", _RIGHTS),
    "RequestTimeTooSkewed": (
        "the clock of this machine and the store's differ",
        "clocks within minutes of each other",
        "Set this machine's clock.",
    ),
    "PermanentRedirect": ("the bucket lives elsewhere", "its own endpoint", _REGION),
    "IllegalLocationConstraintException": ("a bucket of another region", "its own", _REGION),
    "AuthorizationHeaderMalformed": ("a request signed for another region", "its own", _REGION),
    "InvalidBucketName": ("a name that no bucket can have", "a bucket's name", "Check the URL."),
    "QuotaExceeded": ("the store's quota is used up", "room for the object", _ROOM),
    "InsufficientStorage": ("the store is full", "room for the object", _ROOM),
    "EntityTooLarge": (
        "an object larger than the store takes in one piece",
        "a smaller one",
        "Lower limits.chunk_bytes in a new OUTPUT.",
    ),
}

_STATUSES = {401: _CODES["AccessDenied"], 403: _CODES["AccessDenied"], 507: _CODES["QuotaExceeded"]}


# By the class of an error without an answer.
_CLASSES = {
    "NoCredentialsError": ("no credentials", "credentials in the environment", _KEYS),
    "PartialCredentialsError": ("half of the credentials", "key and secret", _KEYS),
    "CredentialRetrievalError": ("credentials that cannot be had", "valid credentials", _KEYS),
    "ProfileNotFound": (
        "a profile that does not exist",
        "a profile of the AWS configuration",
        "Check store.profile or AWS_PROFILE.",
    ),
    "SSLError": (
        "a certificate that is not trusted",
        "a trusted certificate",
        "Name the authority's file (store.ca_bundle).",
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
    """Turn what filesystems raise into our errors.

    Args:
        where: the object's address.
        writes: it is to be written, or removed.

    Raises:
        MissingError: the object, prefix or bucket does not exist.
        StoreError: anything else that a store refuses, or that does not reach it.
    """
    try:
        yield
    except GaveUpError as error:
        cause = error.__cause__ or error
        found = explain(masked(where), cause, writes=writes) or _failed(masked(where), cause)
        tries = f"{found.found}; gave up after {error.attempts} tries in {error.seconds:.0f} s"
        raise type(found)(found.where, tries, found.expected, found.remedy) from cause
    except Exception as error:
        explanation = explain(masked(where), error, writes=writes)
        if explanation is None:
            raise
        raise explanation from error


def explain(where: str, error: BaseException, *, writes: bool = False) -> StoreError | None:
    """Our error for one of a store; None if it is none of a store."""
    status, code = response_of(error)
    if code == "NoSuchBucket":
        return MissingError(
            where=where,
            found="no such bucket",
            expected="an existing bucket",
            remedy="Check its name.",
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
        hidden = behind(error)
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
    # Clients' own errors share no base class with OSError.
    return _failed(where, error) if type(error).__module__.split(".")[0] in _CLIENTS else None


def _explain_missing(where: str, error: FileNotFoundError, *, writes: bool) -> StoreError:
    if not _is_path(where):
        return MissingError(
            where=where,
            found="nothing there",
            expected="an existing object",
            remedy="Check the spelling and the bucket.",
        )
    if writes:  # folders are made on the way, but not everywhere: /proc has none of ours
        return StoreError(
            where=where,
            found=f"its folder cannot be written ({_text(error)})",
            expected="a folder that can be made and written",
            remedy="Name another folder.",
        )
    return MissingError(
        where=where, found="nothing there", expected="an existing file", remedy="Check the path."
    )


def _is_path(where: str) -> bool:
    """Whether an address is one of this machine."""
    return "://" not in where


def _explain_os_error(where: str, error: OSError) -> StoreError:
    if isinstance(error, IsADirectoryError):
        return StoreError(
            where=where,
            found="a folder",
            expected="a file",
            remedy="Name a file: one in this folder, or another.",
        )
    if isinstance(error, NotADirectoryError | FileExistsError):
        return StoreError(
            where=where,
            found=f"a file where a folder is needed, or the other way round ({_text(error)})",
            expected="a path of the right kind",
            remedy="Name another place.",
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return StoreError(
            where=where,
            found=f"permission denied ({_text(error)})",
            expected="the right to do this",
            remedy=_RIGHTS_HERE if _is_path(where) else _RIGHTS,
        )
    if error.errno == errno.ELOOP:
        return StoreError(
            where=where,
            found="links that lead in a circle",
            expected="a file or folder",
            remedy="Mend the link.",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreError(
            where=where,
            found=f"the store is full ({_text(error)})",
            expected="room for the object",
            remedy=_ROOM,
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
