"""The head profile of a model: probed on random tokens without any data, or imported from published scores.

Source: RazorAttention (arXiv 2407.15891, section 3.2): a begin token, then the same random tokens four times over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longloom.kernels.huggingface.attention import encoding_of, sliding_windows
from longloom.kernels.huggingface.load import load_model
from longloom.kernels.huggingface.probes import induction_scores
from longloom.kernels.huggingface.weights import fingerprint
from longloom.kernels.kvcache.heads import HeadProfile, Scores
from longloom.kernels.kvcache.razor import RazorPolicy
from longloom.storage.stats import Stats
from longloom.tasks.longcontext.head_map import draw
from longloom.tasks.longcontext.head_scores import Heads, read_scores
from longloom.tasks.progress import Progress, silent

#: The artifact's files.
PROFILE, MAP = "heads.json", "heads.png"

#: Random tokens of a repeat (section 3.2), where the model's window holds all repeats of them.
LENGTH = 2500
#: Of a score in the file: beyond them kernels and machines differ.
DIGITS = 6
#: Heads that the summary lists, beside those protected for their echo.
LISTED = 10


def build(
    model: Path | str,
    out: Path,
    *,
    probe: Mapping[str, Any] | None,
    scores: Path | None,
    layout: str | None,
    device: str | None,
    dtype: str | None,
    progress: Progress = silent,
) -> Stats:
    """Writes `heads.json` and `heads.png` (volatile: matplotlib's).

    Args:
        model: a folder, or a name on the hub.
        out: an empty folder.
        probe: `length`, `repeats` and `seed` of `probed`; None: `scores` are imported.
        scores, layout: a file of published scores and its layout (`head_scores.read_scores`), or None.
        device, dtype: as `load_model` takes them.
        progress: told of every layer that is probed.

    Returns:
        Counts of layers, ranked KV heads and those protected; the strongest heads, and the layers with a sliding
        window, whose heads are not ranked.

    Raises:
        ValueError: a model that KV policies do not fit, a probe that does not fit its window, bad scores.
    """
    network, tokenizer = load_model(model, device=device, dtype=dtype)
    _check(network)
    if probe is not None:
        profile = probed(network, tokenizer, **probe, progress=progress)
    else:
        assert scores is not None
        assert layout is not None
        profile = imported(network, scores, layout)
    profile.write(out / PROFILE)
    razor = RazorPolicy()
    chosen = profile.chosen(induction=razor.induction, echo=razor.echo)
    draw(profile, chosen, out / MAP)
    return Stats(
        counts={"layers": profile.shape[0], "kv_heads": len(profile.ranked), "protected": len(chosen)},
        values={
            "source": profile.source,
            "strongest": strongest(profile, razor),
            "sliding_layers": list(profile.sliding_layers),
        },
        volatile=(MAP,),
    )


def probed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int | None,
    repeats: int,
    seed: int,
    progress: Progress = silent,
) -> HeadProfile:
    """The profile by echo and induction scores; a KV head takes the maximum over its query heads.

    Args:
        model: with rotary positions; heads of a layer with a sliding window score 0 and are not ranked.
        tokenizer: gives the begin token (or else the end token) and those that are not drawn.
        length: random tokens of a repeat; None: 2500, or as many as the model's window holds `repeats` times.
        repeats: how often they come.
        seed: of the draw.
        progress: told of every layer.

    Raises:
        ValueError: the sequence is longer than the model's window, or too short; the tokenizer has neither token.
    """
    config = _config(model)
    window = config.max_position_embeddings
    if length is None:
        length = min(LENGTH, (window - 1) // repeats)
    tokens = 1 + length * repeats
    if tokens > window or min(length, repeats) < 2:
        raise ValueError(
            f"head profile: length {length} x repeats {repeats} and a begin token are {tokens} tokens, expected both "
            f"at least 2, and no more tokens than the model's window of {window}"
        )
    begin = "bos" if tokenizer.bos_token_id is not None else "eos"
    token = tokenizer.bos_token_id if begin == "bos" else tokenizer.eos_token_id
    if token is None:
        raise ValueError("head profile: the tokenizer has neither a begin nor an end token, expected one to start with")
    found = induction_scores(
        model,
        bos=token,
        special=_never_drawn(tokenizer, config.vocab_size),
        length=length,
        repeats=repeats,
        seed=seed,
        on_layer=lambda done: progress(done, config.num_hidden_layers),
    )
    kv_heads = _heads(model).kv
    settings: dict[str, Any] = {
        "model": type(model).__name__,
        "length": length,
        "repeats": repeats,
        "seed": seed,
        "tokens": tokens,
        "begin": begin,
        "window": window,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if found.at.shape[-1] > 2:  # a circuit that copies from further on has low scores of induction
        displaced = found.at[..., 2:].amax(dim=-1)
        settings["displaced"] = _by_kv_head(displaced, kv_heads)
    return HeadProfile(
        source="probe",
        weights=fingerprint(model),
        induction=_by_kv_head(found.induction, kv_heads),
        echo=_by_kv_head(found.echo, kv_heads),
        settings=tuple(settings.items()),
        sliding_layers=_sliding(model),
    )


def imported(model: PreTrainedModel, path: Path, layout: str) -> HeadProfile:
    """The profile by scores of others, which stand for induction; an echo score they have none.

    Whether they were found on these weights no such file says; what can be checked is the number of heads.
    """
    settings = {"model": type(model).__name__, "file": path.name}
    return HeadProfile(
        source=layout,
        weights=fingerprint(model),
        induction=read_scores(path, layout, _heads(model)),
        settings=tuple(settings.items()),
        sliding_layers=_sliding(model),
    )


def strongest(profile: HeadProfile, razor: RazorPolicy) -> list[dict[str, Any]]:
    """The heads of the best induction scores, best first, and those protected for their echo.

    Returns:
        Layer, KV head, both scores, and by which of them the policy's shares protect it: "induction", "echo",
        "induction, echo" or "".
    """
    by_induction = profile.chosen(induction=razor.induction, echo=0)
    by_echo = profile.chosen(induction=0, echo=razor.echo)
    order = sorted(profile.ranked, key=lambda place: -profile.induction[place[0]][place[1]])
    return [
        {
            "layer": layer,
            "kv_head": head,
            "induction": profile.induction[layer][head],
            "echo": profile.echo[layer][head] if profile.echo else None,
            "protected": ", ".join(
                name for name, heads in (("induction", by_induction), ("echo", by_echo)) if (layer, head) in heads
            ),
        }
        for rank, (layer, head) in enumerate(order)
        if rank < LISTED or (layer, head) in by_echo
    ]


def _check(model: PreTrainedModel) -> None:
    """A profile serves KV policies: a model that they do not fit is refused for their reason."""
    try:
        encoding_of(model, RazorPolicy())
        windows = sliding_windows(model)
    except ValueError as error:
        raise ValueError(f"head profile: {error}") from None
    if len(windows) == _heads(model).layers:
        raise ValueError(
            "head profile: every layer attends to a sliding window, expected some that attend to all tokens"
        )


def _sliding(model: PreTrainedModel) -> tuple[int, ...]:
    """The layers that attend to a sliding window, which policies leave alone."""
    return tuple(sorted(sliding_windows(model)))


def _config(model: PreTrainedModel) -> Any:
    return model.get_decoder().config


def _heads(model: PreTrainedModel) -> Heads:
    config = _config(model)
    query = config.num_attention_heads
    return Heads(config.num_hidden_layers, query, getattr(config, "num_key_value_heads", None) or query)


def _never_drawn(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> set[int]:
    """Ids that are special, reserved ones too, or beyond the tokenizer's: rows that a model may have for padding."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return special | set(tokenizer.all_special_ids) | set(range(len(tokenizer), vocabulary))


def _by_kv_head(scores: Tensor, kv_heads: int) -> Scores:
    """[layers, query heads] to rows of KV heads, rounded."""
    best = scores.double().unflatten(1, (kv_heads, -1)).amax(dim=2)
    return tuple(tuple(round(score, DIGITS) for score in row) for row in best.tolist())
