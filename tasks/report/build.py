"""The report stage: artifacts' folders and manifests in; one page, its numbers and a Markdown summary out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent
from longloom.tasks.report.evaluation import IDENTITY
from longloom.tasks.report.gather import gather
from longloom.tasks.report.markdown import markdown
from longloom.tasks.report.render import page


def build(
    sections: Mapping[str, Path],
    manifests: Mapping[str, Mapping[str, Any]],
    out: Path,
    *,
    title: str,
    progress: Progress = silent,
) -> Stats:
    """Writes index.html (volatile), report.json and report.md.

    Args:
        sections: label -> artifact folder. Known labels: corpus, index, model, instructions, coreset/<method>,
            trace (the study of memorization), explain, explain/completions, contamination/<set>, planted,
            finetune/<run>, tune/<training>, preference/<set>, preference-judge/<set>, best-of (of reward models),
            evaluation/<model>/<suite>/<policy>, and with retrieval that and /<how>, and
            long/<model>/<suite>/<policy>, of prompts beyond the model's window, which are in no other table. A section
            that is not given is left out; others show in the pipeline alone.
        manifests: label -> the store's manifest of the same artifact.
        out: an empty folder.
        title: the report's heading.
        progress: told of every shard of the corpus that is read.

    Raises:
        ValueError: a folder or a file is missing or unreadable; one line that names it.
    """
    gathered = gather(sections, manifests, title=title, progress=progress)
    numbers = gathered.numbers
    text = json.dumps(numbers, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    (out / "report.md").write_text(markdown(numbers), encoding="utf-8")
    (out / "index.html").write_text(page(gathered), encoding="utf-8")
    scores = numbers.get("evaluation", {}).get("scores", [])
    # One sample may have a score by each of several metrics.
    samples = {tuple(row[name] for name in IDENTITY if name != "metric"): row["samples"] for row in scores}
    counts = {"sections": len(sections), "scores": len(scores), "samples": sum(samples.values())}
    return Stats(counts=counts, volatile=("index.html",))
