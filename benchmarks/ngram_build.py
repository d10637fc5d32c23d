"""What an n-gram index takes to build: our suffix sort against infini-gram's builder, growth, and peak memory.

    python benchmarks/ngram_build.py --books FOLDER --json results.json

The books are .md and .txt files, which join the repetitive text and the large one. The other texts are the
standard library's sources and, for growth, those of the installed packages. About 20 minutes on two idle cores, much
of them the package's on the repetitive bytes, which therefore are sorted once and not three times.

Each ratio is that of two processes on the same token files, started in turns, from start to end. A speed is told
only once both tables are the same; where they differ, ours must be in order and the package's must not be. The
repetitive text is the same documents again and again, in another order each time: the package's merge needs time in the
square of the length of a repeat, and would not end on repeats of megabytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from machine import machine
from ngram_package import is_suffix_array, run_package, write_tokens

from longloom.storage.parquet import ShardWriter
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.ngrams.encode import encoder
from longloom.tasks.ngrams.layout import TABLE, TOKENS, shard_file

BASE = Path(__file__).resolve().parents[1] / "tasks" / "training" / "base"
SORT = """
import sys
from pathlib import Path
from longloom.tasks.ngrams.sorters import sort_shard
sort_shard(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
"""
BUILD = """
import json, sys
from pathlib import Path
from longloom.tasks.ngrams.build import build
tokenizer = Path(sys.argv[2]) if sys.argv[2] else None
stats = build(Path(sys.argv[1]), tokenizer, Path(sys.argv[3]), threads=int(sys.argv[4]), memory_gib=float(sys.argv[5]))
print(json.dumps(stats.counts))
"""


def sources(folders: list[Path], megabytes: float, suffixes: tuple[str, ...] = (".py",)) -> list[str]:
    """Texts of files, in the order of the folders and their names, up to a size."""
    texts, left = [], int(megabytes * 1e6)
    for path in itertools.chain.from_iterable(sorted(folder.rglob("*")) for folder in folders):
        if left <= 0:
            break
        if path.suffix in suffixes and path.is_file():
            texts.append(path.read_text(encoding="utf-8", errors="replace")[:left])
            left -= len(texts[-1])
    return texts


def standard_library(megabytes: float) -> list[str]:
    """The standard library's sources without what is installed beside it."""
    root = Path(sysconfig.get_paths()["stdlib"])
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name != "site-packages"]
    own = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(root.glob("*.py"))]
    size = sum(map(len, own)) / 1e6
    return (
        own + sources(folders, megabytes - size)
        if size < megabytes
        else own[: max(1, int(len(own) * megabytes / size))]
    )


def repeated(texts: list[str], megabytes: float) -> list[str]:
    """The texts again and again in other orders, up to a size: repeats are as long as documents."""
    left, out, rng = megabytes * 1e6, [], random.Random(0)
    while left > 0:
        for text in rng.sample(texts, len(texts)):
            if left > 0:
                out.append(text)
                left -= len(text.encode())
    return out


def _say(line: str) -> None:
    print(line, flush=True)


def timed(run: Any) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def sort_ours(folder: Path, token_dtype: str, jobs: int) -> None:
    files = [str(shard_file(folder, part, 0)) for part in (TOKENS, TABLE)]
    subprocess.run([sys.executable, "-c", SORT, *files, token_dtype, str(jobs)], check=True)


def encoded(texts: list[str], token_dtype: str) -> list[np.ndarray]:
    """The tokens of each text; of equal ones once."""
    distinct = list(dict.fromkeys(texts))
    encode = encoder(None if token_dtype == "u8" else BASE)
    tokens = dict(zip(distinct, encode.encode(distinct), strict=True))
    return [tokens[text] for text in texts]


def against_package(name: str, texts: list[str], token_dtype: str, *, jobs: int, rounds: int) -> dict[str, Any]:
    """Ours and the package's builder on the same tokens."""
    times: dict[str, list[float]] = {"ours": [], "package": []}
    with tempfile.TemporaryDirectory(prefix="longloom-bench-") as scratch:
        folder = Path(scratch)
        tokens = write_tokens(encoded(texts, token_dtype), folder, token_dtype)
        table = shard_file(folder, TABLE, 0)
        memory = math.ceil(tokens.nbytes * 12 / 2**30) + 1  # enough for one batch of its parts
        right = True
        for _ in range(rounds):
            times["ours"].append(timed(lambda: sort_ours(folder, token_dtype, jobs)))
            ours = table.read_bytes()
            table.unlink()
            run = lambda: run_package(folder, token_dtype=token_dtype, jobs=jobs, memory_gib=memory)  # noqa: E731
            times["package"].append(timed(run))
            if table.read_bytes() != ours:
                right = is_suffix_array(tokens, table)
                table.write_bytes(ours)
                if right or not is_suffix_array(tokens, table):
                    raise SystemExit(f"{name}: our table is not in order, so there is no speed to tell")
            table.unlink()
    ratios = sorted(package / ours for ours, package in zip(times["ours"], times["package"], strict=True))
    result = {
        "tokens": len(tokens),
        "bytes": tokens.nbytes,
        "token_dtype": token_dtype,
        "ours_s": round(statistics.median(times["ours"]), 3),
        "package_s": round(statistics.median(times["package"]), 3),
        "ratio": {
            "min": round(ratios[0], 2),
            "median": round(statistics.median(ratios), 2),
            "max": round(ratios[-1], 2),
        },
        "package_right": right,
    }
    speeds = f"ours {result['ours_s']:.2f} s  package {result['package_s']:.2f} s  x{result['ratio']['median']:.2f}"
    _say(f"{name:<18} {len(tokens):>11} {token_dtype}  {speeds}{'' if right else '  (its order is wrong)'}")
    return result


def growth(
    texts: list[str], sizes: list[float], large: list[str], token_dtype: str, *, jobs: int, rounds: int, memory: float
) -> dict[str, Any]:
    """Seconds of the sort and of the whole build as the text grows, and of a large text beside what these foretell.

    The curves are start + a * bytes^b, the start being the time of a text of a kilobyte, fitted in logarithms with the
    weights that noise of the same seconds everywhere gives.
    """
    empty, *rows = (
        _row(list(_up_to(texts, size)), token_dtype, jobs=jobs, rounds=rounds, memory=memory)
        for size in (1e-3, *sorted(sizes))
    )
    beyond = _row(large, token_dtype, jobs=jobs, rounds=1, memory=memory)
    curves = {}
    for part in ("sort", "build"):
        start = empty[part]["seconds"]
        excess = [max(row[part]["seconds"] - start, 1e-3) for row in rows]
        exponent, scale = np.polyfit(np.log([row["text_bytes"] for row in rows]), np.log(excess), 1, w=excess)
        foretold = start + math.exp(scale) * beyond["text_bytes"] ** exponent
        curves[part] = {"start": start, "scale": math.exp(scale), "exponent": round(float(exponent), 3)}
        beyond[part]["foretold"] = round(foretold, 2)
        _say(f"growth {token_dtype:<4} {part} seconds = {start:.2f} + {math.exp(scale):.3g} * bytes^{exponent:.3f}, "
             f"foretells {foretold:.1f} s for the large text, {beyond[part]['seconds']:.1f} taken")  # fmt: skip
    return {"token_dtype": token_dtype, "curves": curves, "rows": [empty, *rows], "large": beyond}


def _row(texts: list[str], token_dtype: str, *, jobs: int, rounds: int, memory: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="longloom-bench-") as scratch:
        folder = Path(scratch)
        tokens = write_tokens(encoded(texts, token_dtype), folder, token_dtype)
        seconds = [timed(lambda: sort_ours(folder, token_dtype, jobs)) for _ in range(rounds)]
    row = {
        "text_bytes": sum(len(text.encode()) for text in texts),
        "tokens": len(tokens),
        "sort": {"seconds": round(statistics.median(seconds), 3)},
    }
    _say(f"sort {token_dtype:<6} {row['text_bytes'] / 1e6:>8.1f} MB  {statistics.median(seconds):.2f} s")
    return {**row, "build": memory_of_build(texts, token_dtype, memory, jobs=jobs)}


def _up_to(texts: list[str], megabytes: float) -> Iterator[str]:
    left = int(megabytes * 1e6)
    for text in texts:
        content = text.encode()
        if left <= 0:
            return
        yield content[:left].decode(errors="ignore")
        left -= len(content)


def memory_of_build(texts: list[str], token_dtype: str, memory_gib: float, *, jobs: int) -> dict[str, Any]:
    """The whole build in processes of its own: their memory together, looked at every 20 ms, and the time."""
    with tempfile.TemporaryDirectory(prefix="longloom-bench-") as scratch:
        corpus, out = Path(scratch) / "corpus", Path(scratch) / "index"
        corpus.mkdir()
        out.mkdir()
        with ShardWriter(corpus, "documents", SCHEMA, rows_per_shard=65536) as writer:
            for number, text in enumerate(texts):
                writer.write([{"id": str(number), "source": "bench", "text": text}])
        command = [sys.executable, "-c", BUILD, str(corpus), "" if token_dtype == "u8" else str(BASE), str(out)]
        began = time.perf_counter()
        child = subprocess.Popen([*command, str(jobs), str(memory_gib)], stdout=subprocess.PIPE, text=True)
        peak = 0
        while child.poll() is None:
            peak = max(peak, _resident(child.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        assert child.stdout is not None
        if child.returncode:
            raise SystemExit(f"the build under {memory_gib} GiB failed")
        counts = json.loads(child.stdout.read())
    result = {
        "token_dtype": token_dtype,
        "text_bytes": sum(len(text.encode()) for text in texts),
        **counts,
        "memory_gib": memory_gib,
        "peak_gib": round(peak / 2**30, 3),
        "seconds": round(seconds, 2),
    }
    _say(f"build {token_dtype:<5} {result['text_bytes'] / 1e6:>8.1f} MB  {seconds:.2f} s, {counts['tokens']} tokens, "
         f"{counts['shards']} shards, peak {result['peak_gib']} of {memory_gib} GiB")  # fmt: skip
    return result


def _resident(pid: int) -> int:
    """Bytes of a process and those that it started; what they share counts for each."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--repetitive", type=float, default=60, help="MB of repetitive text")
    parser.add_argument("--stdlib", type=float, default=1e3, help="MB of the standard library at most")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 4, 16, 64], help="MB of the growing text")
    parser.add_argument("--large", type=float, default=208, help="MB of the large text: sources and books, repeated")
    parser.add_argument("--memory", type=float, nargs="+", default=[1, 2], help="bounds on memory, GiB")
    parser.add_argument("--books", type=Path, help="folder of .md and .txt files")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    jobs, rounds = options.jobs, options.rounds
    library = standard_library(options.stdlib)
    books = sources([options.books], 1e3, (".md", ".txt")) if options.books else []
    if options.books and not books:
        parser.error(f"--books {options.books}: no .md or .txt file there")
    many = library + sources([Path(sysconfig.get_paths()["purelib"])], max(options.sizes))
    held = sum(len(text.encode()) for text in many) / 1e6
    if held < max(options.sizes):
        parser.error(f"--sizes {max(options.sizes)}: the installed sources are {held:.0f} MB")
    repetitive, large = repeated(books + library, options.repetitive), repeated(books + many, options.large)
    results: dict[str, Any] = {"machine": machine(), "jobs": jobs, "against_package": {}, "growth": [], "memory": []}

    def save() -> None:
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")

    save()
    for name, texts, token_dtype, times in (
        ("stdlib tokens", library, "u16", rounds),
        ("stdlib bytes", library, "u8", rounds),
        ("repetitive bytes", repetitive, "u8", 1),
        ("repetitive tokens", repetitive, "u16", 1),
    ):
        compared = against_package(name, texts, token_dtype, jobs=jobs, rounds=times)
        results["against_package"][name] = compared
        save()
    grown = {"jobs": jobs, "rounds": rounds, "memory": max(options.memory)}
    for token_dtype in ("u8", "u16"):
        results["growth"].append(growth(many, options.sizes, large, token_dtype, **grown))
        save()
    for token_dtype in ("u8", "u16"):
        for bound in options.memory:
            texts = list(_up_to(many, max(options.sizes)))
            results["memory"].append(memory_of_build(texts, token_dtype, bound, jobs=jobs))
            save()


if __name__ == "__main__":
    main()
