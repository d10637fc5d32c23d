"""The haystack of prose: the words of essays, or of any corpus, one after another, and again where they do not suffice.

Source: NVIDIA/RULER, `scripts/data/synthetic/niah.py`: white space becomes single spaces, needles stand between
sentences. There nltk finds the sentences; here a full stop does, which needs no model.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from longloom.evals.jsonl import FILLED_TEXT, check_fields
from longloom.evals.needle.haystack import SENTENCE_END, Stream
from longloom.storage.json_text import read_json

#: The official haystack: {"text": all essays}.
OFFICIAL = "PaulGrahamEssays.json"


def has_essays(data: Path) -> bool:
    """Whether a folder holds a haystack: the official file, .txt files, or a corpus artifact."""
    return any(any(data.glob(name)) for name in (OFFICIAL, "*.txt", "documents*.parquet"))


class Essays:
    """The first words of a haystack.

    Args:
        data: a folder with a haystack.
        tokenizer: of the model under test.
        words: how many there shall be; as many as tokens are wanted are enough.

    Raises:
        ValueError: an unreadable haystack, or one without words.
    """

    def __init__(self, data: Path, tokenizer: PreTrainedTokenizerBase, words: int) -> None:
        found: list[str] = []
        for text in _texts(data):
            found += text.split()
            if len(found) >= words:
                break
        del found[words:]
        self.words = len(found)
        self._text = " ".join(found)
        self._word_ends = [end - 1 for end in accumulate(len(word) + 1 for word in found)]
        self._sentence_ends = [match.end() for match in SENTENCE_END.finditer(self._text)]
        tokens = tokenizer(self._text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        self._token_ends = [end for _, end in tokens["offset_mapping"]]

    def cost(self, words: int) -> int:
        """Tokens that so many words take."""
        return bisect_right(self._token_ends, self._word_ends[words - 1]) if words else 0

    def with_needles(self, words: int, needles: Sequence[str], depths: Sequence[int]) -> str:
        """The first words, with needles between their sentences.

        Args:
            words: at least one.
            needles: sentences.
            depths: per cent of the sentences before each needle, ascending.
        """
        end = self._word_ends[words - 1]
        ends = [*self._sentence_ends[: bisect_left(self._sentence_ends, end)], end]
        parts = []
        begin = 0
        for needle, depth in zip(needles, depths, strict=True):
            sentences = int(len(ends) * (depth / 100))
            place = ends[sentences - 1] if sentences else 0
            parts += [self._text[begin:place].strip(), needle]
            begin = place
        parts.append(self._text[begin:end].strip())
        return " ".join(part for part in parts if part)


def _texts(data: Path) -> Iterator[str]:
    path = data / OFFICIAL
    if not path.is_file():
        stream = Stream(data)
        while True:
            yield stream.next()
    content = read_json(path, expected="the official haystack")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a JSON {type(content).__name__}, expected the official haystack, an object")
    check_fields(content, {"text": FILLED_TEXT}, str(path))
    text: str = content["text"]
    while True:
        yield text
