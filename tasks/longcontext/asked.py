"""What an evaluation may be asked for: suites, tasks and KV policies that there are, known before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longloom.tasks.suite_data import HARNESS

#: A KV policy's name and its options.
Policy = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class KnownPolicy:
    """A KV policy that there is.

    Attributes:
        name: its name.
        options: those that differ from their defaults, so that equal settings are equal.
        text: both, as results have it.
        profiled: whether it needs the model's head profile.
    """

    name: str
    options: Mapping[str, Any]
    text: str
    profiled: bool


def check_names(suite: str, tasks: Sequence[str]) -> None:
    """To be called before any work is done.

    Raises:
        ValueError: an unknown suite, the harness's suite without tasks.
    """
    from longloom.evals.registry import check_name as check_suite

    if suite == HARNESS:
        if not tasks:
            raise ValueError(f"suite {HARNESS!r} has no tasks of its own, expected some names of the harness's tasks")
    else:
        try:
            check_suite(suite)
        except ValueError as error:
            raise ValueError(f"{error}, and {HARNESS}") from None


def check_tasks(suite: str, tasks: Sequence[str], data: str | None) -> None:
    """Whether a suite knows these tasks, as far as can be told before there is a model; to be called before any work.

    Raises:
        ValueError: an unknown task, with the known ones; data that the suite cannot open.
    """
    from longloom.evals.registry import open_suite, suite_class
    from longloom.evals.suite import Source

    if not tasks or suite == HARNESS or makes_prompts(suite):
        return
    if data is None and suite_class(suite).hub is None:  # records that a run makes on its way
        return
    opened = open_suite(suite, Source(None if data is None else Path(data)))
    for task in tasks:
        opened.metric(task)


def known_policies(policies: Sequence[Policy]) -> list[KnownPolicy]:
    """The KV policies of these names and options, in order.

    Raises:
        ValueError: an unknown one or option of one, an option out of range, one listed twice.
    """
    from longloom.kernels.kvcache.registry import get_policy, policy_settings, policy_text

    found: list[KnownPolicy] = []
    for name, options in policies:
        policy = get_policy(name, **options)
        known = KnownPolicy(name, policy_settings(policy), policy_text(policy), policy.profiled)
        if known in found:  # in whatever words
            raise ValueError(f"KV policy {name!r} is listed twice with the same options")
        found.append(known)
    return found


def options_of(suite: str, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered options that a suite has."""
    from longloom.evals.registry import suite_class

    names = () if suite == HARNESS else suite_class(suite).option_names
    return {name: offered[name] for name in names if name in offered}


def check_judged(task: str) -> None:
    """Raises ValueError for what is no open-ended task of L-Eval, with those that are."""
    from longloom.evals.leval.tasks import OPEN

    if task not in OPEN:
        raise ValueError(f"task {task!r} has no answers to judge; L-Eval's open-ended tasks: {', '.join(OPEN)}")


def check_contexts(suite: str) -> None:
    """Raises ValueError for the suite whose prompts no retriever can look into."""
    if suite == HARNESS:
        raise ValueError(f"suite {HARNESS!r} tells no context from its prompts, so nothing can be retrieved")


def makes_prompts(suite: str) -> bool:
    """Whether a suite makes prompts of given lengths, for which it needs the tokenizer of the model under test."""
    from longloom.evals.registry import suite_class

    return suite != HARNESS and "lengths" in suite_class(suite).option_names
