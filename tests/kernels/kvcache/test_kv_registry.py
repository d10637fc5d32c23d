"""KV policies by name: bad names and options are answered in one line that names them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from longloom.kernels.kvcache.registry import get_policy, names


def test_policies_are_built_by_name() -> None:
    assert {"full", "streaming"} <= set(names())
    policy = get_policy("streaming", sink=4, window=16)
    assert policy.name == "streaming"
    assert policy == get_policy("streaming", sink=4, window=16)
    with pytest.raises(FrozenInstanceError):
        policy.window = 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fulll", {}, "unknown KV policy 'fulll'; known: .*full, .*streaming"),
        ("full", {"window": 4}, "KV policy 'full' has no option 'window'; its options: none"),
        ("streaming", {"sink": 4, "windw": 4}, "has no option 'windw'; its options: sink, window"),
        ("streaming", {"sink": 4}, "needs the option 'window'"),
        ("streaming", {"sink": -1, "window": 4}, "sink must be a whole number >= 0, found -1"),
        ("streaming", {"sink": 0, "window": 0}, "window must be a whole number >= 1, found 0"),
        ("streaming", {"sink": 0, "window": 2.0}, "window must be a whole number >= 1, found 2.0"),
        ("streaming", {"sink": True, "window": 2}, "sink must be a whole number >= 0, found True"),
    ],
)
def test_bad_names_and_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        get_policy(name, **options)


def test_listing_the_names_imports_no_torch() -> None:
    code = "import sys; from longloom.kernels.kvcache.registry import names; names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
