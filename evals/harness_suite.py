"""Any task of lm-eval, of its own or of a folder: found by name, and its results as rows.

The harness reads all of its 14,000 YAML files (20 seconds) to find one task, so a folder of one's own is looked through
first, and the harness's only for what is not there. A task has as many scores as it has metrics and filters. A task of
one's own may name functions of its folder (`!function`), which are run; metrics that are code of the hub are not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind

#: What the harness calls the standard error of a metric.
_STDERR = "_stderr"


class Score(NamedTuple):
    """One score of a task.

    Attributes:
        metric, filter: their names in the harness; "none" is the filter that does nothing.
        value: on the task's own scale.
        stderr: the standard error; None: the harness was not asked for it, or knows none.
    """

    metric: str
    filter: str
    value: float
    stderr: float | None


class Sample(NamedTuple):
    """One sample by one metric and filter.

    Attributes:
        sample: its number.
        metric, filter: as in `Score`.
        value: its rating; None: it has none that is a number (a perplexity is of all samples together).
        prediction: the filtered text; of a multiple choice the likeliest one; "" where there is no text.
        references: the right answers.
    """

    sample: int
    metric: str
    filter: str
    value: float | None
    prediction: str
    references: list[str]


def harness_tasks(
    names: Sequence[str], *, include_path: Path | None, metadata: Mapping[str, Any] | None = None
) -> dict[str, Task]:
    """Tasks of the harness, with their data.

    Args:
        names: of tasks; groups, tags and patterns with * stand for all of theirs.
        include_path: a folder with YAML files of one's own, which come before the harness's; None: there is none.
        metadata: what `--metadata` is to lm-eval's command; some tasks ask for a tokenizer or the like.

    Returns:
        Task by name.

    Raises:
        ValueError: no names, no such folder, an unknown name (with similar ones), or a task that cannot be loaded, for
            one because a metric of it is code of the hub.
    """
    if not names:
        raise ValueError("the suite 'lm-eval' has no tasks to run by default, expected some of the harness's by name")
    if include_path is not None and not include_path.is_dir():
        raise ValueError(f"no folder {str(include_path)!r} to look for tasks in")
    manager = _manager(names, include_path, dict(metadata or {}))
    tasks: dict[str, Task] = {}
    for name in names:
        matching = manager.match_tasks([name])
        if not matching:
            close = ", ".join(get_close_matches(name, manager.all_tasks, n=5)) or "none"
            raise ValueError(f"the harness has no task {name!r}; similar ones: {close}")
        for found in matching:
            if found in tasks:
                continue
            with no_hub_metrics() as refused:
                try:
                    tasks.update(manager.load([found])["tasks"])
                    if refused:  # an error that the harness caught
                        raise refused[0]
                except Exception as error:  # of the task's own code, of its data set, of the hub
                    cause = refused[0] if refused else error  # and not what comes of a metric that is not there
                    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
                    raise ValueError(f"the harness's task {found!r} cannot be loaded: {reason}") from error
    return tasks


@contextlib.contextmanager
def no_hub_metrics() -> Iterator[list[ValueError]]:
    """Refuses what `evaluate.load` does with a metric's name: download a Python module of that name, and run it.

    The harness does that for a metric that it does not know or that says `hf_evaluate`, and some of its tasks do it by
    themselves. Refused below `evaluate.load`, so that it counts for who has imported that already.

    Yields:
        The errors that were raised so far.
    """
    refused: list[ValueError] = []
    try:
        from evaluate import loading
    except ImportError:  # then nobody else can load one either
        yield refused
        return

    def refuse(path: str, *_: object, **__: object) -> NoReturn:
        refused.append(ValueError(f"the metric {path!r} is code of the hub, which is not run; expected one of lm-eval"))
        raise refused[-1]

    before = loading.evaluation_module_factory
    loading.evaluation_module_factory = refuse
    try:
        yield refused
    finally:
        loading.evaluation_module_factory = before


def scores_of(results: Mapping[str, Any], name: str) -> list[Score]:
    """The scores of a task, out of what `evaluator.evaluate` returns; values that are no numbers are left out."""
    table = results["results"][name]
    scores = []
    for key, value in table.items():
        metric, comma, filter_name = key.rpartition(",")
        number = _number(value)
        if not comma or number is None or metric.endswith(_STDERR):
            continue
        scores.append(Score(metric, filter_name, number, _number(table.get(f"{metric}{_STDERR},{filter_name}"))))
    return scores


def samples_of(results: Mapping[str, Any], name: str) -> list[Sample]:
    """The samples of a task, out of what `evaluator.evaluate` returns: one row a sample, metric and filter."""
    choices = results["configs"][name].get("output_type") == "multiple_choice"
    return [
        Sample(
            sample=example["doc_id"],
            metric=metric,
            filter=example["filter"],
            value=_number(example[metric]),
            prediction=_likeliest(example) if choices else _text(example["filtered_resps"][0]),
            references=[_choice(example, target) if choices else str(target) for target in _listed(example["target"])],
        )
        for example in results["samples"][name]
        for metric in example["metrics"]
    ]


def _manager(names: Sequence[str], include_path: Path | None, metadata: dict[str, Any]) -> TaskManager:
    """Knows the folder's tasks, and if they are not enough the harness's too."""
    if include_path is not None:
        manager = TaskManager(include_path=str(include_path), include_defaults=False, metadata=metadata)
        entries = [manager.task_index.get(name) for name in names]
        # A pattern may mean tasks of the harness, too, and a group may name some.
        if all(entry is not None and entry.kind is not Kind.GROUP for entry in entries):
            return manager
    return TaskManager(include_path=None if include_path is None else str(include_path), metadata=metadata)


def _number(value: Any) -> float | None:
    """A number, also NumPy's, as a float; the harness has "N/A", tuples and the like beside them."""
    try:
        return None if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return None


def _text(reply: Any) -> str:
    """A filtered reply: a text, or several of repeated requests; log-likelihoods are none."""
    if isinstance(reply, list):
        reply = reply[0] if reply else ""
    return reply if isinstance(reply, str) else ""


def _likeliest(example: Mapping[str, Any]) -> str:
    """The choice with the highest log-likelihood."""
    pairs = zip(example["arguments"], example["filtered_resps"], strict=True)
    scored = [(reply[0], arguments) for arguments, reply in pairs]
    # With mutual information as a metric, the choices are also scored without the context.
    conditional = [(score, arguments) for score, arguments in scored if arguments[0]] or scored
    _, (context, choice, *_) = max(conditional, key=lambda pair: pair[0])
    if any(arguments[0] != context for _, arguments in conditional):  # the contexts are what is chosen from
        choice = f"{context}{choice}".strip().splitlines()[-1]
    return str(choice).strip()


def _choice(example: Mapping[str, Any], target: Any) -> str:
    """The text of a right choice, which most tasks tell by its number."""
    if isinstance(target, int) and 0 <= target < len(example["arguments"]):
        return str(example["arguments"][target][1]).strip()
    return str(target)


def _listed(target: Any) -> Iterable[Any]:
    return target if isinstance(target, list) else [target]
