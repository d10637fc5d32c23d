"""The demo's models: their shapes, and the curricula that train them.

What was tried on two cores is in docs/training.md. In short: the given induction circuit is made to work on short
walks, then on longer sequences, then in the full window on text with pieces of it copied back and turns about it.
"""

from __future__ import annotations

from dataclasses import dataclass

from longloom.tasks.training.mix import Phase


@dataclass(frozen=True)
class Shape:
    """A Llama configuration, with grouped queries as larger models have them: 2 query heads a KV head."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    #: Wider than the library's 0.02, which at this width found no induction within 1.4M tokens.
    initializer_range: float
    #: Much larger than the window asks for, so that half the rotary pairs hardly turn within it and can carry content.
    rope_theta: float
    #: Whether it is trained on turns, and its tokenizer therefore keeps the chat template.
    chat: bool = True


SHAPES = {
    "1m": Shape(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.09,
        rope_theta=1e6,
    ),
    # For contexts far beyond a short window: heads twice as wide tell more keys apart.
    "short": Shape(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=512,
        initializer_range=0.09,
        rope_theta=1e6,
        chat=False,
    ),
    # Beside the first, to see what a model's size does.
    "tiny": Shape(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.09,
        rope_theta=1e6,
        chat=False,
    ),
}

#: From random weights (`longloom demo --from-scratch`); also what wrote the repository's base checkpoint.
SCRATCH = (
    Phase("induction", 400_000, 64, 32, 3e-3, 3e-3, walks=0.8, copies=0.2, repeats=0.0, text=0.0, lookups=0.0),
    Phase("stretch", 1_000_000, 256, 12, 3e-3, 2e-3, walks=0.1, copies=0.2, repeats=0.2, text=0.3, lookups=0.2),
    Phase("window", 1_400_000, 1024, 6, 2e-3, 1.4e-3, walks=0.0, copies=0.15, repeats=0.15, text=0.4, lookups=0.3),
    Phase("lookup", 3_200_000, 1024, 6, 1.4e-3, 1e-4, walks=0.0, copies=0.1, repeats=0.1, text=0.4, lookups=0.4),
)

#: The same in a window of 512, then facts to be found again in it.
SHORT = (
    Phase("induction", 300_000, 64, 32, 3e-3, 3e-3, walks=0.8, copies=0.2, repeats=0.0, text=0.0, lookups=0.0),
    Phase(
        "stretch", 800_000, 256, 12, 3e-3, 2e-3, walks=0.1, copies=0.2, repeats=0.2, text=0.4, lookups=0.0, facts=0.1
    ),
    Phase("facts", 2_800_000, 512, 8, 2e-3, 1e-4, walks=0.0, copies=0.1, repeats=0.1, text=0.2, lookups=0.0, facts=0.6),
)

#: Text alone: what so small a model learns of it in a minute.
TINY = (Phase("text", 1_200_000, 256, 16, 4e-3, 2e-4, walks=0.0, copies=0.0, repeats=0.0, text=1.0, lookups=0.0),)

#: From the base checkpoint, on the user's own corpus.
CONTINUE = (Phase("continue", 600_000, 1024, 6, 4e-4, 4e-5, walks=0.0, copies=0.1, repeats=0.1, text=0.5, lookups=0.3),)

#: From a short model: facts to be found again among spans gathered from a longer text; numbers weigh about as much as
#: the text beside them.
SHARPEN = (
    Phase(
        "sharpen",
        2_000_000,
        512,
        8,
        8e-4,
        2e-5,
        walks=0.0,
        copies=0.0,
        repeats=0.0,
        text=0.25,
        lookups=0.0,
        gathered=0.75,
        text_loss=0.05,
    ),
)

RECIPES: dict[str, dict[str, tuple[Phase, ...]]] = {
    "scratch": {"1m": SCRATCH, "short": SHORT, "tiny": TINY},
    "continue": {"1m": CONTINUE, "short": SHARPEN},
}
