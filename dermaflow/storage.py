"""Objects in S3, read and written with patience: what passes is waited out, what is wrong is said.

Endpoint, region and credentials come by AWS's usual means: AWS_ENDPOINT_URL(_S3), AWS_PROFILE, AWS_ACCESS_KEY_ID, a role.
"""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from dermaflow.errors import InputError
from dermaflow.progress import tell

S3 = "s3://"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds between two attempts; doubled each time
_TELL_EVERY = 5.0  # seconds
_SETTLES = 30.0  # seconds: a server that was away may at first deny what it holds, until it has loaded its accounts
_READS = 4  # attempts at an object whose bytes do not fit its checksum
_MD5 = re.compile(r"[0-9a-f]{32}")
_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
_CREDENTIAL_CODES = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
}
_OBJECT_FAULTS = {
    404: ("missing", "the object went away after it was listed"),
    412: ("changed", "the object was replaced after it was listed; run again when nobody writes there"),
}
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as a listing tells of it: key, bytes, entity tag without quotes, and time of writing (seconds since 1970)."""

    key: str
    size: int
    etag: str
    modified: int


class StoredObjectError(Exception):
    """One object can not be had although the store answers; `reason` is "missing", "changed" or "checksum"."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Bucket:
    """A bucket that is read by many threads.

    Parameters
    ----------
    patience: seconds for which a store that does not answer is asked again.
    concurrency: connections kept open.
    """

    def __init__(self, name: str, patience: float, concurrency: int) -> None:
        self.name = name
        self._patience = patience
        self._client = _client(name, concurrency)
        self._lock = threading.Lock()
        self._told_at = self._failed_at = float("-inf")

    @property
    def endpoint(self) -> str:
        """The URL of the server that is asked."""
        return str(self._client.meta.endpoint_url)

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose keys begin with `prefix`, in the order of their keys.

        Raises
        ------
        InputError
            when there is no such bucket, access is denied, or the store does not answer.
        """
        position: dict[str, str] = {}
        while True:
            page = self._patiently(
                f"s3://{self.name}/{prefix}",
                lambda: self._client.list_objects_v2(Bucket=self.name, Prefix=prefix, **position),  # noqa: B023
            )
            for item in page.get("Contents", ()):
                yield StoredObject(item["Key"], item["Size"], item["ETag"].strip('"'), int(item["LastModified"].timestamp()))
            if not page.get("IsTruncated"):
                return
            position = {"ContinuationToken": page["NextContinuationToken"]}

    def read(self, item: StoredObject) -> bytes:
        """The bytes of a listed object, checked: length, the checksum that it was stored with, and MD5 where its tag is one.

        Raises
        ------
        StoredObjectError
            when the object is gone, was replaced since it was listed, or does not fit its checksum time and again.
        InputError
            when access is denied, or the store does not answer.
        """
        detail = ""
        for _ in range(_READS):
            data, detail = self._patiently(f"s3://{self.name}/{item.key}", lambda: self._read_once(item))
            if not detail:
                return data
        raise StoredObjectError("checksum", f"{detail}, {_READS} times; store the object again")

    def get(self, key: str) -> bytes | None:
        """The bytes under a key, checked as by `read`; None where there are none.

        Raises
        ------
        InputError
            when access is denied, or the store does not answer.
        """
        try:
            head = self._patiently(f"s3://{self.name}/{key}", lambda: self._client.head_object(Bucket=self.name, Key=key))
            return self.read(
                StoredObject(key, head["ContentLength"], head["ETag"].strip('"'), int(head["LastModified"].timestamp()))
            )
        except StoredObjectError as error:
            if error.reason == "missing":
                return None
            raise

    def put(self, key: str, data: bytes) -> None:
        """Store bytes under a key: all of them or none; raises InputError as `get` does."""
        self._patiently(
            f"s3://{self.name}/{key}",
            lambda: self._client.put_object(Bucket=self.name, Key=key, Body=data, ChecksumAlgorithm="SHA256"),
        )

    def delete(self, key: str) -> None:
        """Remove what is under a key, if anything is; raises InputError as `get` does."""
        self._patiently(f"s3://{self.name}/{key}", lambda: self._client.delete_object(Bucket=self.name, Key=key))

    def _read_once(self, item: StoredObject) -> tuple[bytes, str]:
        """The bytes, and what is wrong with them."""
        from botocore.exceptions import FlexibleChecksumError

        tag = f'"{item.etag}"'
        try:
            answer = self._client.get_object(Bucket=self.name, Key=item.key, IfMatch=tag, ChecksumMode="ENABLED")
            data: bytes = answer["Body"].read()
        except FlexibleChecksumError as error:
            return b"", str(error)
        if len(data) != item.size:
            return b"", f"{len(data)} of {item.size} bytes came"
        by_key = answer.get("ServerSideEncryption", "").startswith("aws:kms")  # its tag looks like an MD5 and is none
        if _MD5.fullmatch(item.etag) and not by_key and hashlib.md5(data, usedforsecurity=False).hexdigest() != item.etag:
            return b"", "the bytes that came have another MD5 than the object"
        return data, ""

    def _patiently(self, what: str, ask: Callable[[], _Answer]) -> _Answer:
        """Ask until there is an answer: at growing intervals, with jitter, so that many threads do not ask in step."""
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        began, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                return ask()
            except (BotoCoreError, ClientError, ResponseParserError) as error:
                if not self._may_pass(error):
                    raise _told(error, what, self.endpoint) from error
                waited = time.monotonic() - began
                if waited >= self._patience:
                    raise InputError(
                        f"{what}: {self.endpoint} does not answer, for {waited:.0f} s by now ({_short(error)}); "
                        f"data.patience_seconds is {self._patience:g}. Start the server, correct AWS_ENDPOINT_URL, or raise "
                        "the patience; a new run goes on from here"
                    ) from error
                self._tell_waiting(what, waited, error)
            time.sleep(min(pause, max(self._patience - waited, 0.01)) * random.uniform(0.5, 1))  # noqa: S311 - no secret
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _may_pass(self, error: Exception) -> bool:
        """Whether an error may be gone at the next attempt."""
        from botocore.exceptions import ClientError

        now = time.monotonic()
        if _is_transient(error):
            self._failed_at = now
            return True
        return isinstance(error, ClientError) and now - self._failed_at < _SETTLES

    def _tell_waiting(self, what: str, waited: float, error: Exception) -> None:
        with self._lock:
            due = time.monotonic() - self._told_at >= _TELL_EVERY
            self._told_at = time.monotonic() if due else self._told_at
        if due and waited > 0.5:
            tell("waiting", text=f"waiting for {self.endpoint}: {_short(error)}", what=what, seconds=round(waited, 1))


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`; the prefix is without slashes at its ends and may be empty.

    Raises
    ------
    InputError
        when the uri names no bucket.
    """
    bucket, _, prefix = uri.removeprefix(S3).partition("/")
    if not uri.startswith(S3) or not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,62}", bucket):
        raise InputError(
            f"{uri} names no bucket; write s3://bucket/prefix, the bucket in small letters, digits, dots and dashes"
        )
    return bucket, prefix.strip("/")


def _client(bucket: str, concurrency: int) -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        max_pool_connections=concurrency,
        connect_timeout=5,  # seconds; what takes longer is asked again
        read_timeout=30,
        retries={"total_max_attempts": 1},  # retried above, for as long as data.patience_seconds says
        tcp_keepalive=True,
    )
    try:
        return boto3.session.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise InputError(f"s3://{bucket}: {error}; correct AWS_ENDPOINT_URL, AWS_PROFILE or the AWS configuration") from error


def _is_transient(error: Exception) -> bool:
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or _code(error) in _TRANSIENT_CODES
    if isinstance(error, exceptions.SSLError):  # a certificate does not become right by waiting
        return False
    broken = (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError, ResponseParserError)
    return isinstance(error, broken)


def _told(error: Exception, what: str, endpoint: str) -> Exception:
    """An error that waiting does not mend, as a person or a caller may handle it."""
    from botocore import exceptions

    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return InputError(
            f"{what}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give a role"
        )
    if not isinstance(error, exceptions.ClientError):
        return InputError(f"{what}: {endpoint}: {_short(error)}; check AWS_ENDPOINT_URL and the AWS configuration")
    code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code != "NoSuchBucket" and status in _OBJECT_FAULTS:
        return StoredObjectError(*_OBJECT_FAULTS[status])
    return InputError(f"{what}: {endpoint} {_refusal(code, status, error)}")


def _refusal(code: str, status: int, error: Exception) -> str:
    if code == "NoSuchBucket":
        return "has no such bucket; correct its name, or AWS_ENDPOINT_URL"
    if code in _CREDENTIAL_CODES:
        return f"does not accept these credentials ({code}); correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if status == 403:
        return f"denies access ({code}); allow this user s3:ListBucket on the bucket and s3:GetObject on its keys"
    return f"answers: {_short(error)}"


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
