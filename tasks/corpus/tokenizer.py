"""The tokenizer stage: a byte-level BPE trained on a corpus. Every text has tokens, and they give it back exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from longloom.storage.parquet import count_rows, iter_batches
from longloom.storage.stats import Stats
from longloom.tasks.progress import Progress, silent

END, USER, ASSISTANT, PAD = SPECIAL_TOKENS = ("<|end|>", "<|user|>", "<|assistant|>", "<|pad|>")

#: The special tokens and the 256 bytes.
SMALLEST = len(SPECIAL_TOKENS) + 256

#: Every turn is a role's token, the content and <|end|>. There are two such tokens: a system turn is put before the
#: next user turn's content (or stands as a user turn where none follows), a tool's answer is a user turn.
CHAT_TEMPLATE = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set ns.system = ns.system + message['content'] + '\\n\\n' -%}
{%- elif message['role'] == 'assistant' -%}
{%- if ns.system -%}{{ '<|user|>' + ns.system[:-2] + '<|end|>' }}{%- set ns.system = '' -%}{%- endif -%}
{{ '<|assistant|>' + message['content'] + '<|end|>' }}
{%- elif message['role'] in ['user', 'tool'] -%}
{{ '<|user|>' + ns.system + message['content'] + '<|end|>' }}
{%- set ns.system = '' -%}
{%- else -%}
{{ raise_exception('unknown role ' + message['role'] + ', expected system, user, assistant or tool') }}
{%- endif -%}
{%- endfor -%}
{%- if ns.system -%}{{ '<|user|>' + ns.system[:-2] + '<|end|>' }}{%- endif -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""


def build(corpus: Path, out: Path, *, vocab_size: int, progress: Progress = silent) -> Stats:
    """Trains a tokenizer and saves it as a folder for `AutoTokenizer.from_pretrained`.

    Args:
        corpus: folder of `documents-*.parquet`; read as a stream.
        out: an empty folder.
        vocab_size: tokens wanted, the four special ones and the 256 bytes included. A small corpus may give fewer.
        progress: called with the documents read.

    Returns:
        Counts of tokens in the vocabulary.

    Raises:
        ValueError: `vocab_size` has no room for the bytes.
    """
    if vocab_size < SMALLEST:
        raise ValueError(
            f"vocab_size is {vocab_size}, expected at least {SMALLEST} (256 bytes, {len(SPECIAL_TOKENS)} special)"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(corpus, progress), trainer=trainer)
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    wrapped.save_pretrained(out)
    return Stats(counts={"tokens": len(wrapped)})


def _texts(corpus: Path, progress: Progress) -> Iterator[list[str]]:
    total = count_rows(corpus, "documents")
    done = 0
    for batch in iter_batches(corpus, "documents", ["text"], 64):
        yield batch.column("text").to_pylist()
        done += batch.num_rows
        progress(done, total)
