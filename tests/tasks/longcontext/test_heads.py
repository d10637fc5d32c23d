"""Head profiles: equal to plain loops over eager attention, bound to their weights, and refused where they are none."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from longloom.kernels.huggingface.attention import policy_attention, sliding_windows
from longloom.kernels.huggingface.load import load_model
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.kernels.kvcache.razor import RazorPolicy
from longloom.tasks.longcontext.heads import build, probed, strongest

from .conftest import WINDOW

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
#: The fixture's model: layers, query heads, KV heads.
LAYERS, QUERIES, HEADS = 2, 4, 2
PROBE: dict[str, Any] = {"length": 9, "repeats": 3, "seed": 5}
PLACE: dict[str, Any] = {"scores": None, "layout": None, "device": "cpu", "dtype": None}


@pytest.fixture
def loaded(model_folder: Path) -> Loaded:
    model, tokenizer = load_model(model_folder, device="cpu")
    sliding_windows(model)  # looks once, by feeding a few tokens
    return model, tokenizer


def fed_to(model: PreTrainedModel) -> list[Tensor]:
    """Filled with the ids that the model's embedding sees."""
    fed: list[Tensor] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].clone()))
    return fed


def oracle(model: PreTrainedModel, ids: Tensor, length: int) -> dict[str, list[list[float]]]:
    """Echo, induction and the best displaced score of every KV head, by loops over transformers' eager attention."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(ids, output_attentions=True).attentions
    found: dict[str, list[list[float]]] = {"echo": [], "induction": [], "displaced": []}
    for weights in attentions:
        a = weights[0, :, 1:, 1:].double()  # without the begin token
        tokens = a.shape[1]
        means = np.zeros((QUERIES, length))
        for i in range(length, tokens):
            for j in range(i % length, i, length):
                for after in range(min(length, i - j + 1)):
                    means[:, after] += a[:, i, j + after].numpy() / (tokens - length)
        best = means.reshape(HEADS, -1, length).max(axis=1)
        found["echo"].append(best[:, 0].tolist())
        found["induction"].append(best[:, 1].tolist())
        found["displaced"].append(best[:, 2:].max(axis=1).tolist())
    return found


@pytest.mark.parametrize(("length", "repeats"), [(9, 3), (8, 4), (17, 2), (5, 7)])
def test_scores_equal_loops_over_eager_attention(length: int, repeats: int, loaded: Loaded) -> None:
    model, tokenizer = loaded
    fed = fed_to(model)
    profile = probed(model, tokenizer, length=length, repeats=repeats, seed=5)
    (ids,) = fed
    assert ids.shape == (1, 1 + length * repeats)
    assert ids[0, 0] == tokenizer.bos_token_id
    assert torch.equal(ids[0, 1:], ids[0, 1 : 1 + length].repeat(repeats))
    expected = oracle(model, ids, length)
    settings = dict(profile.settings)
    for name, scores in (
        ("echo", profile.echo),
        ("induction", profile.induction),
        ("displaced", settings["displaced"]),
    ):
        assert np.shape(scores) == (LAYERS, HEADS)
        np.testing.assert_allclose(scores, expected[name], atol=2e-6)
    assert np.ptp(profile.induction) > 0.01  # the heads do differ
    assert profile.source == "probe"
    named = {"length": length, "repeats": repeats, "seed": 5, "tokens": 1 + length * repeats, "window": WINDOW}
    assert {name: settings[name] for name in (*named, "begin", "dtype")} == named | {"begin": "bos", "dtype": "float32"}


def test_every_layer_is_told_of(loaded: Loaded) -> None:
    told: list[tuple[int, int | None]] = []
    probed(*loaded, **PROBE, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_a_sequence_fills_the_window_at_most(loaded: Loaded) -> None:
    model, tokenizer = loaded
    fed = fed_to(model)
    probed(model, tokenizer, length=None, repeats=4, seed=0)
    probed(model, tokenizer, length=(WINDOW - 1) // 7, repeats=7, seed=0)
    assert [ids.shape[1] for ids in fed] == [1 + 4 * 127, WINDOW]
    model.get_decoder().config.max_position_embeddings = 20_000
    fed.clear()
    probed(model, tokenizer, length=None, repeats=2, seed=0)
    assert [ids.shape[1] for ids in fed] == [5001]


@pytest.mark.parametrize(
    ("length", "repeats", "expected"),
    [
        (128, 4, "length 128 x repeats 4 and a begin token are 513 tokens, .* no more tokens than .* window of 512$"),
        (None, 256, "length 1 x repeats 256 .* expected both at least 2"),
        (None, 600, "length 0 x repeats 600 "),
        (5, 1, "length 5 x repeats 1 "),
    ],
)
def test_lengths_that_do_not_fit(length: int | None, repeats: int, expected: str, loaded: Loaded) -> None:
    with pytest.raises(ValueError, match=f"^head profile: {expected}"):
        probed(*loaded, length=length, repeats=repeats, seed=0)


def test_special_and_unused_ids_are_never_drawn(loaded: Loaded) -> None:
    """Not even reserved ones, which no role is given to, and rows that the tokenizer has no token for."""
    model, tokenizer = loaded
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|reserved|>"]})
    size = len(tokenizer)
    model.resize_token_embeddings(size + 200)
    fed = fed_to(model)
    probed(model, tokenizer, length=255, repeats=2, seed=0)
    drawn = set(fed[0][0, 1:].tolist())
    special = set(tokenizer.convert_tokens_to_ids(["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>", "<|reserved|>"]))
    assert len(special) == 5
    assert not drawn & special
    assert max(drawn) < size
    assert len(drawn) > 100


def test_the_begin_token_may_be_the_end_token(loaded: Loaded) -> None:
    model, tokenizer = loaded
    fed = fed_to(model)
    tokenizer.bos_token = None
    tokenizer.eos_token = "<|user|>"
    profile = probed(model, tokenizer, **PROBE)
    assert dict(profile.settings)["begin"] == "eos"
    assert fed[0][0, 0] == tokenizer.eos_token_id != 0
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a begin nor an end token"):
        probed(model, tokenizer, **PROBE)


def test_an_artifact_is_the_same_each_time_and_its_map_is_drawn(model_folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        stats = build(model_folder, tmp_path / name, probe=PROBE, **PLACE)
    assert stats.counts == {"layers": LAYERS, "kv_heads": LAYERS * HEADS, "protected": 2}
    assert stats.volatile == ("heads.png",)
    assert (tmp_path / "one/heads.json").read_bytes() == (tmp_path / "two/heads.json").read_bytes()
    assert (tmp_path / "one/heads.png").read_bytes().startswith(b"\x89PNG")
    profile = HeadProfile.read(tmp_path / "one/heads.json")
    assert profile.shape == (LAYERS, HEADS)
    assert stats.values["strongest"] == strongest(profile, RazorPolicy())


def test_the_strongest_heads_and_what_protects_them() -> None:
    rng = np.random.default_rng(0)
    induction, echo = rng.permutation(100).reshape(20, 5) / 100, rng.permutation(100).reshape(20, 5) / 100
    profile = HeadProfile("probe", "w", tuple(map(tuple, induction.tolist())), tuple(map(tuple, echo.tolist())))
    rows = strongest(profile, RazorPolicy())
    best = [np.unravel_index(place, (20, 5)) for place in np.argsort(-induction.ravel())]
    (loudest,) = [np.unravel_index(place, (20, 5)) for place in np.argsort(-echo.ravel())[:1]]
    assert loudest not in best[:10]
    assert [(row["layer"], row["kv_head"]) for row in rows] == [*best[:10], loudest]
    assert [row["induction"] for row in rows[:10]] == [pytest.approx(0.99 - rank / 100) for rank in range(10)]
    assert [row["protected"] for row in rows[:10]] == ["induction"] * 10  # 14 of 100 are
    assert rows[10]["protected"] in ("echo", "induction, echo")
    assert rows[10]["echo"] == 0.99
    alone = strongest(HeadProfile("kvzip", "w", profile.induction), RazorPolicy(induction=0.02))
    assert [row["protected"] for row in alone] == ["induction"] * 2 + [""] * 8
    assert {row["echo"] for row in alone} == {None}


def test_published_scores_become_a_profile_without_echo(model_folder: Path, loaded: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(
        json.dumps({f"{layer}-{head}": [layer, head] for layer in range(LAYERS) for head in range(QUERIES)})
    )
    out = tmp_path / "out"
    out.mkdir()
    stats = build(model_folder, out, probe=None, **PLACE | {"scores": path, "layout": "retrieval-head"})
    profile = HeadProfile.read(out / "heads.json")
    assert asdict(profile) | {"weights": "", "settings": ()} == {
        "source": "retrieval-head",
        "weights": "",
        "induction": ((0.5, 1.5), (1.0, 2.0)),
        "echo": None,
        "settings": (),
        "sliding_layers": (),
    }
    assert dict(profile.settings) == {"model": "LlamaForCausalLM", "file": "scores.json"}
    assert stats.counts["protected"] == 1
    assert (out / "heads.png").stat().st_size > 1000
    with policy_attention(loaded[0], RazorPolicy(heads=profile)):
        pass


def test_a_profile_serves_its_own_weights_alone(model_folder: Path, loaded: Loaded, tmp_path: Path) -> None:
    build(model_folder, tmp_path, probe=PROBE, **PLACE)
    profile = HeadProfile.read(tmp_path / "heads.json")
    model, _ = loaded
    with policy_attention(model, RazorPolicy(heads=profile, window=4)) as cache, torch.no_grad():
        model(torch.arange(40)[None], past_key_values=cache)
    with torch.no_grad():
        model.get_parameter("model.layers.0.self_attn.q_proj.weight").mul_(1.5)
    with (
        pytest.raises(ValueError, match=r"the head profile was made of weights .* `longloom heads` makes one"),
        policy_attention(model, RazorPolicy(heads=profile)),
    ):
        pass


def write_model(model_type: str, settings: dict[str, Any], tokenizer: Path, folder: Path) -> Path:
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    config = AutoConfig.for_model(
        model_type, vocab_size=300, hidden_size=24, bos_token_id=0, eos_token_id=0, **settings
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_layers_with_a_sliding_window_are_named(model_folder: Path, tmp_path: Path) -> None:
    settings = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    folder = write_model("qwen2", settings, model_folder, tmp_path / "model")
    stats = build(folder, tmp_path, probe=PROBE, **PLACE)
    assert stats.values["sliding_layers"] == [0]
    profile = HeadProfile.read(tmp_path / "heads.json")
    chosen = profile.chosen(induction=0.14, echo=0.01)
    assert chosen <= {(1, 0), (1, 1)}
    assert stats.counts == {"layers": 2, "kv_heads": 2, "protected": len(chosen)}
    windowed, full = profile.induction
    assert windowed == (0, 0)
    assert min(full) > 0
    assert profile.sliding_layers == (0,)
    assert {row["layer"] for row in stats.values["strongest"]} == {1}

    scores, out = tmp_path / "scores.tsv", tmp_path / "imported"
    np.savetxt(scores, [[0.9, 0.8], [0.1, 0.2]], delimiter="\t")  # others may well have scored such layers
    out.mkdir()
    stats = build(folder, out, probe=None, **PLACE | {"scores": scores, "layout": "duoattention"})
    imported = HeadProfile.read(out / "heads.json")
    assert imported.sliding_layers == (0,)
    assert imported.chosen(induction=0.14, echo=0.01) == {(1, 1)}
    assert stats.counts["protected"] == 1


def test_shares_are_of_the_heads_that_attend_to_all_tokens(tmp_path: Path) -> None:
    scores = tuple((0.9 - layer / 100, 0.5 - layer / 100) for layer in range(12))
    windowed = tuple(layer for layer in range(12) if layer % 3)  # 4 of 12 layers are left
    profile = HeadProfile("test", "", scores, scores[::-1], sliding_layers=windowed)
    assert profile.ranked == [(layer, head) for layer in (0, 3, 6, 9) for head in (0, 1)]
    assert profile.chosen(induction=0.25, echo=0) == {(0, 0), (3, 0)}
    assert profile.chosen(induction=0, echo=0.25) == {(6, 0), (9, 0)}
    assert profile.chosen(induction=1, echo=1) == set(profile.ranked)
    assert [(row["layer"], row["kv_head"]) for row in strongest(profile, RazorPolicy())][:2] == [(0, 0), (3, 0)]
    assert profile != HeadProfile("test", "", scores, scores[::-1])  # they choose other heads

    path = tmp_path / "heads.json"
    profile.write(path)
    assert HeadProfile.read(path) == profile
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["sliding_layers"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert HeadProfile.read(path).sliding_layers == ()


@pytest.mark.parametrize("layers", [(2,), (-1,), (1, 0), (0, 0), (0.0,), (True,), ("0",)])
def test_sliding_layers_that_are_none(layers: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^head profile: sliding_layers is \[.*\], expected layers of 0 to 1 in order$"
    ):
        HeadProfile("test", "", ((0.1,), (0.2,)), sliding_layers=layers)


@pytest.mark.parametrize(
    ("model_type", "settings", "expected"),
    [
        ("bloom", {"n_layer": 2, "n_head": 4}, "'razor' needs rotary positions; with ALiBi: .*razor-alibi"),
        ("gpt2", {"n_embd": 24, "n_layer": 2, "n_head": 4}, "no rotary position embedding"),
        (
            "mistral",
            {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 8},
            "head profile: every layer attends to a sliding window",
        ),
    ],
)
def test_models_that_have_no_profile(
    model_type: str, settings: dict[str, Any], expected: str, model_folder: Path, tmp_path: Path
) -> None:
    folder = write_model(model_type, settings, model_folder, tmp_path / "model")
    out = tmp_path / "out"
    out.mkdir()
    scores = tmp_path / "scores.tsv"
    np.savetxt(scores, np.zeros((2, 2)), delimiter="\t")
    for changes in (
        {"probe": PROBE, **PLACE},
        {"probe": None, **PLACE, "scores": scores, "layout": "duoattention"},
    ):
        with pytest.raises(ValueError, match=expected):
            build(folder, out, **changes)
    assert not list(out.iterdir())
