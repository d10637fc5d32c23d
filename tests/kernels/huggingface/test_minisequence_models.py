"""Models under `minisequence`: losses and gradients are the model's own, whatever its kind; nothing stays behind."""

import copy
import inspect
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from longloom.kernels.huggingface.minisequence import minisequence

from .models import LAYERS, VOCABULARY, random_model

#: Families, each with what is peculiar to its MLP or its head.
FAMILIES = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"mlp_bias": True}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma 2, softcap": ("gemma2", {"final_logit_softcapping": 2.0}),
    "gemma 3": ("gemma3_text", {}),
    "olmo 2": ("olmo2", {}),
    "phi: plain, biased head": ("phi", {"partial_rotary_factor": 1.0, "resid_pdrop": 0.0}),
    "phi 3: gate and up in one": ("phi3", {"resid_pdrop": 0.0}),
    "gpt neox: plain": ("gpt_neox", {"rotary_pct": 1.0}),
    "starcoder 2: plain": ("starcoder2", {"residual_dropout": 0.0, "embedding_dropout": 0.0}),
    "falcon: added to in place": ("falcon", {"ffn_hidden_size": 32, "hidden_dropout": 0.0, "attention_dropout": 0.0}),
}


#: Norms that are tiled, beside Llama's two a layer and one at the end: none where they are torch's own, none of heads.
NORMS = {
    "gemma 2, softcap": 4 * LAYERS + 1,
    "gemma 3": 4 * LAYERS + 1,
    "olmo 2": 3 * LAYERS + 1,  # of queries too, which it norms before they are heads
    "phi: plain, biased head": 0,
    "gpt neox: plain": 0,
    "starcoder 2: plain": 0,
    "falcon: added to in place": 0,
}


def batch(rows: int, tokens: int) -> dict[str, Tensor]:
    """Ids and labels, of which every fifth does not count."""
    ids = torch.randint(VOCABULARY, (rows, tokens))
    labels = ids.clone()
    labels[:, 2::5] = -100
    return {"input_ids": ids, "labels": labels}


def exact(model_type: str = "llama", **overrides) -> PreTrainedModel:
    return random_model(model_type, **overrides).double().train()


def dense_loss(model: PreTrainedModel, inputs: dict[str, Tensor], count: Tensor | None = None) -> Tensor:
    """In float64, where transformers' own is float32."""
    logits = model(input_ids=inputs["input_ids"]).logits[:, :-1].flatten(0, 1)
    labels = inputs["labels"][:, 1:].flatten()
    if count is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, reduction="sum") / count


def close(found: Tensor, expected: Tensor) -> bool:
    return abs(found.item() - expected.item()) <= 1e-10 * abs(expected.item())


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert set(found) == set(expected)
    for name, part in expected.items():
        # Gemma's norms sum their weight's gradient in float32, whatever the model's type: in tiles in another order.
        allowed = max(tolerance, 1e-6) if "norm" in name else tolerance
        assert (found[name] - part).norm() <= allowed * part.norm() + 1e-14, name


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_the_models_own(family):
    model_type, overrides = FAMILIES[family]
    model, inputs = exact(model_type, **overrides), batch(2, 11)
    expected = dense_loss(model, inputs)
    theirs = gradients(model, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with minisequence(model, rows=4) as patched:
            output = model(**inputs)
            ours = gradients(model, output.loss)
    assert patched.loss
    assert set(patched.tiles.values()) == {4}
    assert len(patched.tiles) == LAYERS
    assert len(patched.norms) == NORMS.get(family, 2 * LAYERS + 1)
    assert set(patched.norms.values()) <= {4}
    assert not patched.left
    assert output.logits is None
    assert close(output.loss, expected)
    assert_equal(ours, theirs)


MODEL = exact("gemma2", final_logit_softcapping=2.0)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 3),
    tokens=st.integers(2, 9),
    tile=st.integers(1, 12),
    count=st.one_of(st.none(), st.integers(1, 99)),
)
def test_any_shape(rows, tokens, tile, count):
    """Lengths modulo the tile, a tile beyond the sequence, with and without the number of items of the whole step."""
    inputs, total = batch(rows, tokens), None if count is None else torch.tensor(count)
    theirs = dense_loss(MODEL, inputs, total)
    expected = gradients(MODEL, theirs)
    with minisequence(MODEL, rows=tile):
        loss = MODEL(**inputs, num_items_in_batch=total).loss
    assert close(loss, theirs)
    assert_equal(gradients(MODEL, loss), expected)


@pytest.mark.parametrize("tokens", [1, 9])
def test_no_label_counts(tokens):
    """A length of one has no label either: the loss is 0 and so are the gradients, where transformers' are NaN."""
    model, inputs = exact(), batch(2, tokens)
    inputs["labels"].fill_(-100)
    for count in (None, torch.tensor(0), 0):
        with minisequence(model, rows=4):
            loss = model(**inputs, num_items_in_batch=count).loss
        assert loss.item() == 0
        assert not any(part.any() for part in gradients(model, loss).values())


def test_three_batches_accumulate_to_one():
    """With the number of items of all of them, as the Trainer gives it; an int and a float will do."""
    model, inputs = exact(), batch(3, 11)
    inputs["labels"][0, :7] = -100  # so that batches weigh differently
    count = inputs["labels"][:, 1:].ne(-100).sum()
    expected = gradients(model, dense_loss(model, inputs))
    for number in (count, int(count), float(count)):
        model.zero_grad()
        with minisequence(model, rows=4):
            for row in range(3):
                part = {name: value[row : row + 1] for name, value in inputs.items()}
                model(**part, num_items_in_batch=number).loss.backward()
        assert_equal({name: part.grad for name, part in model.named_parameters()}, expected)


def test_shifted_labels_and_another_ignored_one():
    model, inputs = exact(), batch(2, 11)
    expected = dense_loss(model, inputs)
    shifted = F.pad(inputs["labels"], (0, 1), value=-100)[:, 1:]
    with minisequence(model, rows=4):
        given = model(**inputs, shift_labels=shifted).loss
        renamed = model(inputs["input_ids"], labels=inputs["labels"].where(inputs["labels"] >= 0, -7), ignore_index=-7)
    assert close(given, expected)
    assert close(renamed.loss, expected)


def test_everything_else_is_the_models_own():
    """No labels, evaluation, logits asked for, tuples, generation; within the block and behind it."""
    model, inputs = random_model().train(), batch(2, 11)
    ids = inputs["input_ids"]

    def look() -> list[Tensor]:
        model.train()
        found = [model(input_ids=ids).logits, model(input_ids=ids, logits_to_keep=3).logits]
        model.eval()
        with torch.no_grad():
            output = model(**inputs)
        return [*found, output.logits, output.loss, model.generate(ids, max_new_tokens=5, do_sample=False)]

    before = look()
    with minisequence(model, rows=4):
        within = look()
        model.train()
        loss, *rest = model(**inputs, return_dict=False)
        assert loss.ndim == 0
        assert not any(isinstance(part, Tensor) and part.shape[-1] == VOCABULARY for part in rest)
        assert model(**inputs, output_hidden_states=True).hidden_states[-1].shape == (2, 11, 24)
    for one, two, three in zip(before, within, look(), strict=True):
        assert torch.equal(one, three)
        torch.testing.assert_close(one, two)


def test_evaluation_may_spare_its_logits():
    """As transformers' Trainer says it to a model whose loss is liger's."""
    model, inputs = random_model().eval(), batch(2, 11)
    with minisequence(model, rows=4), torch.no_grad():
        own, fused = model(**inputs), model(**inputs, skip_logits=True)
        assert model.train()(**inputs, skip_logits=False).logits.shape == (2, 11, VOCABULARY)
    assert own.logits is not None
    assert fused.logits is None
    torch.testing.assert_close(own.loss, fused.loss)


def test_nothing_stays_behind(tmp_path):
    model = random_model().train()
    state = {name: part.clone() for name, part in model.state_dict().items()}
    signature = inspect.signature(model.forward)
    before = [set(module.__dict__) for module in model.modules()]
    with minisequence(model, offload=True):
        assert inspect.signature(model.forward) == signature
        assert set(model.state_dict()) == set(state)
        model.save_pretrained(tmp_path)
    with pytest.raises(KeyError), minisequence(model):
        raise KeyError
    assert [set(module.__dict__) for module in model.modules()] == before
    again = type(model).from_pretrained(tmp_path)
    for name, part in again.state_dict().items():
        assert torch.equal(part, state[name])


def test_wrapped_and_copied_forwards_hand_on():
    """accelerate wraps a model's forward within the block, checkpoints copy it: behind it both do as the model does."""
    model, inputs = random_model().train(), batch(1, 9)
    with minisequence(model, rows=4):
        inner = model.forward
        model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
        copied = copy.deepcopy(model.model)
        assert model(**inputs).logits is None
        mlp = copied.layers[0].mlp
        assert mlp.forward.__self__ is mlp
    assert model(**inputs).logits is not None
    assert copied(input_ids=inputs["input_ids"]).last_hidden_state.shape == (1, 9, 24)


def test_a_model_is_patched_once():
    model = random_model()
    with minisequence(model):
        message = "minisequence: this model is within such a block already"
        with pytest.raises(ValueError, match=f"^{message}$"), minisequence(model):
            pass
    with minisequence(model):
        pass


def saved_bytes(model: PreTrainedModel, inputs: dict[str, Tensor]) -> int:
    """Of what autograd keeps of a forward pass, weights aside."""
    own = {part.untyped_storage().data_ptr() for part in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs).loss
    assert loss.requires_grad
    return sum(part.untyped_storage().nbytes() for place, part in kept.items() if place not in own)


def test_norms_keep_no_float32():
    """Llama's keep their input in float32: two vectors of bfloat16 a row and norm, of which ours keep none."""
    model, tokens = random_model("llama").to(torch.bfloat16).train(), 64
    inputs = batch(1, tokens)
    with minisequence(model, rows=8) as patched:
        tiled = saved_bytes(model, inputs)
    with minisequence(model, rows=8) as patched:
        for name in patched.norms:
            del model.get_decoder().get_submodule(name).forward
        whole = saved_bytes(model, inputs)
    assert whole - tiled >= len(patched.norms) * tokens * model.config.hidden_size * 4


def test_tiles_follow_the_budget():
    model = random_model()
    with minisequence(model, budget=(6 * 32 + 2 * 24) * 4 * 100) as patched:
        assert set(patched.tiles.values()) == {100}
    with minisequence(model, budget=1) as patched:
        assert set(patched.tiles.values()) == {24}


@pytest.mark.parametrize(
    ("model_type", "overrides", "loss", "message"),
    [
        ("bloom", {"n_head": 4}, True, "2 BloomMLP (TypeError on a few rows)"),
        ("opt", {"word_embed_proj_dim": 24, "ffn_dim": 32}, True, "2 OPTDecoderLayer (its rows depend on each other)"),
        ("mixtral", {}, True, "2 MixtralSparseMoeBlock (its layers have other names)"),
        (
            "granite",
            {"logits_scaling": 3.0},
            False,
            "the loss of GraniteForCausalLM: its logits are not those of a linear layer on the decoder's output",
        ),
    ],
)
def test_what_is_not_known_is_left_alone_and_said(model_type, overrides, loss, message):
    model, inputs = random_model(model_type, **overrides).train(), batch(2, 9)
    for module in model.modules():
        module.dropout = (
            0.0 if isinstance(getattr(module, "dropout", None), float) else getattr(module, "dropout", None)
        )
    expected = model(**inputs).loss
    said = pytest.warns(UserWarning, match=f"^minisequence leaves alone {re.escape(message)}$")
    with said, minisequence(model, rows=4) as patched:
        output = model(**inputs)
    assert patched.left == (message,)
    assert patched.loss is loss
    assert (output.logits is None) == loss
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("targets", [["q_proj"], ["gate_proj", "down_proj", "q_proj"]])
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_lora_with_a_frozen_head(targets, reentrant):
    """peft's model may be given; adapters within tiles and without; only they have gradients."""
    config = LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    model, inputs = get_peft_model(exact(), config), batch(2, 11)
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    theirs = gradients(model, dense_loss(model, inputs))
    with minisequence(model, rows=4) as patched:
        assert len(patched.tiles) == LAYERS
        output = model(**inputs)
        assert output.logits is None
        ours = gradients(model, output.loss)
    assert ours
    assert all("lora" in name for name in ours)
    assert_equal(ours, theirs)


def test_a_head_in_training_beside_adapters():
    """peft's `modules_to_save`: the copy is what counts, and what learns."""
    config = LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    model, inputs = get_peft_model(exact(), config), batch(2, 11)
    theirs = gradients(model, dense_loss(model, inputs))
    with minisequence(model, rows=4) as patched:
        assert patched.loss
        ours = gradients(model, model(**inputs).loss)
    assert any("lm_head" in name for name in ours)
    assert_equal(ours, theirs)
    with torch.no_grad():
        for name, part in model.named_parameters():
            if name in ours:
                part.add_(0.1)
    with minisequence(model, rows=4), model.disable_adapter():
        assert close(model(**inputs).loss, dense_loss(model, inputs))


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("place", ["keyword", "configuration"])
def test_the_balance_of_routers_is_in_the_loss(model_type, place):
    """With a weight below what the comparison of losses would notice, and one beyond. Experts take no float64."""
    more = (
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16} if model_type == "qwen3_moe" else {}
    )
    for weight in (1e-4, 0.5):
        model, inputs = random_model(model_type, router_aux_loss_coef=weight, **more).train(), batch(2, 11)
        plain = model(**inputs).loss.detach()
        model.config.output_router_logits = place == "configuration"
        asked = {"output_router_logits": True} if place == "keyword" else {}
        own = model(**inputs, **asked).loss
        theirs = gradients(model, own)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with minisequence(model, rows=4) as patched:
                output = model(**inputs, **asked)
                ours = gradients(model, output.loss)
        assert patched.loss
        assert output.logits is None
        assert own - plain > 2e-5 * plain
        torch.testing.assert_close(output.loss, own, rtol=2e-6, atol=0)
        assert_equal(ours, theirs, 1e-4)


def test_an_adapted_head_keeps_its_logits():
    config = LoraConfig(r=3, target_modules=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(exact(), config)
    message = "the loss of LlamaForCausalLM: its output layer is peft's Linear, no plain linear layer"
    with pytest.warns(UserWarning, match=message), minisequence(model) as patched:
        assert not patched.loss


def test_reentrant_checkpointing_that_trains_nothing_is_refused():
    """The authors' code trains nothing but the head there, silently."""
    config = LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model, inputs = get_peft_model(exact(), config), batch(2, 11)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.get_base_model().disable_input_require_grads()
    with minisequence(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            ValueError, match=r"^minisequence: reentrant gradient checkpointing trains nothing below the head"
        ):
            model(**inputs)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma 2, softcap"])
def test_gradient_checkpointing(family, reentrant, offload):
    """Switched on within the block, as the Trainer does."""
    model_type, overrides = FAMILIES[family]
    model, inputs = exact(model_type, **overrides), batch(2, 11)
    theirs = gradients(model, dense_loss(model, inputs))
    with minisequence(model, rows=4, offload=offload):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        ours = gradients(model, model(**inputs).loss)
    assert_equal(ours, theirs)


def test_what_is_offloaded_is_the_layers_inputs(monkeypatch):
    moved: list[tuple[int, ...]] = []
    hooks = torch.autograd.graph.saved_tensors_hooks

    def host_saved():
        return hooks(lambda tensor: moved.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor)

    monkeypatch.setattr("longloom.kernels.huggingface.minisequence.host_saved", host_saved)
    model, inputs = exact(), batch(2, 11)
    model.gradient_checkpointing_enable()
    with minisequence(model, rows=4, offload=True):
        model(**inputs).loss.backward()
    assert moved == [(2, 11, 24)] * LAYERS


def test_offload_needs_checkpoints():
    model, inputs = exact(), batch(2, 11)
    message = r"^minisequence: offload needs gradient checkpointing: model.gradient_checkpointing_enable\(\)$"
    with minisequence(model, offload=True), pytest.raises(ValueError, match=message):
        model(**inputs)


def test_evaluation_between_steps_harms_nothing():
    model, inputs = exact(), batch(2, 11)
    theirs = gradients(model, dense_loss(model, inputs))
    with minisequence(model, rows=4):
        model.eval()
        with torch.no_grad():
            model(**inputs)
        model.train()
        loss = model(**inputs).loss
        with torch.no_grad():
            model(**batch(1, 7))
        assert_equal(gradients(model, loss), theirs)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_autocast(kind):
    """The fused loss casts what autocast would; the gradients are no farther from float64's than the model's own."""
    model, inputs = random_model().train(), batch(2, 40)
    double = copy.deepcopy(model).double()
    exactly = gradients(double, dense_loss(double, inputs))
    with torch.autocast("cpu", kind):
        theirs = gradients(model, model(**inputs).loss)
        with minisequence(model, rows=8):
            loss = model(**inputs).loss
    ours = gradients(model, loss)
    for name, part in exactly.items():
        off = [float((found[name] - part).norm() / part.norm()) for found in (ours, theirs)]
        assert off[0] <= 1.5 * off[1] + 1e-3, name


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(2, 2), {}, "minisequence: model must be a transformers or peft model, found Linear"),
        (None, {"rows": 0}, "minisequence: rows must be at least 1, found 0"),
        (None, {"budget": 0}, "tile_rows: budget must be positive, found 0"),
    ],
)
def test_a_bad_call_is_refused(model, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"), minisequence(model or random_model(), **options):
        pass
