"""Rotary positions for a longer window, against plain formulas, and what cannot be extended."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, LlamaForCausalLM

from longloom.tasks.training.extension import load_extended
from longloom.tasks.training.rope import extend_rope

WIDTH, WINDOW, THETA = 8, 64, 10_000.0


def config(**changes: Any) -> LlamaConfig:
    options: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": WIDTH,
        "max_position_embeddings": WINDOW,
        "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
    }
    return LlamaConfig(**options | changes)


def frequencies(config: LlamaConfig) -> tuple[list[float], float]:
    """Of a model made of the configuration: inverse frequencies, and the factor on the rotated vectors."""
    rotary = LlamaForCausalLM(config).model.rotary_emb
    return rotary.inv_freq.tolist(), float(rotary.attention_scaling)


def plain(theta: float) -> list[float]:
    return [theta ** -(2 * i / WIDTH) for i in range(WIDTH // 2)]


def test_a_base_is_what_it_is_told_to_be() -> None:
    longer = config()
    found = extend_rope(longer, kind="base", length=1024, base=150e6)
    assert found == {"rope_type": "default", "rope_theta": 150e6}
    assert longer.max_position_embeddings == 1024
    assert frequencies(longer)[0] == pytest.approx(plain(150e6))


@pytest.mark.parametrize("times", [2, 8, 16])
def test_the_default_base_slows_the_lowest_frequency_by_the_factor(times: int) -> None:
    longer = config()
    extend_rope(longer, kind="base", length=times * WINDOW, base=None)
    before, after = plain(THETA), frequencies(longer)[0]
    assert after[-1] == pytest.approx(before[-1] / times)
    assert after[0] == before[0] == 1.0


def test_linear_divides_every_frequency() -> None:
    longer = config()
    extend_rope(longer, kind="linear", length=4 * WINDOW, base=None)
    assert frequencies(longer)[0] == pytest.approx([each / 4 for each in plain(THETA)])


def test_yarn_leaves_high_frequencies_and_scales_low_ones() -> None:
    longer = config()
    found = extend_rope(longer, kind="yarn", length=4 * WINDOW, base=None)
    assert (found["original_max_position_embeddings"], found["factor"]) == (WINDOW, 4.0)
    after, scaling = frequencies(longer)
    assert after[0] == pytest.approx(1.0)
    assert after[-1] == pytest.approx(plain(THETA)[-1] / 4)
    assert scaling == pytest.approx(0.1 * math.log(4) + 1)  # arXiv 2309.00071, equation 22


def test_llama3_scales_by_wavelength() -> None:
    longer = config()
    extend_rope(longer, kind="llama3", length=4 * WINDOW, base=None)
    after, expected = frequencies(longer)[0], []
    for each in plain(THETA):
        wave = 2 * math.pi / each
        smooth = min(1.0, max(0.0, (WINDOW / wave - 1) / (4 - 1)))
        expected.append((1 - smooth) * each / 4 + smooth * each)
    assert after == pytest.approx(expected)
    assert expected[0] == 1.0
    assert expected[-1] == plain(THETA)[-1] / 4


def test_partial_rotation_counts_the_rotated_dimensions_alone() -> None:
    longer = config(rope_parameters={"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.5})
    extend_rope(longer, kind="base", length=8 * WINDOW, base=None)
    assert longer.rope_parameters["rope_theta"] == pytest.approx(THETA * 8 ** (4 / 2))


def test_of_a_model_with_windows_the_full_layers_alone_are_changed() -> None:
    gemma = Gemma3TextConfig(max_position_embeddings=WINDOW)
    before = {name: dict(own) for name, own in gemma.rope_parameters.items()}
    extend_rope(gemma, kind="base", length=2 * WINDOW, base=9e9)
    assert gemma.rope_parameters["full_attention"]["rope_theta"] == 9e9
    assert gemma.rope_parameters["sliding_attention"] == before["sliding_attention"]


def test_a_saved_model_comes_back_with_the_new_positions(tmp_path: Path) -> None:
    LlamaForCausalLM(config()).save_pretrained(tmp_path / "a")
    longer, _ = load_extended(tmp_path / "a", length=256, rope="yarn", base=None)
    longer.save_pretrained(tmp_path / "b")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    ids = torch.arange(200)[None] % 50
    with torch.no_grad():
        assert torch.equal(longer(ids).logits, again(ids).logits)
    old = LlamaForCausalLM.from_pretrained(tmp_path / "a").state_dict()
    assert all(torch.equal(value, old[name]) for name, value in longer.state_dict().items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "longrope"}, "rope 'longrope': unknown, expected one of base, linear, yarn, llama3"),
        ({"kind": "dynamic"}, "rope 'dynamic': unknown"),
        ({"length": 64}, "length is 64, expected more than the 64 tokens of the model's window"),
        ({"base": 500.0}, "base is 500, expected at least the model's 10,000"),
    ],
)
def test_bad_wishes(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        extend_rope(config(), **{"kind": "base", "length": 128, "base": None} | options)


def test_a_scaling_on_top_of_another_and_a_model_without_rotation_are_refused() -> None:
    scaled = config()
    extend_rope(scaled, kind="llama3", length=128, base=None)
    with pytest.raises(ValueError, match="rope 'yarn': the model has the type 'llama3' already, expected 'base'"):
        extend_rope(scaled, kind="yarn", length=256, base=None)
    extend_rope(scaled, kind="base", length=256, base=1e6)
    assert (scaled.rope_parameters["rope_type"], scaled.rope_parameters["factor"]) == ("llama3", 2.0)
    with pytest.raises(ValueError, match="model: gpt2 has no rotary positions"):
        extend_rope(GPT2Config(), kind="base", length=4096, base=None)
