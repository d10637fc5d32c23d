"""A needle in a haystack: a fact at every depth of contexts of every length, to be found again (one needle).

Source: gkamradt/LLMTest_NeedleInAHaystack for the grid and the insertion; RULER (arXiv 2404.06654) for exact lengths
that include the answer's room, and for the rating by containment.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from longloom.evals.matching import dataset_score, string_match
from longloom.evals.needle.haystack import STYLES, Stream, insert
from longloom.evals.protocol import Request, render
from longloom.evals.suite import Parts, Source, Suite, make_record, unknown_task

TASK = "single"
MAX_NEW_TOKENS = 32

#: Names of keys: an adjective and a noun. They are the words that the demo's training pool leaves out.
ADJECTIVES = (
    *("azure", "bright", "crimson", "distant", "eager", "frosty", "golden", "humble"),
    *("ivory", "mellow", "noble", "proud", "rusty", "shady", "velvet", "wild"),
)
NOUNS = (
    *("arrow", "bridge", "castle", "drum", "engine", "falcon", "glacier", "hammer"),
    *("insect", "jacket", "kingdom", "ladder", "mirror", "needle", "palace", "rocket"),
)

_DEFAULTS: dict[str, Any] = {
    "samples": 1,
    "style": "prose",
    "needle": "The pass key for {key} is {value}.",
    "question": "What is the pass key for {key}?",
    "answer": "{value}",
}
_ROUNDS = 16
_MOST_EMPTY = 1000


class Needle(Suite):
    """The grid of one needle.

    Options:
        lengths: tokens of prompt (chat template included) and answer together, a list; needed.
        depths: per cent of the haystack before the needle, 0 to 100, a list; needed.
        samples: haystacks a cell.
        style: "prose", or "code" where the needle stands as a comment line.
        needle, question, answer: templates of {key} (a drawn name) and {value} (a drawn number of five digits); a
            prediction is right if it contains the answer.
    """

    name = "needle"
    option_names = ("lengths", "depths", *_DEFAULTS)

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        if source.data is None:
            raise ValueError("suite 'needle' needs data: a corpus (documents-*.parquet) or a folder of .txt files")
        options = {**_DEFAULTS, **source.options}
        self._lengths = _numbers("lengths", options.get("lengths"), low=1, high=None)
        self._depths = _numbers("depths", options.get("depths"), low=0, high=100)
        self._samples = _numbers("samples", [options["samples"]], low=1, high=None)[0]
        self._style = options["style"]
        if self._style not in STYLES:
            raise ValueError(f"suite 'needle': style is {self._style!r}, expected one of {', '.join(STYLES)}")
        self._templates = {name: _template(name, options[name]) for name in ("needle", "question", "answer")}

    def tasks(self) -> list[str]:
        return [TASK]

    def metric(self, task: str) -> str:
        _check(task)
        return "string_match"

    def max_new_tokens(self, task: str) -> int:
        _check(task)
        return MAX_NEW_TOKENS

    def records(self, task: str) -> list[dict[str, Any]]:
        """Every length, depth and sample; the depths of a length share their haystacks, so that they compare."""
        _check(task)
        assert self.source.data is not None
        stream = Stream(self.source.data)
        rng = random.Random(self.source.seed)
        records = []
        for length in self._lengths:
            for _ in range(self._samples):
                haystack = _Haystack(stream, self._tokenizer(), length)
                for depth in self._depths:
                    texts = self._draw(rng)
                    request = self._fit(haystack, length, depth, texts)
                    records.append(make_record([request], [texts["answer"]], length=length, depth=float(depth)))
        return records

    def rate(self, task: str, prediction: str, record: Mapping[str, Any]) -> Parts:
        return {"score": string_match(prediction, record["references"])}

    def score(self, task: str, ratings: Sequence[Parts]) -> float:
        return dataset_score([parts["score"] for parts in ratings])

    def _tokenizer(self) -> Any:
        if self.source.tokenizer is None:
            raise ValueError("suite 'needle' needs the tokenizer of the model under test, to measure its lengths")
        return self.source.tokenizer

    def _draw(self, rng: random.Random) -> dict[str, str]:
        key = f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
        value = str(rng.randint(10_000, 99_999))
        return {name: template.format(key=key, value=value) for name, template in self._templates.items()}

    def _fit(self, haystack: _Haystack, length: int, depth: float, texts: Mapping[str, str]) -> Request:
        """The prompt with as much of the haystack as fits."""
        room = length - MAX_NEW_TOKENS
        tokenizer = self._tokenizer()
        best: Request | None = None
        fits, most = 0, min(haystack.tokens, max(room, 0))  # haystack tokens known to fit, and worth trying
        keep = most
        for _ in range(_ROUNDS):
            if keep <= fits:
                break
            request = self._request(haystack, keep, depth, texts)
            spare = room - len(render(request, tokenizer, request.document))
            if spare >= 0:
                best, fits = request, keep
            else:
                most = keep - 1
            # Tokens join and part at the seams, so a first try can be off by some.
            keep = min(max(keep + spare, fits + (spare < 0)), most)
        if best is None:
            request = self._request(haystack, 0, depth, texts)
            bare = len(render(request, tokenizer, request.document))
            raise ValueError(
                f"suite 'needle': length {length} is too short: needle, question and template take about {bare} "
                f"tokens, the answer {MAX_NEW_TOKENS}; expected more than {bare + MAX_NEW_TOKENS}"
            )
        return best

    def _request(self, haystack: _Haystack, keep: int, depth: float, texts: Mapping[str, str]) -> Request:
        text = haystack.first(keep)
        at = len(haystack.first(int(keep * depth / 100)))
        context = insert(text, texts["needle"], at=at, depth=depth, style=self._style)
        return Request(f"{context}\n\n{texts['question']}", cut="never")


class _Haystack:
    """A text of at least `length` tokens, to be cut between its tokens."""

    def __init__(self, stream: Stream, tokenizer: Any, length: int) -> None:
        text = ""
        self._ends: list[int] = []
        empty = 0
        while len(self._ends) < length:
            piece = f"\n\n{stream.next()}" if text else stream.next()
            offsets = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            self._ends += [len(text) + end for _, end in offsets["offset_mapping"]]
            text += piece
            empty = 0 if offsets["input_ids"] else empty + 1
            if empty == _MOST_EMPTY:
                raise ValueError(f"suite 'needle': {empty} documents in a row have no tokens, expected some text")
        self._text = text
        self.tokens = len(self._ends)

    def first(self, tokens: int) -> str:
        """The text of the first tokens."""
        return self._text[: self._ends[tokens - 1]] if tokens else ""


def _numbers(name: str, values: Any, *, low: int, high: int | None) -> list[Any]:
    expected = f"numbers from {low}" + (f" to {high}" if high is not None else "")
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"suite 'needle': {name} is {values!r}, expected a list of {expected}")
    for value in values:
        whole = isinstance(value, int) or (high is not None and isinstance(value, float))
        if isinstance(value, bool) or not whole or value < low or (high is not None and value > high):
            raise ValueError(f"suite 'needle': {name} holds {value!r}, expected {expected}")
    return list(values)


def _template(name: str, template: Any) -> str:
    try:
        template.format(key="", value="")
    except (AttributeError, KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"suite 'needle': {name} is {template!r}, expected a text with {{key}} and {{value}} ({error})"
        ) from None
    return str(template)


def _check(task: str) -> None:
    if task != TASK:
        raise unknown_task("needle", task, [TASK])
