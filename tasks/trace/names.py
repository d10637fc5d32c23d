"""Names and values that the command line needs too, without any library."""

from __future__ import annotations

#: The embedding that needs no model of its own: a language model's input embeddings, averaged.
INPUT_EMBEDDINGS = "input-embeddings"

#: gamma by n for translation, with LASER, and for the others (MMLU, TriviaQA), with E5: arXiv 2407.14985's.
PAPER_GAMMA: dict[str, dict[int, float]] = {
    "translation": {2: 0.85, 3: 0.80, 4: 0.75, 5: 0.70},
    "knowledge": {3: 0.75, 5: 0.65},
}
