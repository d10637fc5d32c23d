"""The content-addressed store on a file system: nothing is visible before it is whole, nothing is trusted unread.

    <root>/artifacts/<kind>/<key>/   the files of one artifact and manifest.json; appears by one rename
    <root>/work/<kind>-<key>/        being built; what a killed build left, to be taken up again or wiped
    <root>/locks/, <root>/verified/  one lock a key; the file stamps at the last full hash

A killed build leaves only its work folder. Two builds of one key: the second waits, then finds the first one's result.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from longloom.storage.manifest import MANIFEST, FileEntry, Manifest, content_digest, hash_file, list_files
from longloom.storage.refs import ArtifactRef
from longloom.storage.stats import Stats


class DamagedArtifact(ValueError):
    """An artifact whose bytes are not those of its manifest."""


def file_stamp(path: Path) -> list[int]:
    """[size, mtime, ctime, inode]: changes with every ordinary write, as in git's index."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def write_atomic(path: Path, text: str) -> None:
    """Writes `text` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Store:
    """Artifacts below one folder.

    Args:
        root: the folder; made when missing.
        frozen: nothing may be built; a stage that is not there is an error.

    Raises:
        ValueError: `root` is a file, or cannot be written.
    """

    def __init__(self, root: str | Path, *, frozen: bool = False) -> None:
        self.frozen = frozen
        self.root = Path(root).expanduser().absolute()
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

    def work_folder(self, kind: str, key: str) -> Path:
        """Where it is built."""
        return self.root / "work" / f"{kind}-{key}"

    @contextlib.contextmanager
    def lock(self, kind: str, key: str) -> Iterator[None]:
        """Held by the one process that builds this key; freed by the system when that process dies."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{kind}-{key}.lock"):
            yield

    # ---- reading

    def find(self, kind: str, key: str) -> ArtifactRef | None:
        """The verified artifact under this key; None when it is missing or damaged (a damaged one is set aside)."""
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
            DamagedArtifact: its bytes changed since it was published.
        """
        folder = self._place(ref)
        manifest = self.verify(folder)
        if manifest.digest != ref.digest:
            raise DamagedArtifact(f"{ref.uri}: digest {manifest.digest[:12]}, expected {ref.digest[:12]}")
        return folder

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """The manifest of an artifact (its files are not read)."""
        return self._read_manifest(self._place(ref))

    def _place(self, ref: ArtifactRef) -> Path:
        folder = (self.root / ref.uri).resolve()
        if not folder.is_relative_to((self.root / "artifacts").resolve()):
            raise ValueError(f"{ref.uri}: lies outside the store {self.root}")
        if not folder.is_dir():
            raise FileNotFoundError(f"{ref.uri}: no such artifact in the store {self.root}")
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
            DamagedArtifact: a file is missing or changed, or the manifest is.
        """
        manifest = self._read_manifest(folder)
        if (folder.parent.name, folder.name) != (manifest.kind, manifest.key):
            raise DamagedArtifact(f"{folder.name}: holds the manifest of {manifest.kind}/{manifest.key}")
        stamps_file = self.root / "verified" / f"{manifest.kind}-{manifest.key}.json"
        try:
            stamps = json.loads(stamps_file.read_bytes())
        except (OSError, ValueError):
            stamps = {}
        fresh: dict[str, list[object]] = {}
        for entry in manifest.files:
            path = folder / entry.path
            try:
                stamp = [*file_stamp(path), entry.sha256]
            except OSError:
                raise DamagedArtifact(f"{manifest.kind}/{manifest.key}: {entry.path} is missing") from None
            if stamps.get(entry.path) != stamp and (stamp[0] != entry.bytes or hash_file(path) != entry.sha256):
                raise DamagedArtifact(f"{manifest.kind}/{manifest.key}: {entry.path} was changed after publishing")
            fresh[entry.path] = stamp
        if content_digest(manifest.files) != manifest.digest:
            raise DamagedArtifact(f"{manifest.kind}/{manifest.key}: its manifest contradicts itself")
        if fresh != stamps:
            write_atomic(stamps_file, json.dumps(fresh))
        return manifest

    # ---- writing

    def begin(self, kind: str, key: str, *, resume: bool) -> Path:
        """The work folder: empty, or with `resume` as a killed build left it. Call under `lock`."""
        folder = self.work_folder(kind, key)
        if folder.exists() and not resume:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

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
            ValueError: the build wrote nothing, or named a volatile file that it did not write.
        """
        paths = list_files(work)
        names = {path.relative_to(work).as_posix() for path in paths}
        if not names or not set(stats.volatile) <= names:
            missing = sorted(set(stats.volatile) - names) or "any file"
            raise ValueError(f"stage {stage}: did not write {missing}")
        entries = []
        for path in paths:
            name = path.relative_to(work).as_posix()
            with path.open("rb") as file:
                os.fsync(file.fileno())
            entries.append(
                FileEntry(path=name, bytes=path.stat().st_size, sha256=hash_file(path), volatile=name in stats.volatile)
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
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            code=code,
            environment=environment,
        )
        write_atomic(work / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        target = self.artifact_folder(kind, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # a damaged one: out of the way first, since a rename cannot replace a full folder
            self._discard(target)
        work.rename(target)
        self.verify(target)
        return manifest.ref()

    def _discard(self, folder: Path) -> None:
        trash = self.root / "work" / f"trash-{uuid.uuid4().hex}"
        trash.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(trash)
        shutil.rmtree(trash)

    # ---- upkeep

    def manifests(self) -> Iterator[Manifest]:
        """The manifests of all artifacts that can be read, oldest first."""
        found = []
        for path in self.root.glob(f"artifacts/*/*/{MANIFEST}"):
            with contextlib.suppress(DamagedArtifact):
                found.append(self._read_manifest(path.parent))
        yield from sorted(found, key=lambda manifest: (manifest.created, manifest.key))

    def gc(self, keep: set[str]) -> list[str]:
        """Deletes every artifact but those with a digest in `keep` and their ancestors, and all dead work folders.

        Args:
            keep: digests of artifacts that must stay.

        Returns:
            What was deleted: `<kind>/<key>` of artifacts, `work/<name>` of work folders.
        """
        manifests = list(self.manifests())
        alive = set(keep)
        while True:
            parents = {
                digest for manifest in manifests if manifest.digest in alive for digest in manifest.parents.values()
            }
            if parents <= alive:
                break
            alive |= parents
        kept = {(manifest.kind, manifest.key) for manifest in manifests if manifest.digest in alive}
        deleted = []
        for folder in sorted(self.root.glob("artifacts/*/*")):
            name = (folder.parent.name, folder.name)
            if name not in kept:
                with self.lock(*name):
                    self._discard(folder)
                (self.root / "verified" / "{}-{}.json".format(*name)).unlink(missing_ok=True)
                deleted.append("/".join(name))
        for folder in sorted(self.root.glob("work/*")):
            lock = FileLock(self.root / "locks" / f"{folder.name}.lock", blocking=False)
            with contextlib.suppress(TimeoutError), lock:  # held: a build is going on in it
                shutil.rmtree(folder)
                deleted.append(f"work/{folder.name}")
        return deleted
