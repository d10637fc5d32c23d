"""Checks of arguments: every refusal names the argument, what was found and what was expected."""

import re

import pytest
import torch

from longloom.kernels.checks import FLOATS, Arguments


def test_dimensions_are_bound_by_the_first_tensor_that_has_them():
    check = Arguments("decode")
    check.tensor("query", torch.zeros(2, 6, 5), "B Hq D", FLOATS)
    check.tensor("key", torch.zeros(2, 3, 5), "B Hkv D", torch.float32)
    assert check.sizes == {"B": 2, "Hq": 6, "D": 5, "Hkv": 3}
    assert check.groups() == 2
    check.tensor("pairs", torch.zeros(2, 2), "B 2", torch.float32)


BAD = {
    "decode: key must be a tensor, found list": ([1.0], "B D", {}),
    "decode: key must be of float32, found int64": (torch.zeros(2, 5, dtype=torch.int64), "B D", {}),
    "decode: key must be [B, D] with B=2, D=5, found [2, 4]": (torch.zeros(2, 4), "B D", {}),
    "decode: key must be [B, N, D] with B=2, D=5, found [2, 5]": (torch.zeros(2, 5), "B N D", {}),
    "decode: key must be [B, 3] with B=2, found [2, 2]": (torch.zeros(2, 2), "B 3", {}),
    "decode: key must be on cpu like query, found meta": (torch.zeros(2, 5, device="meta"), "B D", {}),
    "decode: key must be contiguous, found strides (1, 2)": (torch.zeros(5, 2).T, "B D", {}),
    "decode: key must be contiguous in its last dimension, found strides (1, 2)": (
        torch.zeros(5, 2).T,
        "B D",
        {"strided": True},
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(message):
    value, dims, options = BAD[message]
    check = Arguments("decode")
    check.tensor("query", torch.zeros(2, 5), "B D", FLOATS)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check.tensor("key", value, dims, torch.float32, **options)


@pytest.mark.parametrize("kv_heads", [0, 4])
def test_query_heads_are_a_multiple_of_kv_heads(kv_heads):
    check = Arguments("decode", {"Hq": 6, "Hkv": kv_heads})
    with pytest.raises(ValueError, match=f"^decode: 6 query heads are no multiple of {kv_heads} KV heads$"):
        check.groups()
