"""trl's RewardTrainer over batches that are functions of their number, watched and resumed like every training here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

from longloom.tasks.progress import Progress
from longloom.tasks.training.resume import digest_of
from longloom.tasks.training.watch import Watch
from longloom.tasks.training.watched import arguments, run, use_one_gpu

#: A row of the training's course: means since the last one. accuracy: the share of pairs in their order; margin: the
#: score by which the chosen is above the rejected; reward: of all responses.
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("tokens", pa.int64()),
        *((name, pa.float64()) for name in ("loss", "learning_rate", "grad_norm", "accuracy", "margin", "reward")),
    ]
)


class Pair(NamedTuple):
    """A comparison as it is trained on.

    Attributes:
        chosen, rejected: token ids of its two texts.
        of: stands for the prompt and the two responses, whichever is chosen; equal for a reversal's two comparisons.
    """

    chosen: list[int]
    rejected: list[int]
    of: tuple[str, ...]


class Batches:
    """Numbered batches of pairs, for trl: a data set with a row a batch, and the collator that fills them in.

    A row holds the numbers of its pairs in the columns where trl looks for tokens, so that several epochs cost no copy
    of the texts.

    Args:
        pairs: the comparisons.
        batches: numbers of pairs, a list a step.
        margin: of every pair.
        pad_id: of the tokenizer.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        batches: Sequence[list[int]],
        *,
        margin: float,
        pad_id: int,
    ) -> None:
        self.pairs, self.margin = pairs, margin
        self.dataset = Dataset.from_dict({"chosen_ids": list(batches), "rejected_ids": list(batches)})
        self._collate = DataCollatorForPreference(pad_token_id=pad_id)

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask, int64 [2 B, T], the chosen ones first; margin, float32 [B]."""
        (row,) = rows
        examples = [
            {"chosen_ids": pair.chosen, "rejected_ids": pair.rejected, "margin": self.margin}
            for pair in (self.pairs[number] for number in row["chosen_ids"])
        ]
        found: dict[str, torch.Tensor] = self._collate(examples)
        return found


class _Rewards(RewardTrainer):  # type: ignore[misc]
    """Writes no model card into each checkpoint."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass


def train(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    batches: Batches,
    tokens: list[int],
    out: Path,
    *,
    learning_rate: float,
    warmup: int,
    centre: float,
    seed: int,
    save_every: int,
    log_every: int,
    after_step: Callable[[int, Any, Any], None] | None = None,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Trains in place with AdamW and clipping at 1, and resumes from `out`/checkpoints if a killed run left one.

    Args:
        model: float32 on CPU; on a GPU bfloat16 autocast is used, and activations are computed twice.
        tokenizer: with a padding token.
        batches: one a step.
        tokens: read before step i, one more entry than there are steps.
        out: the stage's work folder.
        learning_rate: peak; linear from 0 to it, linear to 0.
        warmup: steps to the peak.
        centre: weight of the centring term.
        seed: of the trainer.
        save_every: steps between checkpoints, rounded up to a multiple of log_every.
        log_every: steps a row of the returned table stands for.
        after_step: called with (step from 1, model, optimizer) after each optimizer step.
        progress: gets tokens done and in all.

    Returns:
        Rows of SCHEMA.

    Raises:
        ValueError: the loss, the gradient or the weights became NaN or infinite: the model of the last checkpoint is
            kept in `out`/checkpoints/last-good; a checkpoint in `out` of another configuration.
    """
    common = arguments(out, steps=len(tokens) - 1, seed=seed, save_every=save_every, log_every=log_every)
    made = RewardConfig(
        **common,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=warmup,
        weight_decay=0.0,
        center_rewards_coefficient=centre or None,
        max_length=None,  # what is too long is not among the batches
        activation_checkpointing=common["bf16"],
    )
    use_one_gpu(made)
    trainer = _Rewards(
        model=model,
        args=made,
        data_collator=batches,
        train_dataset=batches.dataset,
        processing_class=tokenizer,
        callbacks=[Watch(tokens, progress, after_step)],
    )
    configuration = {
        "batches": digest_of(batches.dataset["chosen_ids"][:]),
        "learning_rate": learning_rate,
        "margin": batches.margin,
        "centre": centre,
    }
    with warnings.catch_warnings():  # peft, that it saves embeddings to which padding was added
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
        rows = run(trainer, configuration, model, tokens, tokenizer)
    return [{name: row["mean_reward" if name == "reward" else name] for name in SCHEMA.names} for row in rows]
