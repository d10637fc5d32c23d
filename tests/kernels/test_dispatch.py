"""Who runs: the order, refusals with their reasons, and the record."""

import pytest
import torch

from longloom.kernels.dispatch import choose, record_choices, triton_refusal


def test_the_first_that_can_runs_and_is_counted():
    with record_choices() as ran:
        assert choose("decode", {"triton": "no device", "reference": None}, None) == "reference"
        assert choose("decode", {"triton": "no device", "reference": None}, "reference") == "reference"
        assert choose("prefill", {"sdpa": None, "reference": None}, None) == "sdpa"
    choose("decode", {"reference": None}, None)
    assert ran == {"decode:reference": 2, "prefill:sdpa": 1}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("cuda", "decode: implementation must be one of triton, reference, found 'cuda'"),
        ("triton", "decode: implementation 'triton' cannot do this: no device"),
    ],
)
def test_what_cannot_run_is_refused_and_not_counted(asked, message):
    with record_choices() as ran, pytest.raises(ValueError, match=f"^{message}$"):
        choose("decode", {"triton": "no device", "reference": None}, asked)
    assert not ran


def test_a_record_within_a_record_is_its_own():
    with record_choices() as outer:
        with record_choices() as inner:
            choose("decode", {"reference": None}, None)
        choose("combine", {"reference": None}, None)
    assert (outer, inner) == ({"combine:reference": 1}, {"decode:reference": 1})


def test_on_the_cpu_triton_runs_only_under_its_interpreter_and_only_when_asked(monkeypatch):
    tensor = torch.zeros(1, 16)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_refusal(tensor, asked=True, head_dim=16) is None
    assert triton_refusal(tensor, asked=False, head_dim=16) == "Triton kernels need a CUDA device, found cpu"
    monkeypatch.delenv("TRITON_INTERPRET")
    assert triton_refusal(tensor, asked=True, head_dim=16) == "Triton kernels need a CUDA device, found cpu"


@pytest.mark.parametrize(
    ("dtype", "head_dim", "reason"),
    [
        (torch.float64, 64, "Triton kernels take float16, bfloat16 or float32, found float64"),
        (torch.float32, 8, "Triton kernels take head sizes 16 to 256, found 8"),
        (torch.float16, 257, "Triton kernels take head sizes 16 to 256, found 257"),
        (torch.int32, None, None),
    ],
)
def test_types_and_head_sizes(dtype, head_dim, reason, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_refusal(torch.zeros(1, dtype=dtype), asked=True, head_dim=head_dim) == reason


def test_without_the_package_the_reason_is_how_to_get_it(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reason = triton_refusal(torch.zeros(1), asked=True)
    assert reason == "the package triton is not installed (pip install 'longloom[gpu]')"
