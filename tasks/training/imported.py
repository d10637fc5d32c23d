"""Brings a model or a tokenizer from a folder or the hub into the store."""

from __future__ import annotations

import shutil
from pathlib import Path

from longloom.storage.stats import Stats

#: What a transformers folder consists of. No pickles: a store that others may write must not hold code.
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*")


def revision(name: str) -> str:
    """`hub:<name>@<commit>` of a model on the hub: its newest; where the hub does not answer, the local cache's.

    Raises:
        ValueError: there is no such folder and no such model, or neither the hub nor its local cache gives it.
    """
    from huggingface_hub.errors import HFValidationError

    from longloom.evals.hub import newest_commit

    try:
        return f"hub:{name}@{newest_commit(name, kind='model')}"
    except HFValidationError:
        raise ValueError(f"model {name!r}: no such folder, and no name that the hub could know") from None
    except Exception as error:  # beside its own errors, those of whichever HTTP library the hub's package uses
        raise ValueError(
            f"model {name!r}: no such folder, and neither the hub nor its local cache gives it ({type(error).__name__})"
        ) from None


def build(source: str, out: Path) -> Stats:
    """Copies a local folder, or downloads from the hub, safetensors and configuration only.

    Args:
        source: a folder, a hub name, or what `revision` says of one: then that commit of it and no later one.
        out: the artifact's folder.

    Raises:
        ValueError: nothing there that transformers could load.
    """
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        name, _, commit = source.removeprefix("hub:").partition("@")
        folder = Path(snapshot_download(name, revision=commit or None, allow_patterns=list(PATTERNS)))
    files = files_of(folder, source)
    for path in files:
        shutil.copyfile(path, out / path.name)
    return Stats(counts={"files": len(files), "bytes": sum(path.stat().st_size for path in files)})


def files_of(folder: Path, source: str) -> list[Path]:
    """The files that transformers would load.

    Args:
        folder: where they are.
        source: what to call it.

    Raises:
        ValueError: nothing there that transformers could load.
    """
    if not folder.is_dir():
        raise ValueError(f"model {source}: is a file, expected a transformers folder")
    files = sorted({path for pattern in PATTERNS for path in folder.glob(pattern) if path.name != "manifest.json"})
    names = {path.name for path in files}
    weights = any(path.suffix == ".safetensors" for path in files)
    if not names & {"config.json", "tokenizer.json", "tokenizer_config.json"}:
        raise ValueError(f"model {source}: holds no config.json and no tokenizer.json, expected a transformers folder")
    if "config.json" in names and not weights:
        raise ValueError(f"model {source}: holds no *.safetensors, expected its weights in that format")
    if weights and "config.json" not in names:
        raise ValueError(f"model {source}: holds *.safetensors and no config.json, expected a whole model, no adapter")
    return files
