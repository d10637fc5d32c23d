"""The pretraining mixture that gives a small model working induction heads.

Seven kinds of sequence, mixed by weights that change from phase to phase (tasks/training/recipe.py):

- `walks`: in-context permutation walks. 4-24 random symbols in a random cyclic order; each is followed by its
  successor, or with probability 0.12 by a random one. Only looking up what followed the last symbol predicts the next.
- `copies`: random tokens, then pieces of them copied back, in any order and from any distance.
- `repeats`: text of the corpus, then pieces of it copied back.
- `text`: text of the corpus.
- `lookups`: text or random tokens in a user's turn that ends with a few tokens of it, and an assistant who repeats them
  and goes on as the context does; several such turns about one context.
- `facts`: text with a few facts strewn in as comments, then the beginnings of some of them again, to be completed.
- `gathered`: the same in what an attention scope holds of a long context: spans from here and there, side by side.

Batch `step` is a function of (seed, phase, step) alone, so that a resumed run continues identically.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longloom.tasks.training.facts import Facts, Ids, Mask

#: Labels of tokens that carry no loss.
IGNORE = -100
JUMP = 0.12
SYMBOLS = (4, 24)
PIECE = (6, 64)
CUE = (2, 8)
ANSWER = (2, 24)


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one sequence length and one mixture.

    Attributes:
        name: for logs and manifests.
        tokens: to be seen, input tokens of all kinds.
        length: of every sequence.
        batch: sequences a step.
        learning_rate: at the start of the phase.
        final_learning_rate: at its end, reached linearly.
        walks, copies, repeats, text, lookups, facts, gathered: the shares of the kinds.
        text_loss: share of the tokens of text that carry a loss: few numbers would drown in all of them.
    """

    name: str
    tokens: int
    length: int
    batch: int
    learning_rate: float
    final_learning_rate: float
    walks: float
    copies: float
    repeats: float
    text: float
    lookups: float
    facts: float = 0.0
    gathered: float = 0.0
    text_loss: float = 1.0

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, self.tokens // (self.batch * self.length))


def walks(rng: np.random.Generator, batch: int, length: int, *, vocab: int, first: int) -> tuple[Ids, Mask]:
    """Permutation walks over ids `first..vocab-1`.

    Returns:
        ids [batch, length]; mask [batch, length], true where the last symbol has been followed before.
    """
    symbols_max = min(SYMBOLS[1], vocab - first)
    count = rng.integers(SYMBOLS[0], symbols_max + 1, batch)
    symbols = first + np.argsort(rng.random((batch, vocab - first)), axis=1)[:, :symbols_max]
    ids = np.empty((batch, length), np.int64)
    mask = np.zeros((batch, length), bool)
    followed = np.zeros((batch, symbols_max), bool)
    rows = np.arange(batch)
    place = rng.integers(0, count)
    for t in range(length):
        ids[:, t] = symbols[rows, place]
        if t + 1 < length:
            mask[:, t + 1] = followed[rows, place]
        followed[rows, place] = True
        place = np.where(rng.random(batch) < JUMP, rng.integers(0, count), (place + 1) % count)
    return ids, mask


def copy_back(rng: np.random.Generator, context: Ids, length: int, *, context_loss: bool) -> tuple[Ids, Mask]:
    """`context`, then pieces of it until `length`.

    Returns:
        ids [length]; mask [length], true within the pieces from their second token on (the first tells where to look),
        and on the context too with `context_loss`.
    """
    ids = np.empty(length, np.int64)
    mask = np.zeros(length, bool)
    end = len(context)
    ids[:end] = context
    mask[1:end] = context_loss
    while end < length:
        size = min(int(rng.integers(PIECE[0], PIECE[1] + 1)), length - end, len(context))
        start = int(rng.integers(0, len(context) - size + 1))
        ids[end : end + size] = context[start : start + size]
        mask[end + 1 : end + size] = True
        end += size
    return ids, mask


@dataclass(frozen=True)
class Turns:
    """Ids of the tokens that begin a user's and an assistant's turn, of what ends either, and of a blank line."""

    user: int
    assistant: int
    end: int
    blank: tuple[int, ...] = ()


def look_up(
    rng: np.random.Generator, context: Ids, length: int, turns: Turns, *, context_loss: bool
) -> tuple[Ids, Mask]:
    """A conversation about `context`: a question is a few tokens of it, the answer these and what follows them there.

    A blank line parts the context from the first question, as prompts do.

    Returns:
        ids [length]; mask [length], true on the answers (not on their end, which nothing foretells), and on the
        context too with `context_loss`.
    """
    ids = [turns.user, *context.tolist(), *turns.blank]
    mask = [False, *[context_loss] * len(context), *[False] * len(turns.blank)]
    while len(ids) < length:
        cue = int(rng.integers(CUE[0], CUE[1] + 1))
        size = cue + int(rng.integers(ANSWER[0], ANSWER[1] + 1))
        start = int(rng.integers(0, len(context) - size + 1))
        answer = context[start : start + size].tolist()
        question = [*answer[:cue], turns.end, turns.assistant]
        after = [turns.end, turns.user]
        ids += question + answer + after
        mask += [False] * len(question) + [True] * size + [False] * len(after)
    return np.array(ids[:length]), np.array(mask[:length])


def batch_of(
    phase: Phase,
    step: int,
    *,
    seed: int,
    corpus: npt.NDArray[np.integer],
    vocab: int,
    first: int,
    turns: Turns,
    facts: Facts,
) -> tuple[Ids, Ids]:
    """Batch `step` of a phase.

    Args:
        phase: lengths and shares.
        step: counted from the start of the phase.
        seed: of the whole run; the phase's name is mixed in.
        corpus: the token stream [N], N > phase.length.
        vocab: ids are below it.
        first: the lowest id of an ordinary token (special ones come before).
        turns: ids of the tokens around a turn.
        facts: what sequences of that kind tell.

    Returns:
        input ids and labels, both [phase.batch, phase.length]; labels hold -100 where no loss is taken.
    """
    rng = np.random.default_rng([seed, step, *phase.name.encode()])
    shares = np.array(
        [phase.walks, phase.copies, phase.repeats, phase.text, phase.lookups, phase.facts, phase.gathered]
    )
    kinds = rng.choice(len(shares), size=phase.batch, p=shares / shares.sum())
    ids = np.empty((phase.batch, phase.length), np.int64)
    mask = np.zeros((phase.batch, phase.length), bool)
    walking = kinds == 0
    if walking.any():
        ids[walking], mask[walking] = walks(rng, int(walking.sum()), phase.length, vocab=vocab, first=first)
    for row in np.flatnonzero(kinds == 1):
        context = rng.integers(first, vocab, int(rng.integers(phase.length // 8, 3 * phase.length // 4)))
        ids[row], mask[row] = copy_back(rng, context, phase.length, context_loss=False)
    for row in np.flatnonzero(kinds >= 2):
        start = int(rng.integers(0, len(corpus) - phase.length))
        text = corpus[start : start + phase.length].astype(np.int64)
        if kinds[row] == 2:
            context = text[: int(rng.integers(phase.length // 4, 3 * phase.length // 4))]
            ids[row], mask[row] = copy_back(rng, context, phase.length, context_loss=True)
        elif kinds[row] == 4:
            context = text[: int(rng.integers(phase.length // 4, 3 * phase.length // 4))]
            if random := rng.random() < 0.5:
                context = rng.integers(first, vocab, len(context))
            ids[row], mask[row] = look_up(rng, context, phase.length, turns, context_loss=not random)
        elif kinds[row] == 5:
            ids[row], mask[row] = facts.strewn(rng, text, phase.length)
        elif kinds[row] == 6:
            ids[row], mask[row] = facts.gathered(rng, corpus, phase.length)
        else:
            ids[row], mask[row, 1:] = text, True
            if phase.text_loss < 1:
                mask[row] &= rng.random(phase.length) < phase.text_loss
    return ids, np.where(mask, ids, IGNORE)
