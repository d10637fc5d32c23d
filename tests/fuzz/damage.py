"""Damage to files, drawn by hypothesis, and what every loader owes its user whatever the bytes are.

Either a result, or one ValueError or FileNotFoundError of our own that names the file: no library's error, nothing
half-written, no hang, no allocation out of proportion. Runs are derandomised; a hunt is LONGLOOM_FUZZ=20, which draws
twenty times as many examples, and other ones each time.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

Result = TypeVar("Result")

#: Beside the checkout; real data to damage where it is there.
SHARED = Path(__file__).resolve().parents[2] / "../shared/data"

#: A loader that takes longer than this for a file of a few KiB hangs; nothing is timed.
HANG_SECONDS = 60
#: More address space than this for a file of a few KiB is out of proportion. Arenas of allocators take some of it.
ROOM = 4 << 30
#: Characters of a message: what is quoted of the data must be cut.
LONGEST_MESSAGE = 1200

#: Values that nobody expects anywhere.
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400),
    *(0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "\n", "\0", "\ud800", "\udcff", "a\u2028b", "\ufeff", "../../x", "/", "[", "{}", "é" * 40, "x" * 5000),
    *([], {}, [[]], [None], [""], [0], {"": ""}, {"\ud800": 1}, {"a\nb": "c"}, [[[[]]]]),
]
#: Bytes that readers stumble over.
ODD_BYTES = [
    *(b"", b"\0", b"\n", b"\r", b"\n\n", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x80\x02"),
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\ud800", b"\\u0000", b"NaN", b"-Infinity", b"null"),
    *(
        b"1e999",
        b"9" * 5000,
        b"[" * 100_000,
        b"[" * 700 + b"]" * 700,
        b'{"a":' * 50_000,
        b"\x1f\x8b",
        b"PK\x03\x04",
        b"PAR1",
    ),
    *(b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"\x93NUMPY"),
]


def examples(count: int) -> settings:
    """The settings of a test of so many examples."""
    hunt = int(os.environ.get("LONGLOOM_FUZZ", "0"))
    return settings(
        max_examples=count * max(1, hunt),
        derandomize=not hunt,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink] if hunt else [Phase.generate],
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# ---- what is done to a file


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file's bytes with a few of them changed, taken out, doubled or cut off, or odd ones put in."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, max(0, len(content) - 1)))
        end = min(len(content), begin + draw(st.sampled_from([1, 1, 2, 4, 8, 64, 4096])))
        kind = draw(st.sampled_from(["flip", "set", "insert", "replace", "delete", "double", "cut"]))
        if kind == "flip" and content:
            content[begin] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and content:
            content[begin] = draw(st.sampled_from([0, 1, 0x20, 0x7F, 0x80, 0xFE, 0xFF]))
        elif kind == "insert":
            content[begin:begin] = draw(st.sampled_from(ODD_BYTES))
        elif kind == "replace":
            content[begin:end] = draw(st.sampled_from(ODD_BYTES))
        elif kind == "delete":
            del content[begin:end]
        elif kind == "double":
            content[begin:begin] = content[begin:end]
        else:
            del content[begin:]
    return bytes(content)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """JSON with one to three of its nodes replaced by an odd value, taken away, doubled, renamed or nested."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        parent, key = draw(st.sampled_from(list(_places(value)) or [(None, None)]))
        kind = draw(st.sampled_from(["odd", "odd", "odd", "delete", "double", "nest", "rename"]))
        if parent is None:
            value = copy.deepcopy(draw(st.sampled_from(ODD_VALUES))) if kind == "odd" else value
        elif kind == "odd":
            parent[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
        elif kind == "delete":
            del parent[key]
        elif kind == "double" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif kind == "nest":
            parent[key] = draw(st.sampled_from([[parent[key]], {"value": parent[key]}, str(parent[key])]))
        elif kind == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["", "\ud800", "id", "x" * 3000, f"{key} "]))] = parent.pop(key)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every node's parent and its key there; the root's are None."""
    yield None, None
    waiting = [value]
    while waiting:
        parent = waiting.pop()
        keys = list(parent) if isinstance(parent, dict) else range(len(parent)) if isinstance(parent, list) else ()
        for key in keys:
            yield parent, key
            waiting.append(parent[key])


def written(value: Any) -> bytes:
    """JSON as Python writes it: NaN, lone surrogates (escaped) and numbers of any size among it."""
    return json.dumps(value).encode()


def damaged_json(value: Any) -> st.SearchStrategy[bytes]:
    """A JSON file whose value or whose bytes are damaged."""
    return st.one_of(changed(value).map(written), changed(value).map(written), damaged(written(value)))


def damaged_lines(records: list[Any]) -> st.SearchStrategy[bytes]:
    """The same of JSON Lines."""
    whole = b"".join(written(record) + b"\n" for record in records)

    def lines(value: Any) -> bytes:
        return b"".join(written(record) + b"\n" for record in (value if isinstance(value, list) else [value]))

    return st.one_of(changed(records).map(lines), changed(records).map(lines), damaged(whole))


# ---- what is asked of a loader


def survives(load: Callable[[], Result], *, names: str | tuple[str, ...]) -> Result | None:
    """Runs a loader on damaged files.

    Args:
        load: the loader.
        names: an error's message holds at least one of these: the file, or what stands for it.

    Returns:
        What it returned; None: it refused, as it should. Whatever else happens fails the test.
    """
    try:
        with _bounded():
            return load()
    except (ValueError, FileNotFoundError) as error:
        refused(error, names=names)
        return None


def refused(error: Exception, *, names: str | tuple[str, ...]) -> None:
    """Checks that a refusal is ours, one line, of moderate length, and that it names the file."""
    message = str(error)
    assert type(error).__module__.split(".")[0] in ("builtins", "longloom"), (
        f"a library's {type(error)}: {message:.300}"
    )
    assert not isinstance(error, UnicodeError), f"a codec's: {message:.300}"
    assert len(message.splitlines()) <= 1, f"several lines: {message:.300}"
    assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters: {message:.300}"
    message.encode()  # a lone surrogate would break whoever writes it on
    expected = (names,) if isinstance(names, str) else names
    assert any(name in message for name in expected), f"names none of {expected}: {message:.300}"


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Ends what hangs, and refuses memory out of proportion."""

    def hangs(number: int, frame: object) -> None:
        raise AssertionError(f"still running after {HANG_SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANG_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + ROOM, hard))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
