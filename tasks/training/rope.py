"""Rotary positions for a longer window: another base, or a scaling that transformers knows.

Base change is what ChatQA 2 does (arXiv 2407.14482, section 3.1): only `rope_theta` grows. The other types scale the
frequencies: linear (position interpolation, arXiv 2306.15595), yarn (arXiv 2309.00071) and llama3 (Llama 3.1). What a
type is made of is transformers' `modeling_rope_utils`. Its `dynamic` is none of them: the formula takes the window in
the configuration for the one that the model was trained in, so a model could never tell that its window has grown.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

#: `base` keeps the model's own type.
KINDS = ("base", "linear", "yarn", "llama3")
#: Of Llama 3.1: wavelengths above window / low are scaled by the whole factor, those below window / high not at all.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
#: Layers of full attention, where a model has rotary positions of several kinds (Gemma 3); windows do not grow.
_FULL = "full_attention"


def extend_rope(config: PreTrainedConfig, *, kind: str, length: int, base: float | None) -> dict[str, Any]:
    """Changes a model's configuration to a window of `length`, before the model is made of it.

    Args:
        config: of a model with rotary positions.
        kind: one of `KINDS`.
        length: tokens of the new window, more than it has.
        base: the new theta; None: for `base` the NTK-aware theta * s^(d / (d - 2)), where s is how many times the
            window grows and d the rotated width of a head, so that the lowest frequency is 1/s of what it was; for the
            other types as it is. ChatQA 2 took 150,000,000 for Llama 3, from 8K to 128K.

    Returns:
        The rotary parameters that were set.

    Raises:
        ValueError: an unknown kind; no rotary positions; a window that would not grow; a base that would shrink; a
            scaling on top of another.
    """
    if kind not in KINDS:
        raise ValueError(f"rope {kind!r}: unknown, expected one of {', '.join(KINDS)}")
    text: Any = config.get_text_config()
    everything = getattr(text, "rope_parameters", None) or {}
    nested = isinstance(everything.get(_FULL), dict)
    own: dict[str, Any] = dict(everything[_FULL] if nested else everything)
    if "rope_theta" not in own:
        raise ValueError(f"model: {text.model_type} has no rotary positions, expected a model with a rope_theta")
    window, theta, before = text.max_position_embeddings, float(own["rope_theta"]), own.get("rope_type", "default")
    if length <= window:
        raise ValueError(f"length is {length:,}, expected more than the {window:,} tokens of the model's window")
    if base is not None and base < theta:
        raise ValueError(f"base is {base:,.0f}, expected at least the model's {theta:,.0f}")
    if kind != "base" and before != "default":
        raise ValueError(f"rope {kind!r}: the model has the type {before!r} already, expected 'base' on top of it")
    factor = length / window
    if kind == "base":
        width = _width(text, own)
        own["rope_theta"] = base if base is not None else theta * factor ** (width / (width - 2))
    else:
        own |= {"rope_type": kind, "factor": factor, "rope_theta": theta if base is None else base}
        if kind in ("yarn", "llama3"):
            own["original_max_position_embeddings"] = window
        if kind == "llama3":
            own |= _LLAMA3
    text.rope_parameters = {**everything, _FULL: own} if nested else own
    text.max_position_embeddings = length
    return own


def _width(config: Any, own: dict[str, Any]) -> int:
    """Rotated dimensions of a head."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head * own.get("partial_rotary_factor", 1.0))
