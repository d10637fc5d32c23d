"""How numbers and names are written, the same on the page, in Markdown and in a terminal."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Any

NOTHING = "–"


def integer(value: float | None) -> str:
    """1234567 -> 1,234,567."""
    return NOTHING if value is None else f"{round(value):,}"


def compact(value: float | None) -> str:
    """1234567 -> 1.23 M: three digits and a unit, for running text; up to 9,999 all digits."""
    return integer(value) if value is None or abs(value) < 9_999.5 else _scaled(value, ("", " k", " M", " G", " T"))


def tick(value: float) -> str:
    """1500000 -> 1.5 M: as `compact`, without trailing zeros, for axes."""
    number, _, unit = _scaled(value, ("", " k", " M", " G", " T")).partition(" ")
    return f"{float(number):g} {unit}".rstrip()


def byte_tick(value: float) -> str:
    """1500000 -> 1.5 MB: as `in_bytes`, without trailing zeros, for axes."""
    number, _, unit = in_bytes(value).partition(" ")
    return f"{float(number):g} {unit}"


def in_bytes(value: float | None) -> str:
    """1234567 -> 1.23 MB, decimal units."""
    return _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def _scaled(value: float | None, units: tuple[str, ...]) -> str:
    if value is None:
        return NOTHING
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    if power == 0:
        return f"{value:.0f}{units[0]}" if float(value).is_integer() else f"{value:.3g}{units[0]}"
    return f"{value:.{max(0, 2 - int(math.log10(max(abs(value), 1))))}f}{units[power]}"


def duration(seconds: float | None) -> str:
    """75.2 -> 1 min 15 s."""
    if seconds is None:
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def milliseconds(seconds: float | None) -> str:
    """0.00412 -> 4.12 ms: three digits below 100, else whole ones."""
    if seconds is None:
        return NOTHING
    value = 1000 * seconds
    return f"{value:,.{3 if value < 0.9995 else 2 if value < 9.995 else 1 if value < 99.95 else 0}f} ms"


def percent(share: float | None) -> str:
    """0.0523 -> 5.2%."""
    return NOTHING if share is None else f"{100 * share:.1f}%"


def p_value(p: float) -> str:
    """0.0312 -> 0.031, and < 0.001 below that."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def decimal(value: float | None, digits: int) -> str:
    """A number with a fixed count of decimals; a minus is a true minus, and -0.0 is 0.0."""
    if value is None:
        return NOTHING
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def signed(value: float | None, digits: int) -> str:
    """As `decimal`, with a plus before what is above 0 as written."""
    text = decimal(value, digits)
    return f"+{text}" if value is not None and float(f"{value:.{digits}f}") > 0 else text


def short_digest(digest: str | None) -> str:
    """The first twelve characters of a digest, without the name of the algorithm."""
    return NOTHING if not digest else digest.rpartition(":")[2][:12]


def shorten(text: str, limit: int) -> str:
    """One printable line of at most `limit` characters; what is cut from the middle becomes an ellipsis."""
    line = "".join(character if character.isprintable() else " " for character in text)
    if len(line) <= limit:
        return line
    head = (limit - 1) * 2 // 3
    return f"{line[:head]}…{line[len(line) - (limit - 1 - head) :]}"


def words(names: list[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def without(name: str, settings: Container[str]) -> str:
    """A name without some of its settings: ("bm25:words=100,k=5", ["k"]) -> "bm25:words=100"."""
    kind, _, rest = name.partition(":")
    kept = [setting for setting in rest.split(",") if setting and setting.partition("=")[0] not in settings]
    return f"{kind}:{','.join(kept)}" if kept else kind


def cache_name(policy: str) -> str:
    """What stands in the results as a policy, in words; an endpoint's cache is its own affair."""
    return policy if policy.partition("@")[0] == "endpoint" else f"{policy} KV cache"


def plain(value: Any) -> str:
    """A parameter or a finding as text: floats short, everything else as it is written in JSON, strings bare."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    return str(value)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted names: {"lora": {"rank": 8}} -> {"lora.rank": 8}."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result
