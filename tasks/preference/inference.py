"""The contexts stage: p(z|x), which of a list of candidate contexts a prompt is meant in, before any response is seen.

The first step of the two-step preference model (arXiv 2407.14916). Three ways: `prior`, how often training has each
context; `trained`, a logistic regression on the words of training prompts; or a language model behind an endpoint that
names one. All of them see the prompt alone, so on a reversal set none can be right in more or less than half.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longloom.storage.json_text import read_json
from longloom.storage.parquet import FileWriter, read_table
from longloom.storage.stats import Stats
from longloom.tasks.preference.rows import Row, read_rows

Floats = NDArray[np.float64]

NAME, CANDIDATES = "contexts", "candidates.json"
PRIOR, TRAINED, ENDPOINT = METHODS = ("prior", "trained", "endpoint")
#: A row a comparison: the probability of each candidate.
SCHEMA = pa.schema([("id", pa.string()), ("p", pa.list_(pa.float64()))])

#: Of the trained selector: its vocabulary's size, and rounds of the solver.
_WORDS, _ROUNDS = 20_000, 200

#: Prompts and candidates in; probabilities [n, Z], and the numbers of unread replies and of failed calls out.
Selector = Callable[[Sequence[str], Sequence[str]], tuple[Floats, int, int]]


def build(
    comparisons: Path,
    train: Path | None,
    out: Path,
    *,
    method: str,
    candidates: int,
    sampled: int,
    seed: int,
    endpoint: Selector | None = None,
) -> Stats:
    """Writes `contexts.parquet` of a sample of the comparisons, and `candidates.json`.

    Args:
        comparisons: to be judged; those that are no tie and have a context are sampled, whole prompts at a time.
        train: other comparisons, where the candidates come from; None: the judged ones' own.
        out: an empty folder, but for what belongs to the endpoint.
        method: of METHODS; `trained` needs `train`.
        candidates: contexts at most; see `candidates_of`.
        sampled: comparisons; a prompt more or less is taken whole.
        seed: of the sample.
        endpoint: of the method `endpoint`, else None.

    Returns:
        Counts of comparisons, prompts, candidates, unread replies and failed calls; values: the method, and the mean
        entropy of p(z|x) in nats.

    Raises:
        ValueError: an unknown method, nothing to train on, no comparison with a context.
    """
    if method not in METHODS:
        raise ValueError(f"selector {method!r}: unknown, expected one of {', '.join(METHODS)}")
    if method == TRAINED and train is None:
        raise ValueError("selector 'trained': found no training comparisons, expected some with contexts")
    rows = sample(read_rows(comparisons), count=sampled, seed=seed)
    if not rows:
        raise ValueError("comparisons: none has a context and is no tie, expected some to infer the context of")
    known = rows if train is None else read_rows(train)
    names = candidates_of(known, count=candidates)
    if not names:
        raise ValueError("training comparisons: none has a context, expected some to choose from")
    prompts = list(dict.fromkeys(text_of(row) for row in rows))
    unread = failed = 0
    if method == ENDPOINT:
        assert endpoint is not None
        found, unread, failed = endpoint(prompts, names)
    elif method == TRAINED:
        found = trained(known, prompts, names)
    else:
        found = np.tile(prior(known, names, counted=train is not None), (len(prompts), 1))
    of = dict(zip(prompts, found, strict=True))
    with FileWriter(out / f"{NAME}.parquet", SCHEMA) as writer:
        writer.write([{"id": row.id, "p": of[text_of(row)].tolist()} for row in rows])
    (out / CANDIDATES).write_text(json.dumps(names, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    counts = {"comparisons": len(rows), "prompts": len(prompts), "candidates": len(names)}
    logs = np.log(found, out=np.zeros_like(found), where=found > 0)
    return Stats(
        counts=counts | {"unread": unread, "failed": failed},
        values={"selector": method, "entropy": float(-(found * logs).sum(axis=1).mean())},
    )


def read_contexts(folder: Path) -> tuple[list[str], dict[str, Floats]]:
    """Candidates, and the probabilities of each comparison's by its id."""
    names = read_json(folder / CANDIDATES, expected="a list of contexts")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{folder / CANDIDATES}: found something else, expected a list of contexts")
    table = read_table(folder, NAME)
    return names, {row["id"]: np.array(row["p"]) for row in table.to_pylist()}


def text_of(row: Row) -> str:
    """What a selector sees: the turns of the prompt."""
    return "\n\n".join(turn["content"] for turn in row.prompt)


def sample(rows: Sequence[Row], *, count: int, seed: int) -> list[Row]:
    """Comparisons with a context that are no ties, of prompts drawn by digest until there are enough; in their order.

    A prompt's comparisons stay together: its contexts are what p(z|x) is about.
    """
    usable = [row for row in rows if row.context is not None and not row.tie]
    sizes = Counter(row.asked for row in usable)
    drawn: set[str] = set()
    taken = 0
    for prompt in sorted(sizes, key=lambda prompt: hashlib.sha256(f"{seed}/{prompt}".encode()).digest()):
        if taken >= count:
            break
        drawn.add(prompt)
        taken += sizes[prompt]
    return [row for row in usable if row.asked in drawn]


def candidates_of(rows: Sequence[Row], *, count: int) -> list[str]:
    """The contexts to choose from: every category's most frequent one, then every category's second, and so on.

    Equally frequent ones go by their text, and so do categories of equal size; without categories all are of one.
    """
    usable = [row for row in rows if row.context is not None]
    times = Counter(row.context for row in usable if row.context is not None)
    category = {row.context: row.category or "" for row in reversed(usable) if row.context is not None}
    sizes = Counter(row.category or "" for row in usable)
    ranks: Counter[str] = Counter()
    ordered = []
    for context in sorted(times, key=lambda context: (-times[context], context)):
        own = category[context]
        ordered.append((ranks[own], -sizes[own], own, context))
        ranks[own] += 1
    return [context for *_, context in sorted(ordered)[:count]]


def prior(rows: Sequence[Row], candidates: Sequence[str], *, counted: bool) -> Floats:
    """How often each candidate stands there; all alike if not counted, since what is judged must not be counted."""
    if not counted:
        return np.full(len(candidates), 1 / len(candidates))
    times = Counter(row.context for row in rows)
    counts = np.array([times[name] for name in candidates], dtype=np.float64)
    shares: Floats = counts / counts.sum()
    return shares


def trained(rows: Sequence[Row], prompts: Sequence[str], candidates: Sequence[str]) -> Floats:
    """p(z|x) by multinomial logistic regression on tf-idf of the prompts' words.

    Args:
        rows: to train on; those with a candidate as their context.
        prompts: [n] to be told of.
        candidates: [Z].

    Returns:
        [n, Z].
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    place = {name: number for number, name in enumerate(candidates)}
    own = [row for row in rows if row.context in place]
    labels = np.array([place[row.context] for row in own if row.context is not None])
    found = np.zeros((len(prompts), len(candidates)))
    if len(set(labels.tolist())) == 1:
        found[:, labels[0]] = 1
        return found
    # \w+ in place of words of two characters and more: a prompt may be x.
    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", max_features=_WORDS, sublinear_tf=True)
    model = LogisticRegression(max_iter=_ROUNDS)
    with threadpool_limits(1), warnings.catch_warnings():  # equal bytes on any number of threads
        warnings.simplefilter("ignore", ConvergenceWarning)  # a selector that is a bit less sure
        model.fit(words.fit_transform([text_of(row) for row in own]), labels)
        told = model.predict_proba(words.transform(prompts))
    found[:, model.classes_] = told
    return found
