"""The bucket of the tests, as the store sees it and behind its back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3

from longloom.storage.store import Store

ADDRESS = "s3://shelf/team/store"
SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCY"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE7", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
#: The store as the host of this name sees it: each has a folder of its own.
Host = Callable[[str], Store]


@functools.cache
def shelf() -> Any:
    """The bucket, by a client of our own; call it first under `s3`."""
    return boto3.resource("s3").Bucket("shelf")


def objects() -> dict[str, bytes]:
    """Name below the store's address -> bytes."""
    found = shelf().objects.all()
    return {entry.key.removeprefix("team/store/"): entry.get()["Body"].read() for entry in found}


def put(name: str, content: bytes) -> None:
    """Behind the store's back."""
    shelf().put_object(Key=f"team/store/{name}", Body=content)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def failing(
    *parts: str, methods: str = "PUT", status: int = 500, times: int = 10**6
) -> Callable[[str, str], int | None]:
    """Fails requests whose path has all the parts, so many times; they are not worked on."""
    left = [times]

    def before(method: str, path: str) -> int | None:
        if method in methods.split() and all(part in path for part in parts) and left[0] > 0:
            left[0] -= 1
            return status
        return None

    return before
