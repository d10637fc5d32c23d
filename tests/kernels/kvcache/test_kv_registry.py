"""KV policies by name: bad names and options are answered in one line that names them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from longloom.kernels.kvcache.heads import HeadProfile
from longloom.kernels.kvcache.registry import get_policy, names, policy_settings, policy_text


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
        ("razor", {"window": 4.0}, "window must be a whole number >= 1, found 4.0"),
        ("razor", {"compensate": 2}, "KV policy 'razor': compensate must be 0 or 1, found 2"),
        ("razor", {"fold": 1.0}, "KV policy 'razor': fold must be 0 or 1, found 1.0"),
        ("razor", {"compression": True}, "compression must be a number >= 1, found True"),
    ],
)
def test_bad_names_and_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        get_policy(name, **options)


@pytest.mark.parametrize(
    ("given", "settings", "shown"),
    [
        ({"name": "full"}, {}, "full"),
        ({"name": "streaming", "window": 9, "sink": 4}, {"sink": 4, "window": 9}, "streaming:sink=4,window=9"),
        ({"name": "snapkv", "budget": 0.3, "window": 32}, {"budget": 0.3}, "snapkv:budget=0.3"),
        ({"name": "snapkv", "budget": 40}, {"budget": 40}, "snapkv:budget=40"),
        ({"name": "razor", "window": 4000, "compression": 5, "compensate": 1, "fold": 0}, {}, "razor"),
        (
            {"name": "razor", "compensate": 0, "compression": 8, "induction": 1, "echo": 1e-5},
            {"induction": 1.0, "echo": 1e-5, "compression": 8.0, "compensate": False},
            "razor:induction=1,echo=1e-05,compression=8,compensate=0",
        ),
        ({"name": "razor", "echo": 0.123456789}, {"echo": 0.123456789}, "razor:echo=0.123456789"),
    ],
)
def test_equal_settings_are_written_down_alike(given: dict[str, Any], settings: dict[str, Any], shown: str) -> None:
    policy = get_policy(**given)
    found = policy_settings(policy)
    assert list(found.items()) == list(settings.items())
    assert [type(value) for value in found.values()] == [type(value) for value in settings.values()]
    assert policy_text(policy) == shown
    assert get_policy(policy.name, **found) == policy


def test_a_head_profile_is_no_setting() -> None:
    profile = HeadProfile(source="probe", weights="a", induction=((0.5, 0.25),))
    policy = get_policy("razor", heads=profile, sink=2)
    assert policy != get_policy("razor", sink=2)
    assert policy_settings(policy) == {"sink": 2}
    assert policy_text(policy) == "razor:sink=2"


def test_listing_the_names_imports_no_torch() -> None:
    code = "import sys; from longloom.kernels.kvcache.registry import names; names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
