"""A model's fingerprint stays through what leaves the weights alone, and changes with them."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from longloom.kernels.huggingface.attention import check_profile
from longloom.kernels.huggingface.weights import fingerprint
from longloom.kernels.kvcache.heads import HeadProfile

from .models import random_model


def test_it_survives_bfloat16_and_saving(tmp_path: Path) -> None:
    model = random_model()
    expected = fingerprint(model)
    assert len(expected) == 64
    assert set(expected) <= set("0123456789abcdef")
    assert fingerprint(copy.deepcopy(model)) == expected
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert fingerprint(loaded) == expected
    assert fingerprint(model.to(torch.bfloat16)) == expected
    assert fingerprint(model.to(torch.float32)) == expected  # though the weights are not what they were
    assert fingerprint(model.to(torch.float64)) == expected


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_one_training_step_changes_it(optimizer: type[torch.optim.Optimizer]) -> None:
    model = random_model().train()
    before = fingerprint(model)
    ids = torch.arange(20)[None]
    steps = optimizer(model.parameters(), lr=1e-4)  # type: ignore[call-arg]
    assert fingerprint(model) == before
    model(input_ids=ids, labels=ids).loss.backward()
    steps.step()
    assert fingerprint(model) != before


def test_every_way_to_change_a_parameter_is_seen() -> None:
    """Also those that torch's counts of versions miss."""
    model = random_model()
    other = {name: weight + 1 for name, weight in model.state_dict().items()}
    seen = [fingerprint(model)]
    model.model.norm.weight = nn.Parameter(model.model.norm.weight.detach() * 2)
    seen.append(fingerprint(model))
    model.model.norm.weight.data.mul_(2)
    seen.append(fingerprint(model))
    with torch.inference_mode():
        model.model.norm.weight.mul_(2)
    seen.append(fingerprint(model))
    model.load_state_dict(other, assign=True)
    seen.append(fingerprint(model))
    assert len(set(seen)) == len(seen)
    with torch.inference_mode():
        born = random_model()
        assert born.model.norm.weight.is_inference()
        before = fingerprint(born)
        born.model.norm.weight.mul_(2)
        assert fingerprint(born) != before


class Named(nn.Module):
    """Parameters in the order in which they are given."""

    def __init__(self, **parameters: torch.Tensor) -> None:
        super().__init__()
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))


def test_order_does_not_matter_names_and_shapes_do() -> None:
    one, two = torch.arange(6.0), torch.ones(2, 3)
    expected = fingerprint(Named(a=one, b=two))
    assert fingerprint(Named(b=two, a=one)) == expected
    others = [
        Named(a=two, b=one),
        Named(a=one, c=two),
        Named(a=one),
        Named(a=one.view(2, 3), b=two),
        Named(a=one, b=two.view(3, 2)),
        Named(a=-one, b=two),
        Named(),
    ]
    assert len({fingerprint(other) for other in others} | {expected}) == 8


@pytest.mark.parametrize("length", [0, 1, 2, 63, 64, 65, 127, 5000])
def test_the_first_and_the_last_number_count_and_all_of_few(length: int) -> None:
    weight = torch.arange(float(length)) % 251
    expected = fingerprint(Named(a=weight))
    for place in range(length) if length <= 64 else (0, length - 1):
        changed = weight.clone()
        changed[place] -= 1000
        assert fingerprint(Named(a=changed)) != expected


@pytest.mark.parametrize("length", [65, 100, 1000, 4097, 12_345])
def test_those_looked_at_are_evenly_spread(length: int) -> None:
    weight = torch.zeros(length)
    expected = fingerprint(Named(a=weight))
    places = []
    for place in range(length):
        weight[place] = 1
        if fingerprint(Named(a=weight)) != expected:
            places.append(place)
        weight[place] = 0
    assert places == [number * (length - 1) // 63 for number in range(64)]


def test_a_weight_that_lies_transposed_is_the_same() -> None:
    weight = torch.randn(30, 50)
    assert fingerprint(Named(a=weight.T.contiguous().T)) == fingerprint(Named(a=weight))


def test_tied_weights_count_once(tmp_path: Path) -> None:
    model = random_model(tie_word_embeddings=True)
    expected = fingerprint(model)
    assert "lm_head.weight" not in dict(model.named_parameters())
    model.save_pretrained(tmp_path)
    assert fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path)) == expected
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    assert fingerprint(model) != expected


def test_a_profile_of_other_weights_is_refused(model: PreTrainedModel) -> None:
    found = fingerprint(model)
    scores = ((0.1, 0.2), (0.3, 0.4))
    check_profile(model, HeadProfile("probe", found, scores))
    message = (
        f"the head profile was made of weights {'f' * 12}, this model has {found[:12]}; `longloom heads` makes one "
        "that fits"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_profile(model, HeadProfile("probe", "f" * 64, scores))
