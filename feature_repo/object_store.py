"""The objects of one workspace in an S3 bucket: bounded waits, conditional writes, clear errors.

    objects = ObjectStore("s3://bucket/prefix")

Credentials and endpoint are found as all of AWS's clients find them: AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, AWS_PROFILE, the role of the machine; AWS_ENDPOINT_URL for other stores than
Amazon's. The store must honour If-Match and If-None-Match on writes, or two writers could undo
each other's work without a word: `check_conditional_writes` finds out.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from feature_repo.errors import InputError

SCHEME = "s3://"
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
ATTEMPTS = 4
"""Of one request, the pauses between them growing; then the command fails."""
TRANSFERS = 8
"""At once: enough to fill a line with small files, few enough for any server."""
KEYS_PER_DELETE = 1000


class Changed(Exception):
    """A conditional write found another object than it expected."""


class Gone(Exception):
    """An object that was to be read is not there."""


class Unchanged(Exception):
    """A conditional read found the object that is known already."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A small object."""

    value: dict[str, Any]
    etag: str
    age_s: float
    """Since it was written, by the server's clock alone."""


class ObjectStore:
    """Keys are relative to the URI's prefix. Safe to use from several threads."""

    def __init__(self, uri: str) -> None:
        match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]+[a-z0-9])((?:/[A-Za-z0-9._=-]+)*)/?", uri)
        if not match:
            raise InputError(
                f"workspace {uri}: expected s3://BUCKET/PREFIX, the prefix made of letters, digits "
                "and . _ = - and /"
            )
        self.bucket, prefix = match.groups()
        self.uri = f"{SCHEME}{self.bucket}{prefix}"
        self._prefix = f"{prefix}/".lstrip("/")
        try:
            import boto3
            from botocore.config import Config
        except ModuleNotFoundError as error:
            raise InputError(
                f"workspace {uri} needs the package {error.name}; run `pip install 'crescendo[s3]'`"
            ) from error
        with self._errors_said():
            self._client = boto3.session.Session().client(
                "s3",
                config=Config(
                    connect_timeout=CONNECT_TIMEOUT_S,
                    read_timeout=READ_TIMEOUT_S,
                    retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
                    max_pool_connections=TRANSFERS + 2,
                ),
            )

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._prefix + key}

    @contextmanager
    def _errors_said(self) -> Iterator[None]:
        """InputError, with what helps, in place of the client's own errors."""
        from botocore import exceptions

        try:
            yield
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
            raise InputError(
                f"no credentials for {self.uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or AWS_PROFILE"
            ) from error
        except exceptions.ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412"):
                raise Changed from error
            if code in ("NoSuchKey", "404"):
                raise Gone from error
            if code in ("NotModified", "304"):
                raise Unchanged from error
            if code == "NoSuchBucket":
                raise InputError(f"{self.uri}: there is no bucket {self.bucket}") from error
            raise InputError(
                f"{self.uri}: {error.operation_name} was refused "
                f"({code}: {error.response['Error'].get('Message', '')})"
            ) from error
        except exceptions.BotoCoreError as error:
            raise InputError(f"{self.uri} cannot be used: {error}") from error

    def read(self, key: str) -> Found | None:
        """A JSON object, or None where there is none."""
        try:
            with self._errors_said():
                answer = self._client.get_object(**self._at(key))
                body = answer["Body"].read()
        except Gone:
            return None
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        age_s = (now - answer["LastModified"]).total_seconds()
        try:
            return Found(value=json.loads(body), etag=answer["ETag"], age_s=age_s)
        except json.JSONDecodeError as error:
            raise InputError(f"{self.uri}/{key} is not JSON: it is not a workspace's") from error

    def is_changed(self, key: str, etag: str | None) -> bool:
        """Whether another object than the one with this ETag (None: than none) is there now.

        One request without a body, which costs the server a look at its metadata.
        """
        condition = {} if etag is None else {"IfNoneMatch": etag}
        try:
            with self._errors_said():
                self._client.head_object(**self._at(key), **condition)
        except Unchanged:
            return False
        except Gone:
            return etag is not None
        return True

    def write(self, key: str, value: dict[str, Any], *, over: str | None) -> str:
        """Writes JSON over the object with ETag `over`; None: where no object is. Returns the ETag.

        Raises Changed, and writes nothing, if something else is there.
        """
        condition = {"IfNoneMatch": "*"} if over is None else {"IfMatch": over}
        body = json.dumps(value, indent=1).encode()
        with self._errors_said():
            try:
                answer = self._client.put_object(**self._at(key), Body=body, **condition)
            except self._client.exceptions.NoSuchKey as error:  # If-Match where nothing is
                raise Changed from error
        return answer["ETag"]

    def check_conditional_writes(self, key: str) -> None:
        """Raises InputError if the server writes over an object that is there, told not to."""
        try:
            self.write(key, {}, over=None)
        except Changed:
            return
        raise InputError(
            f"{self.uri}: the server ignores If-None-Match on writes, so writers of a workspace "
            "could undo each other's work; use a store that honours it"
        )

    def upload(self, paths: Iterable[tuple[str, Path]]) -> None:
        """Files to objects, several at once."""

        def one(item: tuple[str, Path]) -> None:
            from boto3.exceptions import S3UploadFailedError

            key, path = item
            with self._errors_said():
                try:
                    self._client.upload_file(str(path), **self._at(key))
                except S3UploadFailedError as error:
                    raise InputError(
                        f"{self.uri}: {path.name} was not uploaded: {error}"
                    ) from error

        _each(one, paths)

    def download(self, paths: Iterable[tuple[str, Path]]) -> None:
        """Objects to files, several at once. Raises Gone if one is not there."""

        def one(item: tuple[str, Path]) -> None:
            key, path = item
            with self._errors_said():
                self._client.download_file(self.bucket, self._prefix + key, str(path))

        _each(one, paths)

    def copy(self, keys: Iterable[tuple[str, str]]) -> None:
        """Objects to other keys, inside the store."""

        def one(item: tuple[str, str]) -> None:
            source, target = item
            with self._errors_said():
                self._client.copy(
                    {"Bucket": self.bucket, "Key": self._prefix + source},
                    self.bucket,
                    self._prefix + target,
                )

        _each(one, keys)

    def keys(self, folder: str) -> Iterator[str]:
        """The keys under `folder/`."""
        with self._errors_said():
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=f"{self._prefix}{folder}/"):
                for entry in page.get("Contents", ()):
                    yield entry["Key"].removeprefix(self._prefix)

    def delete(self, keys: Sequence[str]) -> None:
        """Objects that are not there are no error."""
        for start in range(0, len(keys), KEYS_PER_DELETE):
            named = [{"Key": self._prefix + key} for key in keys[start : start + KEYS_PER_DELETE]]
            with self._errors_said():
                answer = self._client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": named, "Quiet": True}
                )
            for refused in answer.get("Errors", ()):
                raise InputError(
                    f"{self.uri}: {refused['Key']} was not deleted ({refused['Message']})"
                )


def _each(work: Any, items: Iterable[Any]) -> None:
    """Runs the work on every item, TRANSFERS at once; the first error ends it."""
    with ThreadPoolExecutor(TRANSFERS) as pool:
        waiting = [pool.submit(work, item) for item in items]
        try:
            for done in waiting:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
