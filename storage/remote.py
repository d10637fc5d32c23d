"""Object storage below one address, by fsspec: small records, and files that nobody overwrites.

    <address>/artifacts/<kind>/<key>/manifest.json   written once its files are there; what has none is not published
    <address>/files/<kind>/<key>/<seal>/             those files; the seal is the manifest's, so no other upload's
    <address>/runs/<id>.json                         records of runs

Endpoint, region and keys are found by the file system itself, for S3 in the environment (AWS_*) or in ~/.aws.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

#: Files on their way at once; each upload may hold 100 MB of a file in memory.
TRANSFERS = 4
#: Records asked for at once.
_BATCH = 500
#: What others named must not lead out of the folder that it is written to.
NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
#: By protocol; listings are never remembered, since other hosts write too.
_OPTIONS: dict[str, dict[str, object]] = {"file": {"auto_mkdir": True}, "local": {"auto_mkdir": True}}
_INSTALL = {"s3": "s3fs: pip install -c constraints.txt -e .[s3]"}


class StoreUnreachable(ConnectionError):
    """A store that does not answer, after all retries."""


def is_remote(address: str | Path) -> bool:
    """Whether this is the address of object storage and not a folder."""
    return "://" in str(address)


def local_folder(address: str | Path) -> Path:
    """The folder on this host of a store: itself, or where what lies in object storage is built and read.

    LONGLOOM_CACHE, by default `~/.cache/longloom`, has one folder for each address and endpoint. They may be deleted
    while nothing uses them.
    """
    if not is_remote(address):
        return Path(address).expanduser().absolute()
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    caches = Path(os.environ.get("LONGLOOM_CACHE") or Path(users, "longloom")).expanduser().absolute()
    text = str(address).rstrip("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    digest = hashlib.sha256(f"{endpoint}\n{text}".encode()).hexdigest()[:12]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", text.partition("://")[2])[-60:].strip("-.")
    return caches / f"{name}-{digest}"


class Remote:
    """What lies below one address.

    Every method raises StoreUnreachable once the file system's own retries are used up, and PermissionError when it is
    refused.

    Args:
        address: protocol://bucket/prefix.

    Raises:
        ValueError: it holds a user, a password or a query, has no bucket, or is of no known protocol.
        FileNotFoundError: no such bucket.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if "@" in parts.netloc or parts.query or parts.fragment:
            shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
            raise ValueError(
                f"store {shown}: its address holds a user, a password or options, expected protocol://bucket/prefix;"
                " keys are read from the environment"
            )
        self.address = address.rstrip("/")
        self.protocol = parts.scheme
        if not parts.netloc and self.protocol not in ("file", "local", "memory"):
            raise ValueError(f"store {address}: names no bucket, expected protocol://bucket/prefix")
        self._filesystem()

    # ---- one object

    def read(self, name: str) -> bytes | None:
        """An object's bytes; None: there is none."""
        with self._talk() as (filesystem, root):
            path = f"{root}/{name}"
            try:
                content: bytes = filesystem.cat_file(path, start=0)  # without it s3fs asks for the size first
            except FileNotFoundError:
                return None
            except OSError as error:
                # S3 refuses a range of an empty object, and s3fs calls that an invalid argument.
                if error.errno == errno.EINVAL and filesystem.size(path) == 0:
                    return b""
                raise
            return content

    def write(self, name: str, content: bytes) -> None:
        """Writes an object, in place of another."""
        with self._talk() as (filesystem, root):
            filesystem.pipe_file(f"{root}/{name}", content)

    def create(self, name: str, content: bytes) -> bytes:
        """Writes an object if there is none of this name: of several writers at once, one succeeds.

        Where the server knows no such condition, the last one does.

        Returns:
            What is there now: `content`, or another's.
        """
        for last in (False, False, True):
            with self._talk() as (filesystem, root):
                try:
                    filesystem.pipe_file(f"{root}/{name}", content, mode="create")
                    return content
                except PermissionError:
                    raise
                except OSError as error:
                    # Also when our own first try came through and only its answer was lost; so ask what is there.
                    there = self.read(name)
                    if there is not None:
                        return there
                    if error.errno == errno.ENOSYS:
                        filesystem.pipe_file(f"{root}/{name}", content)
                        return content
                    if last:
                        raise
        raise AssertionError

    def delete(self, name: str) -> None:
        """Deletes an object; one that is not there is no error."""
        with self._talk() as (filesystem, root), contextlib.suppress(FileNotFoundError):
            filesystem.rm_file(f"{root}/{name}")

    def seconds_since(self, name: str) -> float:
        """Since an object was written, by the clock of this host against the server's; infinite: there is none."""
        with self._talk() as (filesystem, root):
            try:
                written: datetime = filesystem.modified(f"{root}/{name}")
            except FileNotFoundError:
                return float("inf")
            return (datetime.now(UTC) - written).total_seconds()

    # ---- many

    def upload(self, folder: Path, names: list[str], prefix: str, *, resume: bool) -> None:
        """Copies files of a folder to below `prefix`; with `resume` not those that are there with the same size."""
        with self._talk() as (filesystem, root):
            place = f"{root}/{prefix}"
            there = filesystem.find(place, detail=True) if resume else {}
            sizes = {path: info["size"] for path, info in there.items()}
            missing = [name for name in names if sizes.get(f"{place}/{name}") != (folder / name).stat().st_size]
            _each(lambda name: filesystem.put_file(str(folder / name), f"{place}/{name}"), missing)

    def download(self, prefix: str, names: list[str], folder: Path) -> None:
        """Copies files from below `prefix` to a folder; what arrives is not checked here, and may be missing.

        Raises:
            FileNotFoundError: one of them is not there.
        """
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with self._talk() as (filesystem, root):

            def fetch(name: str) -> None:
                try:
                    filesystem.get_file(f"{root}/{prefix}/{name}", str(folder / name))
                except Exception as error:
                    if type(error).__name__ != "FlexibleChecksumError":  # botocore's: changed on its way
                        raise
                    (folder / name).unlink(missing_ok=True)

            _each(fetch, names)

    def folders(self, prefix: str, depth: int) -> set[str]:
        """The names, so many parts deep, below which there are objects."""
        with self._talk() as (filesystem, root):
            place = f"{root}/{prefix}/"
            found = (path.removeprefix(place).split("/") for path in filesystem.find(place))
            return {"/".join(parts[:depth]) for parts in found if len(parts) > depth}

    def delete_folder(self, prefix: str) -> None:
        """Deletes every object below `prefix`."""
        with self._talk() as (filesystem, root):
            if found := filesystem.find(f"{root}/{prefix}"):
                filesystem.rm(found)

    def mirror(self, prefix: str, folder: Path) -> None:
        """Makes a folder's files those below `prefix`; fetches only what changed since the last time.

        One lists 1,000 objects a request. Processes of this host wait for each other.
        """
        folder.mkdir(parents=True, exist_ok=True)
        index = folder / ".known"
        with FileLock(folder / ".lock"), self._talk() as (filesystem, root):
            place = f"{root}/{prefix}/"
            listing = filesystem.find(place, detail=True)
            listed = {path.removeprefix(place): _stamp(info) for path, info in listing.items()}
            current = {name: stamp for name, stamp in listed.items() if NAME.fullmatch(name)}
            try:
                known = json.loads(index.read_bytes())
            except (OSError, ValueError):
                known = {}
            changed = [name for name, stamp in current.items() if known.get(name) != stamp]
            for start in range(0, len(changed), _BATCH):
                paths = [f"{place}{name}" for name in changed[start : start + _BATCH]]
                for path, content in filesystem.cat(paths, on_error="return").items():
                    name = path.removeprefix(place)
                    if isinstance(content, FileNotFoundError):  # deleted since it was listed
                        del current[name]
                    elif isinstance(content, Exception):
                        raise content
                    else:
                        _replace(folder / name, content)
            for name in known.keys() - current.keys():
                (folder / name).unlink(missing_ok=True)
            if known != current:
                _replace(index, json.dumps(current).encode())

    # ---- the file system

    @contextlib.contextmanager
    def _talk(self) -> Iterator[tuple[Any, str]]:
        """The file system and the path of the address in it."""
        found = self._filesystem()
        with self._one_line():
            yield found

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        """Says what went wrong in one line, without secrets."""
        try:
            yield
        except (FileNotFoundError, StoreUnreachable):
            raise
        except PermissionError as error:
            raise PermissionError(f"store {self.address}: access is refused ({_reason(error)})") from None
        except OSError as error:
            if error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT):  # this host's disk
                raise
            raise StoreUnreachable(f"store {self.address}: does not answer as it should ({_reason(error)})") from None
        except Exception as error:  # botocore's and aiohttp's derive from nothing else in common
            if type(error).__name__ == "NoCredentialsError":
                raise PermissionError(
                    f"store {self.address}: no keys, expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the"
                    " environment, or ~/.aws"
                ) from None
            raise StoreUnreachable(f"store {self.address}: does not answer as it should ({_reason(error)})") from None

    def _filesystem(self) -> tuple[Any, str]:
        """One for all stores of a process, since it takes a second to make; it does not survive a fork."""
        settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
        known = (os.getpid(), self.address, settings)
        if known not in _filesystems:
            import fsspec

            options = {"use_listings_cache": False, "skip_instance_cache": True, **_OPTIONS.get(self.protocol, {})}
            try:
                filesystem, root = fsspec.url_to_fs(self.address, **options)
            except ImportError:
                needed = _INSTALL.get(self.protocol, f"what fsspec needs for {self.protocol}")
                raise ValueError(f"store {self.address}: needs {needed}") from None
            except ValueError as error:
                raise ValueError(f"store {self.address}: {_reason(error)}") from None
            root = root.rstrip("/")
            if hasattr(filesystem, "call_s3"):
                self._ask_for(filesystem, root.partition("/")[0])
            _filesystems[known] = (filesystem, root)
        return _filesystems[known]

    def _ask_for(self, filesystem: Any, bucket: str) -> None:
        """Better before hours of work than after them."""
        with self._one_line():
            try:
                filesystem.call_s3("head_bucket", Bucket=bucket)
            except FileNotFoundError:
                raise FileNotFoundError(f"store {self.address}: no such bucket, expected one that is there") from None


#: (process, address, AWS_* of the environment) -> file system and the address's path in it.
_filesystems: dict[tuple[int, str, tuple[tuple[str, str], ...]], tuple[Any, str]] = {}


def _each(do: Callable[[str], object], names: list[str]) -> None:
    """Calls `do` with each name, a few at once; after an error, with no more."""
    with ThreadPoolExecutor(TRANSFERS) as pool:
        try:
            for _ in pool.map(do, names):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _stamp(info: dict[str, Any]) -> str:
    """Changes whenever an object is written."""
    return json.dumps(info, sort_keys=True, default=str)


def _replace(path: Path, content: bytes) -> None:
    """As `write_atomic`, but without waiting for the disk: what is lost can be fetched again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)


@functools.cache
def _secrets(values: tuple[str, ...]) -> re.Pattern[str]:
    """Finds users and passwords of addresses, and these values."""
    return re.compile("|".join([r"(?<=//)[^/@\s]*@", *map(re.escape, values)]))


def _reason(error: BaseException) -> str:
    """The first line of an error's text; no keys, whatever a library writes there."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    values = tuple(value for name in names if (value := os.environ.get(name)))
    lines = str(error).splitlines()
    return _secrets(values).sub("", lines[0] if lines and lines[0].strip() else type(error).__name__)
