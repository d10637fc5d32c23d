"""What the command line prints of matches in an index and of co-occurrence."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from longloom.flows.show import console, show

#: Pairs that are printed; --out and --json have all.
ROWS = 50


def show_behind_blanks(counts: dict[str, int]) -> None:
    """Texts that stand elsewhere as other tokens."""
    for text, count in counts.items():
        line = f'not counted: "{_line(text)}", {count:,} times, whose first word is another token behind its blank'
        console().print(line, highlight=False)


def show_matches(found: dict[str, Any], *, as_json: bool) -> None:
    """The documents that hold a text."""
    if as_json:
        show(found, as_json=True)
        return
    screen = console()
    for match in found["matches"]:
        times = f"{match['occurrences']:,} times, first" if match["occurrences"] > 1 else "once,"
        screen.print(Text.assemble((match["id"], "bold"), f"  {match['source']}  {times} at token {match['offset']:,}"))
        parts = ((_line(match["before"]), "dim"), (_line(match["match"]), "bold"), (_line(match["after"]), "dim"))
        screen.print(Text.assemble("    ", *parts))
    screen.print(f"{found['occurrences']:,} occurrences in {found['documents']:,} documents")


def show_cooccurrence(found: dict[str, Any], *, as_json: bool) -> None:
    """The table of pairs."""
    if as_json:
        show(found, as_json=True)
        return
    both = "both" if found["within"] is None else f"both within {found['within']}"
    if found["sample"] is not None:
        both += f", estimated from {found['sample']:,} documents (95% interval)"
    table = Table("first", "second", "first in", "second in", both, box=None, pad_edge=False)
    for row in found["rows"][:ROWS]:
        if found["sample"] is None:
            count = f"{row['both']:,}"
        else:
            count = f"{row['both_estimate']:,.1f} ({row['both_low']:,} to {row['both_high']:,})"
        table.add_row(
            _line(row["first"]),
            _line(row["second"]),
            f"{row['first_documents']:,}",
            f"{row['second_documents']:,}",
            count,
        )
    console().print(table)
    never = "never together" if found["sample"] is None else "never together in the sample"
    console().print(f"{found['pairs']:,} pairs, {found['never']:,} {never}; counts are documents")
    if found["pairs"] > ROWS:
        console().print(f"the first {ROWS} are shown; --out FILE or --json gives all")
    if found["out"]:
        console().print(f"table  {found['out']}")


def _line(text: str) -> str:
    return text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
