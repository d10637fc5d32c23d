"""The cache key is of what a result depends on; the manifest tells whether it is whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longloom.storage.manifest import (
    FileEntry,
    Manifest,
    cache_key,
    canonical_json,
    code_commit,
    content_digest,
    environment,
)

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def _shuffled(value: object) -> object:
    """The same value with every dictionary's keys in the other order."""
    if isinstance(value, dict):
        return {name: _shuffled(value[name]) for name in reversed(value)}
    if isinstance(value, list):
        return [_shuffled(entry) for entry in value]
    return value


@given(st.dictionaries(st.text(), _JSON, max_size=5))
def test_the_order_of_keys_does_not_matter(parameters: dict[str, object]) -> None:
    assert canonical_json(_shuffled(parameters)) == canonical_json(parameters)
    assert json.loads(canonical_json(parameters)) == parameters
    assert cache_key("s", 1, {}, _shuffled(parameters)) == cache_key("s", 1, {}, parameters)  # type: ignore[arg-type]


def test_every_part_of_the_key_counts() -> None:
    keys = [
        cache_key("index", 1, {"corpus": "aa"}, {"width": 16}),
        cache_key("indey", 1, {"corpus": "aa"}, {"width": 16}),
        cache_key("index", 2, {"corpus": "aa"}, {"width": 16}),
        cache_key("index", 1, {"corpus": "ab"}, {"width": 16}),
        cache_key("index", 1, {"corpuz": "aa"}, {"width": 16}),
        cache_key("index", 1, {"corpus": "aa"}, {"width": 17}),
        cache_key("index", 1, {"corpus": "aa"}, {"width": "16"}),
        cache_key("index", 1, {"corpus": "aa"}, {"width": None}),
        cache_key("index", 1, {"corpus": "aa"}, {}),
        cache_key("index", 1, {"corpus": "aa", "width": "16"}, {}),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 for key in keys)


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": {"b": float("-inf")}}])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        cache_key("s", 1, {}, {"value": value})


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes"])
def test_what_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        cache_key("s", 1, {}, {"value": value})


def test_the_digest_does_not_depend_on_the_order_of_files() -> None:
    entries = [FileEntry(path=name, bytes=1, sha256=name * 64) for name in "abc"]
    assert content_digest(entries) == content_digest(entries[::-1])
    assert content_digest(entries) != content_digest(entries[:2])
    hidden = entries[2].model_copy(update={"volatile": True})
    assert content_digest([*entries[:2], hidden]) == content_digest(entries[:2])


@given(st.dictionaries(st.text(alphabet=st.characters(codec="utf-8")), _JSON, max_size=4))
def test_a_sealed_manifest_is_whole_after_writing_and_reading(values: dict[str, object]) -> None:
    entries = [FileEntry(path="a", bytes=1, sha256="0" * 64)]
    manifest = Manifest(
        stage="s",
        version=1,
        kind="k",
        key="0",
        digest=content_digest(entries),
        parameters={"numbers": {3: (1, 2.5), 20: None}},
        values=values,
        files=entries,
        seconds=0.1,
    ).sealed()
    read = Manifest.model_validate_json(manifest.model_dump_json(indent=1))
    assert read.is_whole()
    assert not read.model_copy(update={"counts": {"examples": 1}}).is_whole()
    assert not read.model_copy(update={"seal": "0" * 64}).is_whole()


def test_the_source_and_the_environment_are_named() -> None:
    assert code_commit()
    found = environment()
    assert found["python"].startswith("3.")
    assert "torch" in found
    assert not any("/" in value for value in found.values())
