"""A fingerprint of a model's weights, to tell whether what was measured on a model belongs to the one at hand."""

from __future__ import annotations

import hashlib
from weakref import WeakKeyDictionary

import torch
from torch import nn

#: Numbers of each parameter that are looked at.
SAMPLES = 64

_KNOWN: WeakKeyDictionary[nn.Module, tuple[int, str]] = WeakKeyDictionary()


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """SHA-256 over every parameter's name, shape and 64 of its numbers, evenly spread, in hexadecimal.

    The numbers are rounded to bfloat16, so a model keeps its fingerprint when it is loaded in float32 or bfloat16; in
    float16 it has another one. Any training step changes it. It is no proof against someone who wants to deceive.
    """
    parameters = sorted(model.named_parameters())
    version = sum(parameter._version for _, parameter in parameters if not parameter.is_inference())
    known = _KNOWN.get(model)
    if known is not None and known[0] == version:
        return known[1]
    digest = hashlib.sha256()
    for name, parameter in parameters:
        flat = parameter.detach().reshape(-1)
        places = torch.linspace(0, max(0, len(flat) - 1), min(SAMPLES, len(flat)), dtype=torch.float64)
        numbers = flat[places.long().to(flat.device)].to("cpu", torch.bfloat16)
        digest.update(f"{name} {list(parameter.shape)} ".encode())
        digest.update(numbers.view(torch.int16).numpy().astype("<i2").tobytes())
    _KNOWN[model] = version, digest.hexdigest()
    return digest.hexdigest()
