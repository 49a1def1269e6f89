"""Folders in a bucket, with as much of `pathlib.Path` as a feature cache asks for.

`s3://bucket/prefix` is S3 or anything that speaks its protocol; the address of another service, and who asks, are what
boto3 reads of `AWS_ENDPOINT_URL`, `AWS_PROFILE` and its other variables. An object appears whole or not at all.

boto3 was chosen by what it does in a data worker (docs/shards.md): a client of its own in each process reads on after a
fork, where obstore hangs and s3fs refuses, and it pins no other package.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from llava.errors import MissingFile, NotInstalled, UnwritableFile, UserError

SCHEME = "s3://"
TRIES = 8
"""Of a request, with waits that double: storage that many jobs read at once asks some to come later."""
AT_ONCE = 16
"""Requests in the air while many small objects, or the rows of a batch, are read."""
REMEDY = "look after its name, AWS_ENDPOINT_URL, the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID) and the network"

Item = TypeVar("Item")
Value = TypeVar("Value")


class UnreachableStorage(UserError):
    """A bucket that does not answer, or refuses: nothing can be said of what it holds."""


def open_folder(name: str | os.PathLike[str]) -> Any:
    """A folder by its name: a `Path`, or an `S3Path` for `s3://bucket/prefix`."""
    if isinstance(name, S3Path):
        return name
    text = str(name)
    if not text.startswith(SCHEME):
        return Path(name)
    bucket, _, prefix = text.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise UserError(f"{text}: expected s3://BUCKET/FOLDER")
    return S3Path(bucket, prefix.strip("/"))


def is_remote(name: object) -> bool:
    return str(name).startswith(SCHEME)


class S3Path:
    """A name in a bucket; its methods are those of `Path`, and raise its errors for what is not there.

    Every method that asks the bucket raises `UnreachableStorage` when it does not answer, and `NotInstalled` without
    boto3.
    """

    def __init__(self, bucket: str, key: str) -> None:
        self.bucket, self.key = bucket, key

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"

    def __repr__(self) -> str:
        return f"S3Path({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Path) and str(self) == str(other)

    def __lt__(self, other: S3Path) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> S3Path:
        return S3Path(self.bucket, f"{self.key}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.key).stem

    @property
    def parent(self) -> S3Path:
        above = str(PurePosixPath(self.key).parent)
        return S3Path(self.bucket, "" if above == "." else above)

    def with_suffix(self, suffix: str) -> S3Path:
        return S3Path(self.bucket, str(PurePosixPath(self.key).with_suffix(suffix)))

    def glob(self, pattern: str) -> Iterator[S3Path]:
        """The names below it that a pattern such as `*.json` or `*/settings.json` fits, part by part."""
        parts = pattern.split("/")
        for name in self.sizes():
            found = name.split("/")
            if len(found) == len(parts) and all(map(fnmatchcase, found, parts)):
                yield self / name

    def sizes(self) -> dict[str, int]:
        """Bytes of every object below it, by its name from here: a request for each 1,000."""
        prefix = f"{self.key}/" if self.key else ""

        def ask(client: Any) -> dict[str, int]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return {o["Key"][len(prefix) :]: o["Size"] for page in pages for o in page.get("Contents", ())}

        return _asked(self, ask)

    def exists(self) -> bool:
        try:
            self._head()
        except FileNotFoundError:
            return False
        return True

    def size(self) -> int:
        return int(self._head()["ContentLength"])

    def _head(self) -> Any:
        return _asked(self, lambda client: client.head_object(Bucket=self.bucket, Key=self.key))

    def read_bytes(self) -> bytes:
        return _asked(self, lambda client: client.get_object(Bucket=self.bucket, Key=self.key)["Body"].read())

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def read_range(self, offset: int, size: int) -> bytes:
        """Some bytes of it; fewer where it ends before."""
        span = f"bytes={offset}-{offset + size - 1}"

        def ask(client: Any) -> bytes:
            try:
                return client.get_object(Bucket=self.bucket, Key=self.key, Range=span)["Body"].read()
            except client.exceptions.ClientError as error:
                if error.response.get("Error", {}).get("Code") in ("InvalidRange", "416"):
                    return b""
                raise

        return _asked(self, ask)

    def upload(self, file: IO[bytes]) -> None:
        """Becomes what a file holds from its beginning on, in parts and several at once where it is large.

        Raises:
            OSError: when the bucket refuses.
        """

        def send(client: Any) -> None:
            file.seek(0)
            client.upload_fileobj(_Kept(file), self.bucket, self.key)

        try:
            _asked(self, send)
        except UnreachableStorage as error:
            raise UnwritableFile(errno.EIO, str(error)) from error

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes it; a bucket does not say whether it was there."""
        _asked(self, lambda client: client.delete_object(Bucket=self.bucket, Key=self.key))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a bucket knows no folders."""


class _Kept:
    """A file that stays open when boto3, which closes what it has sent, closes it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def close(self) -> None:
        pass


def read_many(
    items: Sequence[Item], read: Callable[[Item], Value], place: Callable[[Item], Any] = lambda item: item
) -> list[Value]:
    """`read` of each item in their order; those of a bucket `AT_ONCE` at a time, since each waits for an answer.

    The first error in that order is raised, when the requests that are in the air have ended. The threads live as long
    as the call, so that none is there when a process forks.

    Args:
        place: the path or the address of an item.
    """
    if len(items) < 2 or not is_remote(place(items[0])):
        return [read(item) for item in items]
    _asked(open_folder(place(items[0])), lambda client: None)  # Else each thread would make the client of the process.
    with ThreadPoolExecutor(min(AT_ONCE, len(items))) as pool:
        return list(pool.map(read, items))


def _asked(path: S3Path, ask: Callable[[Any], Value]) -> Value:
    """What a request gives, with the errors of files for what they say.

    Raises:
        FileNotFoundError: when the object is not there.
        UnreachableStorage: for everything else.
    """
    try:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise NotInstalled(
            f'{path}: a folder in a bucket needs boto3, which is not installed: pip install -e ".[shards]"'
        ) from error
    try:
        return ask(_client(os.getpid()))
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in ("NoSuchKey", "404"):
            raise MissingFile(f"{path}: no such object") from error
        raise UnreachableStorage(f"{path}: {error}; {REMEDY}") from error
    except (BotoCoreError, Boto3Error, ValueError) as error:
        raise UnreachableStorage(f"{path}: {error}; {REMEDY}") from error


@cache
def _client(process: int) -> Any:
    """The client of a process: one that was forked shares no connection with its parent."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "max_attempts": TRIES}, max_pool_connections=AT_ONCE,
        # Rows have checksums of their own.
        request_checksum_calculation="when_required", response_checksum_validation="when_required",
    )  # fmt: skip
    return boto3.session.Session().client("s3", config=config)
