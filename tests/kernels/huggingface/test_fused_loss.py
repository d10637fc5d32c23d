"""Which models the fused loss takes for those whose loss it knows: soft caps are seen at logits that reach them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longloom.kernels.huggingface.fused_loss import fused_loss, loss_refusal, plain_head, softcap_of

from .models import VOCABULARY, random_model

RECURRENT = {"lru_width": 24, "attention_window_size": 16, "block_types": ["recurrent", "attention"]}


def recurrent(**overrides: Any) -> PreTrainedModel:
    return random_model("recurrent_gemma", **RECURRENT, **overrides)


def with_head(model: PreTrainedModel, scale: float) -> PreTrainedModel:
    """The model with a head of so small weights that its logits are small."""
    head = plain_head(model)
    assert head is not None
    head.weight = nn.Parameter(head.weight.detach() * scale)
    return model


def capped_elsewhere(model: PreTrainedModel, cap: float) -> PreTrainedModel:
    """The model with a soft cap that its configuration does not name."""
    own = type(model).forward

    class Capped(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, labels: Tensor | None = None, logits_to_keep: int = 0, **kwargs: Any) -> Any:
            count = {"num_items_in_batch": kwargs.pop("num_items_in_batch", None)}
            output = own(self, *args, logits_to_keep=logits_to_keep, **kwargs)
            output["logits"] = cap * torch.tanh(output.logits / cap)
            if labels is not None:
                output["loss"] = self.loss_function(output.logits, labels, VOCABULARY, **count)
            return output

    model.__class__ = Capped
    return model


@pytest.mark.parametrize("cap", [30.0, 2.0])
@pytest.mark.parametrize("scale", [1.0, 1e-2])
def test_recurrent_gemma(cap: float, scale: float) -> None:
    model = with_head(recurrent(logits_soft_cap=cap), scale)
    assert softcap_of(model) == cap
    assert loss_refusal(model) is None
    ids = torch.arange(20)[None] * 7 % VOCABULARY
    with torch.no_grad():
        hidden, expected = model.get_decoder()(ids).last_hidden_state, model(ids, labels=ids).loss
        torch.testing.assert_close(fused_loss(model, hidden, ids), expected)


@pytest.mark.parametrize("scale", [1.0, 1e-2, 0.0])
def test_a_soft_cap_of_unknown_name_is_refused(scale: float) -> None:
    assert loss_refusal(with_head(random_model(), scale)) is None
    model = capped_elsewhere(with_head(random_model(), scale), 30.0)
    refusal = loss_refusal(model)
    assert refusal is not None
    if scale < 1:
        assert refusal == "it changes large logits in a way that is not known"


def test_the_question_leaves_nothing_behind() -> None:
    model = random_model().train()
    head = plain_head(model)
    assert head is not None
    before, drawn = dict(vars(head)), torch.random.get_rng_state()
    loss_refusal(model)
    assert not head._forward_hooks
    assert vars(head).keys() == before.keys()
    assert torch.equal(torch.random.get_rng_state(), drawn)
