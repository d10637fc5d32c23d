"""Haystacks: text of an exact number of tokens out of any documents, and a needle put into it at a depth."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from longloom.storage.parquet import iter_batches

#: The ends of sentences in prose: a full stop and what closes it, before white space; or the end of a line.
SENTENCE_END = re.compile(r"[.!?。！？][\"'”’)\]]*(?=\s)|\n")

#: How a needle is written into prose, and into code, where it stands as a comment on a line of its own.
STYLES = ("prose", "code")


def documents(data: Path) -> Iterator[str]:
    """The texts of a corpus artifact, or of a folder's `.txt` files (hidden ones left out), in order.

    Raises:
        ValueError: neither is there, or nothing but blank texts.
    """
    found = False
    for text in _texts(data):
        if text.strip():
            found = True
            yield text
    if not found:
        raise ValueError(f"{data} has no text, expected a corpus (documents-*.parquet) or a folder of .txt files")


def _texts(data: Path) -> Iterator[str]:
    if any(data.glob("documents*.parquet")):
        for batch in iter_batches(data, "documents", columns=["text"], batch_size=64):
            try:
                yield from batch.column("text").to_pylist()
            except UnicodeDecodeError as error:
                raise ValueError(f"{data}: a text is not UTF-8 ({error.reason} at byte {error.start})") from None
    else:
        # Hidden files are no part of a folder's fingerprint.
        for path in sorted(path for path in data.glob("*.txt") if not path.name.startswith(".")):
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from None


class Stream:
    """Deals out the documents one after another, starting again at the end: no text is used twice before all were."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._documents = documents(data)

    def next(self) -> str:
        """The next document (ValueError if there is none)."""
        try:
            return next(self._documents)
        except StopIteration:
            self._documents = documents(self._data)
            return next(self._documents)


def insert(haystack: str, needle: str, *, at: int, depth: float, style: str) -> str:
    """Puts a needle into a haystack.

    Args:
        haystack: the text.
        needle: a sentence.
        at: the place in characters; the needle goes to the end of the sentence (code: line) before it.
        depth: 100 appends it, whatever the place.
        style: one of STYLES.

    Source: gkamradt/LLMTest_NeedleInAHaystack, `insert_needle`: back to the last full stop; depth 100 appends.
    """
    end = _end_before(haystack, at, style)
    if style == "code":
        line = f"# {needle}"
        return f"{haystack}\n{line}" if depth == 100 else f"{haystack[:end]}{line}\n{haystack[end:]}"
    if depth == 100:
        return f"{haystack} {needle}"
    if end == 0:
        return f"{needle} {haystack}"
    space = "" if haystack[end - 1] == "\n" else " "
    follow = " " if haystack[end - 1] == "\n" else ""
    return haystack[:end] + space + needle + follow + haystack[end:]


def insert_all(haystack: str, needles: Sequence[str], *, at: Sequence[int], depth: float, style: str) -> str:
    """Puts several needles into a haystack, each as `insert` does; those of one sentence end stay in order.

    Args:
        haystack: the text.
        needles: sentences.
        at: their places in characters of the haystack without needles.
        depth: 100 appends them, whatever the places.
        style: one of STYLES.
    """
    together: dict[int, list[str]] = {}
    for needle, place in zip(needles, at, strict=True):
        together.setdefault(_end_before(haystack, place, style), []).append(needle)
    joint = "\n# " if style == "code" else " "
    for end in sorted(together, reverse=True):  # from the back, so that the places before stay what they are
        haystack = insert(haystack, joint.join(together[end]), at=end, depth=depth, style=style)
    return haystack


def _end_before(haystack: str, at: int, style: str) -> int:
    """The end of the last sentence (code: line) before a place; 0: there is none."""
    if style == "code":
        return haystack.rfind("\n", 0, at) + 1
    end = 0
    for match in SENTENCE_END.finditer(haystack, 0, at + 1):  # one more, for the white space behind a full stop
        if match.end() <= at:
            end = match.end()
    return end
