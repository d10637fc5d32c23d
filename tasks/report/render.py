"""index.html: one self-contained page that fetches nothing; its script is page.js.

Jinja2 escapes whatever comes from data; the figures are inline SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from longloom.evals.published import SPREAD
from longloom.tasks.report import (
    coreset_plots,
    extension_plots,
    formats,
    memorization_plots,
    plots,
    preference_plots,
    proof_plots,
    proof_words,
    score_plots,
    sweep_plots,
    training_plots,
)
from longloom.tasks.report import preference as preferences
from longloom.tasks.report.beside import published_tables
from longloom.tasks.report.beyond import beyond_window
from longloom.tasks.report.beyond_table import beyond_lines, beyond_scale
from longloom.tasks.report.coreset import method_lines
from longloom.tasks.report.costs import cost_rows, seconds_of
from longloom.tasks.report.evaluation import Evaluations
from longloom.tasks.report.figures import INK, colours
from longloom.tasks.report.gather import Gathered
from longloom.tasks.report.links import Links
from longloom.tasks.report.look import look
from longloom.tasks.report.memorization import ASKED, INFINITY_GRAM, TASK_GRAM, memorization_lines, models_of
from longloom.tasks.report.order import rank
from longloom.tasks.report.retrieval_table import retrieval_lines
from longloom.tasks.report.summary import summary
from longloom.tasks.report.sweep import sweeps
from longloom.tasks.report.sweep_table import SweepTable, sweep_tables
from longloom.tasks.report.templates import environment
from longloom.tasks.report.training import HEAD_SCORES
from longloom.tasks.report.tuning import tuning_lines
from longloom.tasks.report.views import (
    copy_table,
    evaluation_table,
    grid_name,
    grid_scale,
    group_table,
    length_table,
    plain_grids,
    task_group_table,
)
from longloom.tasks.sources import page as explained_page
from longloom.tasks.sources.page import pieces

#: The look of marked spans, the same as on the page of `explain`.
MARKS = (explained_page.HERE / "explain.css").read_text(encoding="utf-8")
#: Characters of a prediction or a reference that are shown.
SHOWN_TEXT = 600
#: Stages in the order in which data passes through them.
STAGES = (
    *("corpus", "tokenizer", "index", "model", "trace", "planted", "contamination", "explain"),
    *("instructions", "warmup", "features", "targets", "target-features", "coreset", "finetune", "proof"),
    *("packed", "extended", "positions", "set", "tune"),
    *("comparisons", "reward-model", "contexts", "preference", "preference-judge", "best-of"),
    *("held-out", "records", "retrieval", "passages", "evaluation", "long"),
)

#: What the part of the evaluation holds where there is none.
NO_EVALUATION: dict[str, list[Any]] = {"scores": [], "grids": [], "lengths": [], "groups": [], "published": []}

Numbers = dict[str, Any]


def page(gathered: Gathered) -> str:
    """The whole page for what was gathered."""
    numbers, evaluations, manifests = gathered.numbers, gathered.evaluations, gathered.manifests
    evaluation = numbers.get("evaluation", NO_EVALUATION)
    created = max((manifest.get("created", "") for manifest in manifests.values()), default="")
    links = Links(sorted(manifests, key=_stage_rank), [*evaluations.scores, *gathered.long.scores])
    template = environment().get_template("page.html")
    groups = links.sectioned(evaluation["groups"])
    text = template.render(
        look=look(more=MARKS),
        links=links,
        numbers=numbers,
        title=numbers["title"],
        created=created[:16].replace("T", " "),  # the store writes ISO 8601 in UTC
        summary=summary(numbers),
        memorization=_memorization(numbers.get("memorization")),
        explained=_explained(numbers.get("explained")),
        contamination=numbers.get("contamination", {}),
        proof=_proof(numbers.get("proof")),
        extension=_extension(numbers.get("extension")),
        tuning=tuning_lines(numbers.get("tuning", {})),
        preference=_preference(numbers.get("preference")),
        stages=_stages(manifests),
        figures=_figures(numbers),
        speed=gathered.speeds.get("model"),
        speeds=_speeds(numbers.get("finetune", {}), gathered.speeds),
        selections=method_lines(numbers.get("coreset", {}).get("methods", {})),
        maps=_maps(gathered.maps),
        copying=copy_table(numbers.get("model", {}).get("copy_accuracy", [])),
        evaluation=evaluation_table(evaluation["scores"]),
        any_fixed=any(row["fixed"] is not None for row in evaluation["scores"]),
        lengths=length_table(links.sectioned(evaluation["lengths"])),
        groups=group_table(groups),
        task_groups=task_group_table(groups),
        kept=_kept(evaluations),
        beyond=[entry for found in (evaluations, gathered.long) for entry in _beyond(found)],
        retrieval=_retrieval(numbers.get("retrieval", []), evaluations.costs),
        published=published_tables(evaluation),
        spread=SPREAD,
        costs=cost_rows(evaluations.costs, evaluation["scores"]),
        answers=_answers(evaluations.answers),
        manifests=[_manifest(label, manifests) for label in sorted(manifests, key=_stage_rank)],
    )
    return text + "\n"


def _figures(numbers: Numbers) -> dict[str, Any]:
    """Every plot that the numbers allow, by the place on the page where it stands."""
    model, coreset, runs = numbers.get("model", {}), numbers.get("coreset"), numbers.get("finetune", {})
    evaluation = numbers.get("evaluation", NO_EVALUATION)
    names = [*(coreset["methods"] if coreset else ()), *runs, *(row["model"] for row in evaluation["scores"])]
    colour = colours(sorted(["base", *names], key=rank))
    found: dict[str, Any] = {"heads": [], "grids": {}, "clusters": {}}
    if numbers.get("corpus", {}).get("sources"):
        found["sources"] = plots.source_bars(numbers["corpus"]["sources"], numbers["corpus"]["other"])
    if model.get("training"):
        found["training"] = plots.loss_curves({"base": model["training"]}, {"base": INK})
        found["schedule"] = training_plots.schedule_curves({"base": model["training"]}, {"base": INK})
    found["heads"] = [plots.head_map(model[name], title=name) for name in HEAD_SCORES if name in model]
    if coreset and coreset["pool"] and coreset["methods"]:
        found["shares"] = plots.source_shares(coreset["sources"], coreset["methods"], coreset["pool"], colour)
        for method, chosen in coreset["methods"].items():
            if chosen["clusters"]:
                share = chosen["examples"] / coreset["pool"]
                found["clusters"][method] = plots.cluster_bars(chosen["clusters"], share, colour[method])
    if runs:
        found["finetune"] = plots.loss_curves(runs, colour)
        found["schedules"] = training_plots.schedule_curves(runs, colour)
    grids = plain_grids(evaluation["grids"])
    for grid in grids:
        title, (top, digits) = grid_name(grid, grids), grid_scale(grid, grids)
        svg = plots.needle_grid(grid, title=title, top=top, digits=digits)
        found["grids"].setdefault((grid["policy"], grid["retrieval"]), []).append(svg)
    return found


def _speeds(runs: Numbers, speeds: Mapping[str, Numbers]) -> dict[str, Numbers | None]:
    """Speed and memory of each run, if any is known."""
    places = ("finetune/{}", "tune/{}", "{}")
    found = {name: next(filter(None, (speeds.get(place.format(name)) for place in places)), None) for name in runs}
    return found if any(found.values()) else {}


def _memorization(numbers: Numbers | None) -> Numbers | None:
    """The study's lines and its figure; `library`: its sets are the demo's."""
    if numbers is None:
        return None
    tasks = dict.fromkeys(row["task"] for row in numbers["rows"])
    library = tasks.keys() == ASKED.keys()
    return {
        "n": [int(n) for n in numbers["gammas"]],
        "models": models_of(numbers),
        "asked": [(task, ASKED[task]) for task in tasks] if library else [],
        "library": library,
        "lines": memorization_lines(numbers, TASK_GRAM),
        "infinity": memorization_lines(numbers, INFINITY_GRAM),
        "svg": memorization_plots.memorization_curves(numbers),
    }


def _explained(numbers: Numbers | None) -> Numbers | None:
    """The explained texts, cut at the borders of their spans."""
    if numbers is None:
        return None
    shown = [{**one, "pieces": pieces({"text": one["text"], "spans": one["marks"]})} for one in numbers["shown"]]
    return {**numbers, "shown": shown}


def _maps(maps: Mapping[str, Numbers]) -> list[Numbers]:
    """A picture a method, with what its caption says."""
    return [
        {
            **{name: drawn[name] for name in ("examples", "drawn", "variance")},
            "clustered": bool((drawn["dots"]["cluster"] >= 0).any()),
            "svg": coreset_plots.coreset_map(drawn["dots"], title=method),
        }
        for method, drawn in maps.items()
    ]


def _proof(numbers: Numbers | None) -> Numbers | None:
    """The proof of coresets in words, as a curve and as tables."""
    if numbers is None:
        return None
    share = proof_words.main_share(numbers)
    columns, by_source = proof_words.source_lines(numbers)
    return {
        **{name: numbers[name] for name in ("seeds", "sources")},
        "verdicts": proof_words.verdicts(numbers),
        "svg": proof_plots.proof_curve(numbers),
        "lines": proof_words.lines(numbers),
        "share": None if share is None else proof_words.share_name(share),
        "columns": columns,
        "by_source": by_source,
    }


def _extension(numbers: Numbers | None) -> Numbers | None:
    """The context extension's accounting, and its perplexities as a curve."""
    if numbers is None:
        return None
    training = numbers["training"]
    svg = extension_plots.position_curves(numbers["perplexity"], window=training and training["window"])
    return {**numbers, "svg": svg}


def _preference(numbers: Numbers | None) -> Numbers | None:
    """Evaluations of reward models in words, as figures and as tables."""
    if numbers is None:
        return None
    sets, best_of = numbers["sets"], numbers["best_of"]
    columns, lines = preferences.set_lines(sets)
    profiles = [
        {
            **found["profiles"],
            "name": name,
            "lines": preferences.profile_lines(found["profiles"]),
            "svg": preference_plots.profile_curve(found["profiles"], title=name),
        }
        for name, found in sets.items()
        if found["profiles"] is not None
    ]
    categories = [
        dict(zip(("columns", "lines", "more"), preferences.category_lines(found), strict=True), name=name)
        for name, found in sets.items()
        if found["categories"]
    ]
    return {
        "verdicts": preferences.verdicts(sets),
        "svg": preference_plots.condition_bars(sets),
        "columns": columns,
        "lines": lines,
        "profiles": profiles,
        "steps": preferences.step_lines(sets),
        "judges": preferences.judge_lines(numbers["judges"]),
        "best_of": [] if best_of is None else preferences.best_of_lines(best_of),
        "tie_terms": () if best_of is None else preferences.tie_terms(best_of),
        "categories": categories,
    }


def _kept(evaluations: Evaluations) -> list[tuple[SweepTable, dict[str, Markup]]]:
    """Of every suite that was run under several KV policies: its table, and a figure a model, widest sweep first."""
    found = sweeps(evaluations.measured, evaluations.costs)
    styles = sweep_plots.line_styles(found)
    figures: dict[tuple[str, str], dict[str, Markup]] = {}
    for sweep in sorted(found, key=lambda sweep: -len(sweep["rows"])):
        svg = sweep_plots.sweep_curves(sweep, styles)
        if svg:
            figures.setdefault((sweep["suite"], sweep["metric"]), {})[sweep["model"]] = svg
    return [(table, figures.get((table.suite, table.metric), {})) for table in sweep_tables(found)]


def _beyond(found: Evaluations) -> list[Numbers]:
    """Of needles beyond the window: the entries with their lines and a figure a KV policy."""
    entries = []
    for entry in beyond_window(found.measured):
        names = ("suite", "task", "model")
        counted = {row["policy"]: row["samples"] for row in found.scores if _same(row, entry, names)}
        paid = {row["policy"]: row for row in found.costs if _same(row, entry, names)}
        costs = {policy: {**row, "samples": counted.get(policy)} for policy, row in paid.items()}
        top, _ = beyond_scale(entry)
        options: Numbers = {"top": top, "digits": 0 if top == 100 else 2, "window": entry["window"]}
        svgs = [plots.needle_grid(row["grid"], title=row["policy"], **options) for row in entry["rows"]]
        entries.append({**entry, "lines": beyond_lines(entry, costs), "svgs": svgs})
    return entries


def _same(row: Numbers, other: Numbers, names: Sequence[str]) -> bool:
    return row["retrieval"] is None and all(row[name] == other[name] for name in names)


def _retrieval(comparisons: Sequence[Numbers], costs: Sequence[Numbers]) -> list[Numbers]:
    seconds = seconds_of(costs)
    found = []
    for one in comparisons:
        own = {
            (policy, retrieval): time
            for (model, policy, retrieval, suite), time in seconds.items()
            if (model, suite) == (one["model"], one["suite"])
        }
        found.append({**one, "lines": retrieval_lines(one, own), "svg": score_plots.retrieval_curves(one)})
    return found


def _stage_rank(label: str) -> tuple[int, list[tuple[int, str]]]:
    stage, *rest = label.split("/")
    return STAGES.index(stage) if stage in STAGES else len(STAGES), [rank(part) for part in (*rest, stage)]


def _stages(manifests: Mapping[str, Mapping[str, Any]]) -> list[Numbers]:
    """One card a stage; a stage that ran several times (coreset/tagcos, coreset/random) lists its runs."""
    cards: dict[str, list[Numbers]] = {}
    for label in sorted(manifests, key=_stage_rank):
        stage, _, run = label.partition("/")
        manifest = manifests[label]
        shown = {name: manifest.get(name) for name in ("counts", "digest", "seconds")}
        cards.setdefault(stage, []).append({"label": label, "run": run, **shown})
    return [
        {
            "stage": stage,
            "counts": list((runs[0]["counts"] or {}).items())[:3] if len(runs) == 1 else [("artifacts", len(runs))],
            "seconds": sum(run["seconds"] or 0 for run in runs),
            "runs": runs,
        }
        for stage, runs in cards.items()
    ]


def _answers(answers: Mapping[tuple[str, str], Mapping[str, Numbers]]) -> list[Numbers]:
    return [
        {
            "suite": suite,
            "task": task,
            "named": len({metric for one in samples.values() for said in one["answers"] for metric in said["scores"]})
            > 1,
            "samples": [
                {
                    "name": sample["sample"],
                    "references": [_cut(reference) for reference in sample["references"][:3]],
                    "more": max(0, len(sample["references"]) - 3),
                    "answers": [
                        {**answer, "prediction": _cut(answer["prediction"] or "")} for answer in sample["answers"]
                    ],
                }
                for sample in samples.values()
            ],
        }
        for (suite, task), samples in sorted(answers.items())
    ]


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]}… ({len(text):,} characters in all)"


def _manifest(label: str, manifests: Mapping[str, Mapping[str, Any]]) -> Numbers:
    """The details of one artifact: its plain fields, its groups of values, its parents by the label they have here."""
    manifest = manifests[label]
    labels = {other.get("digest"): name for name, other in manifests.items()}
    groups: dict[str, Sequence[tuple[str, Any]]] = {
        name: list(formats.flat(manifest.get(name) or {}).items())
        for name in ("parameters", "counts", "values", "runtime", "environment")
    }
    parents = [
        {"name": name, "digest": digest, "label": labels.get(digest, "")}
        for name, digest in (manifest.get("parents") or {}).items()
    ]
    fields = [
        (name, manifest[name]) for name in ("kind", "version", "key", "digest", "code", "created") if name in manifest
    ]
    place = f"artifacts/{manifest['kind']}/{manifest['key']}" if {"kind", "key"} <= manifest.keys() else ""
    return {
        "label": label, "place": place, "fields": fields, "groups": groups, "parents": parents,
        "seconds": manifest.get("seconds"),
    }  # fmt: skip
