"""A store on object storage: artifacts are built and read in a folder of this host, and published by upload.

The files go first, to a place of this manifest alone; then the manifest, on the condition that there is none. So an
artifact is visible only when it is whole, and of two hosts that build one key the first to end is the one that stays:
the other takes its artifact. Hosts do not wait for each other, since equal keys give equal results; processes of one
host do, by the locks of the folder. What is read is downloaded once and held to its manifest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import Timeout
from pydantic import ValidationError

from longloom.storage.manifest import MANIFEST, Manifest
from longloom.storage.refs import ArtifactRef
from longloom.storage.remote import NAME, Remote, local_folder
from longloom.storage.stamps import Stamps
from longloom.storage.store import DamagedArtifact, Store

#: How often a run's record is written, and the age at which the run counts as dead. Clocks may differ by as much as
#: lies between; S3 itself refuses hosts whose clocks are 15 minutes off.
BEAT_SECONDS = 60.0
DEAD_SECONDS = 600.0
#: Times that a file is fetched whose bytes are not those of the manifest.
FETCHES = 3


class RemoteStore(Store):
    """Artifacts below an address of object storage; `Store(address)` makes one.

    Args:
        root: the address, `s3://bucket/prefix`.
        frozen: nothing may be built; a stage that is not there is an error.

    Raises:
        ValueError: the address is of no use, or the folder on this host cannot be written.
        FileNotFoundError: no such bucket.
        PermissionError: the storage refuses us.
        StoreUnreachable: it does not answer. Any method may raise the last two.
    """

    def __init__(self, root: str | Path, *, frozen: bool = False) -> None:
        self._remote = Remote(str(root))
        super().__init__(local_folder(self._remote.address), frozen=frozen)
        self.address = self._remote.address
        self._seen: dict[tuple[str, str], bytes] = {}

    # ---- reading

    def find(self, kind: str, key: str) -> ArtifactRef | None:
        """The verified artifact under this key; None when it is missing or damaged (then `publish` replaces it).

        One that is whole here and not published, since its upload was cut off, is published now.
        """
        here = super().find(kind, key)
        content = self._remote.read(_manifest_name(kind, key))
        if content is None:
            return None if here is None else self._push(kind, key, resume=True)
        self._seen[kind, key] = content
        try:
            manifest = _parse(content, kind, key)
            if here is None or here.digest != manifest.digest:
                self._fetch(manifest, content)
        except DamagedArtifact:
            return None
        return manifest.ref()

    def open(self, ref: ArtifactRef) -> Path:
        """The folder of a verified artifact, downloaded if it is not here.

        Raises:
            FileNotFoundError: no such artifact in this store.
            DamagedArtifact: its bytes are not those that were published, or it was built again with others.
        """
        with contextlib.suppress(FileNotFoundError, DamagedArtifact):
            return super().open(ref)
        kind, key = self._kind_and_key(ref)
        self._fetch(*self._published(kind, key))
        return super().open(ref)

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """The manifest of an artifact (its files are neither read nor downloaded)."""
        with contextlib.suppress(FileNotFoundError, DamagedArtifact):
            return super().manifest(ref)
        return self._published(*self._kind_and_key(ref))[0]

    def files(self, ref: ArtifactRef) -> str:
        """Where the files of a published artifact lie, for those who read object storage themselves."""
        kind, key = self._kind_and_key(ref)
        return f"{self.address}/{_files_name(self._published(kind, key)[0])}"

    def _kind_and_key(self, ref: ArtifactRef) -> tuple[str, str]:
        folder = (self.root / ref.uri).resolve()
        if folder.parent.parent != (self.root / "artifacts").resolve():
            raise ValueError(f"{ref.uri}: lies outside the store {self.address}")
        return folder.parent.name, folder.name

    def _published(self, kind: str, key: str) -> tuple[Manifest, bytes]:
        content = self._remote.read(_manifest_name(kind, key))
        if content is None:
            raise FileNotFoundError(f"artifacts/{kind}/{key}: no such artifact in the store {self.address}")
        return _parse(content, kind, key), content

    def _fetch(self, manifest: Manifest, content: bytes, *, anew: bool = False) -> None:
        """Downloads an artifact into its folder on this host; what a killed download left is gone on with.

        Args:
            manifest, content: as published.
            anew: download each file, even if its bytes are here.

        Raises:
            DamagedArtifact: the bytes in the storage are not those of the manifest.
        """
        name = f"{manifest.kind}-{manifest.key}"
        target = self.artifact_folder(manifest.kind, manifest.key)
        with self.file_lock(f"fetch-{name}"):
            if not anew and self._is_here(target, content):
                return  # another process has fetched it meanwhile
            work = self.root / "work" / f"fetch-{name}"
            if anew:
                shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True, exist_ok=True)
            names = {entry.path for entry in manifest.files}
            for path in [path for path in work.rglob("*") if path.is_file() or path.is_symlink()]:
                if path.is_symlink() or path.relative_to(work).as_posix() not in names:
                    path.unlink()
            stamps = Stamps(self._stamps_file(manifest.kind, manifest.key))
            wanted = {entry.path: entry.sha256 for entry in manifest.files}
            wanted = _differing(work, wanted, stamps)
            for _ in range(FETCHES):
                if not wanted:
                    break
                try:
                    self._remote.download(_files_name(manifest), list(wanted), work)
                except FileNotFoundError as error:
                    raise DamagedArtifact(f"{manifest.kind}/{manifest.key}: a file is missing ({error})") from None
                wanted = _differing(work, wanted, stamps)
            if wanted:
                shutil.rmtree(work, ignore_errors=True)
                lost = f"{min(wanted)} is not what was published"
                raise DamagedArtifact(f"{manifest.kind}/{manifest.key}: {lost}, fetched {FETCHES} times")
            (work / MANIFEST).write_bytes(content)
            super()._put_in_place(work, manifest)
            stamps.save()

    def _is_here(self, target: Path, content: bytes) -> bool:
        try:
            return (target / MANIFEST).read_bytes() == content and self.verify(target) is not None
        except (OSError, DamagedArtifact):
            return False

    # ---- writing

    def _put_in_place(self, work: Path, manifest: Manifest) -> None:
        with self.file_lock(f"fetch-{manifest.kind}-{manifest.key}"):
            super()._put_in_place(work, manifest)

    def _share(self, manifest: Manifest) -> ArtifactRef:
        """Uploads it; where that fails the artifact stays here, for `find` to publish.

        Returns:
            What is published under this key now: another host's, if that was there first.
        """
        return self._push(manifest.kind, manifest.key, resume=False)

    def _push(self, kind: str, key: str, *, resume: bool) -> ArtifactRef:
        """Publishes what is here. It replaces the manifest that `find` saw, or a damaged one, but no other.

        Args:
            kind, key: of the artifact.
            resume: an upload of it may have been begun.
        """
        folder = self.artifact_folder(kind, key)
        content = (folder / MANIFEST).read_bytes()
        manifest = _parse(content, kind, key)
        name = _manifest_name(kind, key)
        self._remote.upload(folder, [entry.path for entry in manifest.files], _files_name(manifest), resume=resume)
        seen = self._seen.pop((kind, key), None)
        while (there := self._remote.create(name, content)) != content:
            if there != seen:
                try:
                    theirs = _parse(there, kind, key)
                    if theirs.digest == manifest.digest:
                        return theirs.ref()
                    self._fetch(theirs, there)
                except DamagedArtifact:
                    seen = there
                else:
                    return theirs.ref()
            self._remote.delete(name)
        return manifest.ref()

    # ---- upkeep

    def gc(self, keep: set[str], *, begun_since: float | None = None) -> list[str]:
        """Deletes as `Store.gc` does, here and in the storage; there also the files of uploads that were cut off.

        Other hosts' locks are not seen: call it while none of them builds.
        """
        published = self._remote.folders("artifacts", 2)  # before the manifests: what is published from now on stays
        uploads = self._remote.folders("files", 3)
        kept = {"/".join(pair) for pair in self._needed(keep)}
        deleted = super().gc(keep, begun_since=begun_since)
        for name in sorted(published - kept):
            kind, key = name.split("/")
            with contextlib.suppress(Timeout), self.file_lock(f"{kind}-{key}").acquire(blocking=False):
                self._remote.delete(_manifest_name(kind, key))  # first: what is visible is whole
                if name not in deleted:
                    deleted.append(name)
        for upload in sorted(uploads):
            kind, key, _ = upload.split("/")
            with contextlib.suppress(Timeout), self.file_lock(f"{kind}-{key}").acquire(blocking=False):
                if upload != self._upload_in_use(kind, key):
                    self._remote.delete_folder(f"files/{upload}")
        return deleted

    def _upload_in_use(self, kind: str, key: str) -> str | None:
        try:
            return _files_name(self._published(kind, key)[0]).removeprefix("files/")
        except (FileNotFoundError, DamagedArtifact):
            return None

    def check(self) -> Iterator[tuple[str, DamagedArtifact | None]]:
        """Downloads every artifact and reads it: `<kind>/<key>`, and what is wrong with it."""
        for name in sorted(self._remote.folders("artifacts", 2)):
            kind, key = name.split("/")
            try:
                self._fetch(*self._published(kind, key), anew=True)
            except DamagedArtifact as error:
                yield name, error
            except FileNotFoundError:  # deleted meanwhile
                continue
            else:
                yield name, None

    # ---- small records

    def records(self, prefix: str) -> Path:
        """A folder with copies of the records below `prefix`, as they are now."""
        folder = self.root / "mirror" / prefix
        self._remote.mirror(prefix, folder)
        return folder

    def write_record(self, name: str, text: str) -> None:
        """Writes or replaces the record `<prefix>/<name>`."""
        self._remote.write(name, text.encode())

    def delete_record(self, name: str) -> None:
        """Deletes a record; one that is not there is no error."""
        self._remote.delete(name)

    def heard_of(self, name: str) -> bool:
        """Whether the record was written within the last minutes."""
        return self._remote.seconds_since(name) < DEAD_SECONDS

    @contextlib.contextmanager
    def keeping(self, write: Callable[[], None]) -> Iterator[None]:
        """While it is held, `write` is called every minute; that one fails must not end hours of work."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT_SECONDS):
                with contextlib.suppress(OSError):
                    write()

        thread = threading.Thread(target=beat, name="longloom-run-record", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _manifest_name(kind: str, key: str) -> str:
    return f"artifacts/{kind}/{key}/{MANIFEST}"


def _files_name(manifest: Manifest) -> str:
    """The seal covers every hash and the moment of building, so equal names hold equal bytes."""
    return f"files/{manifest.kind}/{manifest.key}/{manifest.seal[:32]}"


def _parse(content: bytes, kind: str, key: str) -> Manifest:
    """A manifest as published under this key.

    Raises:
        DamagedArtifact: it is not whole, or another's; or such a key would lead out of the folder of artifacts.
    """
    if not NAME.fullmatch(f"{kind}/{key}"):
        raise DamagedArtifact(
            f"{kind}/{key}: is no place of an artifact, expected names that begin with a letter or a digit"
        )
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        reason = str(error).splitlines()[0]
        raise DamagedArtifact(f"{kind}/{key}: its {MANIFEST} cannot be read ({reason})") from None
    if (manifest.kind, manifest.key) != (kind, key):
        raise DamagedArtifact(f"{kind}/{key}: holds the manifest of {manifest.kind}/{manifest.key}")
    if not manifest.is_whole():
        raise DamagedArtifact(f"{kind}/{key}: its {MANIFEST} was changed after publishing")
    return manifest


def _differing(folder: Path, wanted: dict[str, str], stamps: Stamps) -> dict[str, str]:
    """Those of the files (name -> sha256) that are not there with these bytes."""
    left = {}
    for name, sha256 in wanted.items():
        path = folder / name
        if not os.path.isfile(path) or stamps.digest(path, name) != sha256:
            path.unlink(missing_ok=True)
            left[name] = sha256
    return left
