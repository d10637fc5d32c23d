"""The content-addressed store on a file system: nothing is visible before it is whole, nothing is trusted unread.

    <root>/artifacts/<kind>/<key>/   the files of one artifact and manifest.json; appears by one rename
    <root>/work/<kind>-<key>/        being built; what a killed build left, to be taken up again
    <root>/work/<kind>-<key>.once/   the same of a build that cannot be resumed: what a killed one left is wiped
    <root>/locks/, <root>/verified/  one lock a key; the file stamps at the last full hash

A killed build leaves only its work folder. Two builds of one key: the second waits, then finds the first one's result.
`Store("s3://bucket/prefix")` is a `RemoteStore`: the same, published to object storage.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from longloom.storage.atomic import write_atomic
from longloom.storage.manifest import MANIFEST, FileEntry, Manifest, canonical_json, content_digest, list_files
from longloom.storage.refs import ArtifactRef
from longloom.storage.remote import is_remote
from longloom.storage.stamps import Stamps
from longloom.storage.stats import Stats

#: Of an artifact below the root, as references have it.
_PLACE = re.compile(r"artifacts/[\w.-]{1,100}/[\w.-]{1,100}")


#: Ends the name of the work folder of a build that cannot be resumed.
_ONCE = ".once"
#: Seconds by which the times of a file system may lag behind the clock.
_COARSE = 2.0


class DamagedArtifact(ValueError):
    """An artifact whose bytes are not those of its manifest, or no longer those of a reference."""


class Store:
    """Artifacts below one folder.

    Args:
        root: the folder, made when missing; or an address of object storage: then this makes a `RemoteStore`, as
            `pathlib.Path` makes a path of the system it runs on.
        frozen: nothing may be built; a stage that is not there is an error.

    Attributes:
        root: the folder on this host.
        address: what leads to this store from another process: the folder, or the address of object storage.

    Raises:
        ValueError: `root` is a file, or cannot be written.
    """

    def __new__(cls, root: str | Path, *, frozen: bool = False) -> Store:
        """The kind of store that the address asks for."""
        if cls is Store and is_remote(root):
            from longloom.storage.remote_store import RemoteStore

            return super().__new__(RemoteStore)
        return super().__new__(cls)

    def __init__(self, root: str | Path, *, frozen: bool = False) -> None:
        if not str(root):
            raise ValueError("store '': is empty, expected a folder or an address of object storage")
        self.frozen = frozen
        self.root = Path(root).expanduser().absolute()
        self.address = str(self.root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ValueError(f"store {root}: is a file, expected a folder") from None
        except PermissionError:
            raise ValueError(f"store {root}: cannot be written") from None

    # ---- places

    def artifact_folder(self, kind: str, key: str) -> Path:
        """Where an artifact lies once it is published."""
        return self.root / "artifacts" / kind / key

    def work_folder(self, kind: str, key: str, *, resume: bool) -> Path:
        """Where it is built; with `resume`, by a build that a later one can go on with."""
        return self.root / "work" / f"{kind}-{key}{'' if resume else _ONCE}"

    @contextlib.contextmanager
    def lock(self, kind: str, key: str, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Held by the one process that builds this key; freed by the system when that process dies.

        Args:
            kind, key: of the artifact.
            on_wait: called once if another process holds it.
        """
        lock = self.file_lock(f"{kind}-{key}")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if on_wait is not None:
                on_wait()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def file_lock(self, name: str) -> FileLock:
        """A lock between processes, not yet taken: `<root>/locks/<name>.lock`."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name}.lock", thread_local=False)

    # ---- reading

    def find(self, kind: str, key: str) -> ArtifactRef | None:
        """The verified artifact under this key; None when it is missing or damaged (then `publish` replaces it)."""
        folder = self.artifact_folder(kind, key)
        if not (folder / MANIFEST).exists():
            return None
        try:
            return self.verify(folder).ref()
        except DamagedArtifact:
            return None

    def open(self, ref: ArtifactRef) -> Path:
        """The folder of a verified artifact.

        Raises:
            FileNotFoundError: no such artifact in this store.
            DamagedArtifact: its bytes changed since it was published, or it was built again with others.
        """
        folder = self._place(ref)
        manifest = self.verify(folder)
        if manifest.digest != ref.digest:  # since something in it had failed, or it was damaged
            raise DamagedArtifact(
                f"{ref.uri}: was built again, on {manifest.created[:10]} at {manifest.created[11:19]} UTC, with other"
                f" content: found {manifest.digest[:12]}, expected {ref.digest[:12]}; name a run since then"
            )
        return folder

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """The manifest of an artifact (its files are not read)."""
        return self._read_manifest(self._place(ref))

    def _place(self, ref: ArtifactRef) -> Path:
        folder = (self.root / ref.uri).resolve() if _PLACE.fullmatch(ref.uri) else self.root
        if not folder.is_relative_to((self.root / "artifacts").resolve()):
            raise ValueError(f"{ref.uri!r:.100}: lies outside the store {self.address}")
        if not folder.is_dir():
            raise FileNotFoundError(f"{ref.uri}: no such artifact in the store {self.address}")
        return folder

    def _read_manifest(self, folder: Path) -> Manifest:
        try:
            return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise DamagedArtifact(f"{folder.name}: its {MANIFEST} cannot be read ({reason})") from None

    def verify(self, folder: Path) -> Manifest:
        """Reads the manifest and hashes each file whose stamp is not the one of its last full hash.

        Raises:
            DamagedArtifact: a file is missing, changed or added (hidden ones do not count), there is a link, or the
                manifest is damaged.
        """
        manifest = self._read_manifest(folder)
        if (folder.parent.name, folder.name) != (manifest.kind, manifest.key):
            raise DamagedArtifact(f"{folder.name}: holds the manifest of {manifest.kind}/{manifest.key}")
        name = f"{manifest.kind}/{manifest.key}"
        if not manifest.is_whole():
            raise DamagedArtifact(f"{name}: its {MANIFEST} was changed after publishing")
        stamps = Stamps(self._stamps_file(manifest.kind, manifest.key))
        link = next((path for path in sorted(folder.rglob("*")) if path.is_symlink()), None)
        if link is not None:  # `publish` writes none: it could lead to any file of the host
            raise DamagedArtifact(f"{name}: {link.relative_to(folder)} is a link, expected a file of its own")
        for entry in manifest.files:
            try:
                digest = stamps.digest(folder / entry.path, entry.path)
            except FileNotFoundError:
                raise DamagedArtifact(f"{name}: {entry.path} is missing") from None
            except OSError as error:
                raise DamagedArtifact(f"{name}: {entry.path} cannot be read ({error.strerror})") from None
            if digest != entry.sha256:
                raise DamagedArtifact(f"{name}: {entry.path} was changed after publishing")
        found = (path.relative_to(folder) for path in list_files(folder))
        visible = {path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)}
        added = visible - {entry.path for entry in manifest.files}
        if added:  # whoever reads `documents-*.parquet` would read it too
            raise DamagedArtifact(f"{name}: {min(added)} was added after publishing")
        stamps.save()
        return manifest

    def _stamps_file(self, kind: str, key: str) -> Path:
        return self.root / "verified" / f"{kind}-{key}.json"

    # ---- writing

    def begin(self, kind: str, key: str, *, resume: bool) -> Path:
        """The work folder: empty, or with `resume` as a killed build left it. Call under `lock`."""
        folder = self.work_folder(kind, key, resume=resume)
        if folder.exists() and not resume:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # `gc` goes by it: a build that is killed before it writes needs what was there too
        for path in (folder / MANIFEST, *folder.glob(f".{MANIFEST}.*")):  # killed while publishing: not the body's
            path.unlink(missing_ok=True)
        return folder

    def abandon(self, kind: str, key: str) -> None:
        """Deletes the work folder of a build that failed and cannot be resumed. Call under `lock`."""
        shutil.rmtree(self.work_folder(kind, key, resume=False), ignore_errors=True)

    def publish(
        self,
        work: Path,
        stats: Stats,
        *,
        stage: str,
        version: int,
        kind: str,
        key: str,
        parameters: dict[str, object],
        parents: dict[str, str],
        runtime: dict[str, object],
        seconds: float,
        code: str,
        environment: dict[str, str],
    ) -> ArtifactRef:
        """Hashes the work folder, writes the manifest last, and renames the whole into place. Call under `lock`.

        Raises:
            ValueError: the build wrote nothing or a link, named a volatile file that it did not write, or has a
                finding that is no JSON.
        """
        for name, value in stats.values.items():
            try:
                canonical_json(value)
            except (TypeError, ValueError) as error:
                found = repr(value)[:100]
                raise ValueError(f"stage {stage}: the finding {name} is {found}, expected JSON ({error})") from None
        link = next((path for path in sorted(work.rglob("*")) if path.is_symlink()), None)
        if link is not None:
            raise ValueError(f"stage {stage}: wrote the link {link.relative_to(work)}, expected files of its own")
        paths = list_files(work)
        names = {path.relative_to(work).as_posix() for path in paths}
        if not names or not set(stats.volatile) <= names:
            missing = sorted(set(stats.volatile) - names) or "any file"
            raise ValueError(f"stage {stage}: did not write {missing}")
        entries = []
        self._stamps_file(kind, key).unlink(missing_ok=True)
        stamps = Stamps(self._stamps_file(kind, key))
        for path in paths:
            name = path.relative_to(work).as_posix()
            with path.open("rb") as file:
                os.fsync(file.fileno())
            digest = stamps.digest(path, name)
            entries.append(
                FileEntry(path=name, bytes=path.stat().st_size, sha256=digest, volatile=name in stats.volatile)
            )
        manifest = Manifest(
            stage=stage,
            version=version,
            kind=kind,
            key=key,
            digest=content_digest(entries),
            parameters=parameters,
            runtime=runtime,
            parents=parents,
            counts=stats.counts,
            values=stats.values,
            files=entries,
            seconds=round(seconds, 3),
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            code=code,
            environment=environment,
        ).sealed()
        write_atomic(work / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        self._put_in_place(work, manifest)
        stamps.save()  # a rename of the folder leaves the stamps of its files as they are
        return self._share(manifest)

    def _put_in_place(self, work: Path, manifest: Manifest) -> None:
        target = self.artifact_folder(manifest.kind, manifest.key)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # a damaged one: out of the way first, since a rename cannot replace a full folder
            self._discard(target)
        work.rename(target)

    def _share(self, manifest: Manifest) -> ArtifactRef:
        """What others find under this key, now that the artifact is in its place here."""
        return manifest.ref()

    def _discard(self, folder: Path) -> None:
        trash = self.root / "work" / f"trash-{uuid.uuid4().hex}"
        trash.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)  # what is left of it goes with the next gc

    # ---- upkeep

    def manifests(self) -> Iterator[Manifest]:
        """The manifests of all artifacts that can be read, oldest first."""
        found = []
        for path in self.records("artifacts").glob(f"*/*/{MANIFEST}"):
            with contextlib.suppress(DamagedArtifact):
                found.append(self._read_manifest(path.parent))
        yield from sorted(found, key=lambda manifest: (manifest.created, manifest.key))

    def gc(self, keep: set[str], *, begun_since: float | None = None) -> list[str]:
        """Deletes every artifact but those with a digest in `keep` and their ancestors, and dead work folders.

        What a process is building at the moment stays.

        Args:
            keep: digests of artifacts that must stay.
            begun_since: half-done work that can be resumed stays if a build began it or went on with it since this
                moment, in seconds since 1970; None: all of it goes.

        Returns:
            What was deleted: `<kind>/<key>` of artifacts, `work/<name>` of work folders.
        """
        folders = sorted(self.root.glob("artifacts/*/*"))  # before the manifests: what is published from now on stays
        kept = self._needed(keep)
        deleted = []
        for folder in folders:
            kind, key = folder.parent.name, folder.name
            if (kind, key) not in kept:
                with contextlib.suppress(Timeout), self.file_lock(f"{kind}-{key}").acquire(blocking=False):
                    self._discard(folder)
                    self._stamps_file(kind, key).unlink(missing_ok=True)
                    deleted.append(f"{kind}/{key}")
        for folder in sorted(self.root.glob("work/*")):
            if begun_since is not None and _is_half_done(folder, begun_since):
                continue
            name = folder.name.removesuffix(_ONCE)
            with contextlib.suppress(Timeout), self.file_lock(name).acquire(blocking=False):
                shutil.rmtree(folder, ignore_errors=True)
                deleted.append(f"work/{folder.name}")
        return deleted

    def _needed(self, keep: set[str]) -> set[tuple[str, str]]:
        """(kind, key) of the artifacts with these digests and of their ancestors."""
        manifests = list(self.manifests())
        alive = set(keep)
        while True:
            parents = {
                digest for manifest in manifests if manifest.digest in alive for digest in manifest.parents.values()
            }
            if parents <= alive:
                break
            alive |= parents
        return {(manifest.kind, manifest.key) for manifest in manifests if manifest.digest in alive}

    def check(self) -> Iterator[tuple[str, DamagedArtifact | None]]:
        """Reads every byte of every artifact, whatever its stamp says: `<kind>/<key>`, and what is wrong with it."""
        shutil.rmtree(self.root / "verified", ignore_errors=True)
        for folder in sorted(self.root.glob("artifacts/*/*")):
            name = f"{folder.parent.name}/{folder.name}"
            try:
                self.verify(folder)
            except DamagedArtifact as error:
                yield name, error
            else:
                yield name, None

    # ---- small records (of runs): whole files that are replaced

    def records(self, prefix: str) -> Path:
        """The folder of the records below `prefix`, as they are now."""
        return self.root / prefix

    def write_record(self, name: str, text: str) -> None:
        """Writes or replaces the record `<prefix>/<name>`."""
        write_atomic(self.root / name, text)

    def delete_record(self, name: str) -> None:
        """Deletes a record; one that is not there is no error."""
        (self.root / name).unlink(missing_ok=True)

    def heard_of(self, name: str) -> bool:
        """Whether another host, whose locks are not seen here, still keeps this record up to date."""
        return False

    def keeping(self, write: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """While it is held, `write` is called so often that other hosts `heard_of` its record."""
        return contextlib.nullcontext()


def _is_half_done(folder: Path, since: float) -> bool:
    """Whether a work folder can be resumed and was in use since then."""
    if folder.name.endswith(_ONCE) or folder.name.startswith(("trash-", "fetch-")):
        return False
    with contextlib.suppress(FileNotFoundError):  # published meanwhile
        return folder.stat().st_mtime >= since - _COARSE
    return False
