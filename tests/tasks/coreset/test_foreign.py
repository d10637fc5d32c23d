"""Warm-ups made elsewhere: states by name and by number, in any format they come in, give the artifact's bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from longloom.tasks.coreset.checkpoints import read_checkpoints, read_moments
from longloom.tasks.coreset.foreign import build, mean_rates, read_optimizer
from longloom.tasks.coreset.gradients import load_adapted, trainable

STEPS = (4, 10)
#: Learning rates of steps 1 to 10; the means at the checkpoints are 2.5 and 7.5.
LOG = [{"step": step, "learning_rate": float(step), "loss": 1.0} for step in range(1, 11)]


def named(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    moments = load_file(folder / "optimizer.safetensors")
    names = [name.removeprefix("exp_avg.") for name in moments if name.startswith("exp_avg.")]
    return {
        name: {
            "exp_avg": moments[f"exp_avg.{name}"],
            "exp_avg_sq": moments[f"exp_avg_sq.{name}"],
            "step": torch.tensor(4.0),
        }
        for name in names
    }


def by_name(folder: Path, target: Path, toy) -> None:
    torch.save({"state": named(folder), "param_groups": []}, target / "optimizer.bin")


def wrapped(folder: Path, target: Path, toy) -> None:
    states = {
        "_fsdp_wrapped_module." + name.replace("self_attn.", "_checkpoint_wrapped_module.self_attn."): state
        for name, state in named(folder).items()
    }
    torch.save({"state": states, "param_groups": []}, target / "optimizer.bin")


def by_number(folder: Path, target: Path, toy) -> None:
    states, layout = named(folder), trainable(load_adapted(toy.model, folder))
    numbers = list(range(len(layout)))
    held = {
        "state": {number: states[name] for number, name in zip(numbers, layout, strict=True)},
        "param_groups": [{"params": numbers, "lr": 0.1}, {"params": [], "lr": 0.1}],
    }
    torch.save(held, target / "optimizer.pt")


Writer = Callable[[Path, Path, Any], None]


@pytest.fixture
def foreign(toy, tmp_path: Path) -> Callable[[Writer], Path]:
    def make(write: Writer) -> Path:
        for number, step in enumerate(STEPS, start=1):
            source = toy.warmup / f"checkpoint-{number:05d}"
            target = tmp_path / "foreign" / f"checkpoint-{step}"
            target.mkdir(parents=True)
            for name in ("adapter_model.safetensors", "adapter_config.json"):
                shutil.copy(source / name, target / name)
            write(source, target, toy)
            state = {"global_step": step, "log_history": [*LOG[:step], {"step": step, "eval_loss": 1.0}]}
            (target / "trainer_state.json").write_text(json.dumps(state))
        return tmp_path / "foreign"

    return make


@pytest.mark.parametrize("write", [by_name, wrapped, by_number])
def test_moments_weights_and_rates(toy, foreign, tmp_path: Path, write: Writer) -> None:
    out = tmp_path / "out"
    out.mkdir()
    stats = build(toy.model, foreign(write), out)
    made, expected = read_checkpoints(out), read_checkpoints(toy.warmup)
    assert [one.step for one in made] == list(STEPS)
    assert [one.mean_learning_rate for one in made] == pytest.approx([2.5, 7.5])
    assert [one.weight for one in made] == pytest.approx([0.25, 0.75])
    assert stats.counts["checkpoints"] == 2
    for ours, theirs in zip(made, expected, strict=True):
        parameters = trainable(load_adapted(toy.model, ours.folder))
        layout = {name: one.shape for name, one in parameters.items()}
        for a, b in zip(read_moments(ours, layout), read_moments(theirs, layout), strict=True):
            assert torch.equal(a, b)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(toy.model), theirs.folder)
        for name, value in model.named_parameters():
            if name in parameters:
                assert torch.equal(parameters[name], value)


def test_rotary_frequencies_stay_in_float32(toy) -> None:
    """As the type of a GPU's gradients: in bfloat16 angles are 0.2 rad off at position 1,000."""
    model = load_adapted(toy.model, toy.warmup / "checkpoint-00001", dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} == {torch.float32}


def test_the_trainer_s_own_file_is_read(toy, tmp_path: Path) -> None:
    """States as torch's AdamW numbers them, saved by torch."""
    model = load_adapted(toy.model, toy.warmup / "checkpoint-00001")
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(
        [{"params": list(parameters.values()), "weight_decay": 0.1}, {"params": [], "weight_decay": 0.0}]
    )
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    optimizer.step()
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    found = read_optimizer(folder, {name: one.shape for name, one in parameters.items()})
    for name, parameter in parameters.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(found[f"{moment}.{name}"], optimizer.state[parameter][moment])


def test_an_adapter_in_a_bin_file(toy, foreign, tmp_path: Path) -> None:
    folder = foreign(by_number)
    for one in folder.iterdir():
        torch.save(load_file(one / "adapter_model.safetensors"), one / "adapter_model.bin")
        (one / "adapter_model.safetensors").unlink()
    (tmp_path / "out").mkdir()
    build(toy.model, folder, tmp_path / "out")
    for number in (1, 2):
        name = f"checkpoint-{number:05d}/adapter_model.safetensors"
        expected = load_file(toy.warmup / name)
        found = load_file(tmp_path / "out" / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)


def test_mean_rates_of_a_coarse_log() -> None:
    """A straight line between the logged steps; the steps before the first have its rate."""
    log = [(5, 1.0), (10, 3.0), (15, 2.0), (18, 5.0)]
    inside = [1.4, 1.8, 2.2, 2.6, 3.0], [2.8, 2.6, 2.4, 2.2, 2.0, 3.0, 4.0, 5.0]
    assert mean_rates([10, 18], log) == pytest.approx([(5 * 1.0 + sum(inside[0])) / 10, sum(inside[1]) / 8])
    with pytest.raises(ValueError, match="no learning rate of steps 19 to 20"):
        mean_rates([10, 18, 20], log)
    with pytest.raises(ValueError, match="no learning rate of steps 1 to 10"):
        mean_rates([10], [])


def test_a_last_checkpoint_whose_logged_rate_is_zero_keeps_its_weight() -> None:
    """A linear schedule that is logged at checkpoints only ends at 0, but its last steps were not taken at 0."""
    full = [(step, (30 - step) / 30) for step in range(1, 31)]
    coarse = [full[step - 1] for step in (10, 20, 30)]
    assert mean_rates([10, 20, 30], coarse)[1:] == pytest.approx(mean_rates([10, 20, 30], full)[1:])


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def other_shape(folder: Path) -> None:
    held = torch.load(folder / "optimizer.bin", weights_only=True)
    next(iter(held["state"].values()))["exp_avg"] = torch.zeros(3)
    torch.save(held, folder / "optimizer.bin")


def one_less(folder: Path) -> None:
    held = torch.load(folder / "optimizer.bin", weights_only=True)
    held["state"].pop(next(iter(held["state"])))
    torch.save(held, folder / "optimizer.bin")


def three_groups(folder: Path) -> None:
    (folder / "optimizer.bin").unlink()
    states = {number: {"exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)} for number in range(8)}
    groups = [{"params": [0]}, {"params": [1]}, {"params": list(range(2, 8))}]
    torch.save({"state": states, "param_groups": groups}, folder / "optimizer.pt")


def state(**values: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "trainer_state.json").write_text(json.dumps(values))

    return write


def no_json(folder: Path) -> None:
    (folder / "trainer_state.json").write_text("{")


def states_of_nothing(folder: Path) -> None:
    held = torch.load(folder / "optimizer.bin", weights_only=True)
    held["state"] = dict.fromkeys(held["state"], 1)
    torch.save(held, folder / "optimizer.bin")


def adapter_without(part: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        kept = {name: value for name, value in tensors.items() if part not in name}
        save_file(kept, folder / "adapter_model.safetensors")

    return spoil


def adapter_of_another_width(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    wider = {name: torch.zeros(value.shape[0] + 1, value.shape[1]) for name, value in tensors.items()}
    save_file(wider, folder / "adapter_model.safetensors")


class Trap:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("ran",))


def trapped(folder: Path) -> None:
    torch.save({"state": Trap()}, folder / "optimizer.bin")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (remove("optimizer.bin"), "no optimizer.bin or optimizer.pt"),
        (remove("adapter_model.safetensors"), "no adapter_model.safetensors or .bin"),
        (remove("adapter_config.json"), "no adapter_config.json"),
        (remove("trainer_state.json"), "no trainer_state.json"),
        (other_shape, r"is \[3\], expected"),
        (one_less, "names differ from the adapter's parameters"),
        (three_groups, "3 groups of parameters"),
        (trapped, "cannot be read as tensors alone"),
        (states_of_nothing, "exp_avg of .* is nothing, expected"),
        (no_json, "checkpoint-4/trainer_state.json: expected an object with global_step and log_history"),
        (state(global_step=4), "checkpoint-4/trainer_state.json: expected an object with"),
        (state(global_step=10, log_history=LOG), r"found checkpoints of the steps \[10, 10\]"),
        (adapter_without("layers.1."), "checkpoint-4: 4 names of the adapter differ from the model's, first"),
        (adapter_of_another_width, "checkpoint-4: the adapter does not fit the model"),
    ],
)
def test_what_does_not_fit_is_named(
    toy, foreign, tmp_path: Path, capsys, spoil: Callable[[Path], None], told: str
) -> None:
    folder = foreign(by_name)
    spoil(folder / "checkpoint-4")
    (tmp_path / "out").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=told) as fault:
        build(toy.model, folder, tmp_path / "out")
    assert "\n" not in str(fault.value)
    assert "ran" not in capsys.readouterr().out


def test_no_checkpoint_at_all(toy, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint-"):
        build(toy.model, tmp_path, tmp_path)
