"""A tiny house for training: a corpus of a few KB, its tokenizer of 300 tokens, a 2-layer model, and a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from longloom.storage.parquet import ShardWriter
from longloom.tasks.corpus.build import SCHEMA
from longloom.tasks.corpus.tokenizer import build as build_tokenizer
from longloom.tasks.training.mix import Phase
from longloom.tasks.training.recipe import RECIPES, SHAPES, Shape
from longloom.tasks.training.watch import SPEED

TINY = Shape(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    initializer_range=0.09,
    rope_theta=1e4,
)
PHASES = (
    Phase("first", 512, 32, 4, 3e-3, 3e-3, walks=0.5, copies=0.5, repeats=0.0, text=0.0, lookups=0.0),
    Phase("second", 1536, 64, 3, 2e-3, 2e-4, walks=0.1, copies=0.2, repeats=0.3, text=0.4, lookups=0.0),
)
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are faster on one thread, and the suite shares its cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    lines = [f"def weave_{i % 7}(warp, weft):\n    return [warp * {i}, weft]  # Köper {i}\n" for i in range(60)]
    documents = [{"id": str(i), "source": "s", "text": "".join(lines[i::6])} for i in range(6)]
    with ShardWriter(folder, "documents", SCHEMA, rows_per_shard=4) as writer:
        writer.write(documents)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(corpus, folder, vocab_size=300)
    return folder


def with_bos(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, made to put its bos token before every text."""
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    found.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{found.bos_token} $A", special_tokens=[(found.bos_token, found.bos_token_id)]
    )
    return found


@pytest.fixture(params=["no bos", "bos", "bos, blank before the first word"])
def any_opening(request: pytest.FixtureRequest, tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    """Tokenizers by what they put before a text; the last as those of Llama 2 and Mistral, no blank behind a token."""
    if request.param == "no bos":
        return AutoTokenizer.from_pretrained(tokenizer_folder)
    if request.param == "bos":
        return with_bos(tokenizer_folder)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "</s>", "<pad>"]
    alphabet = ["\n", "▁", *map(chr, range(33, 127)), *"öé織🧵"]
    core.train_from_iterator(
        ["User: weave the warp\n\nAssistant: weft"],
        trainers.BpeTrainer(vocab_size=180, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def model_folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 examples; number 3 has no answer, number 7 is longer than the window, number 9 has two answers."""
    rows = []
    for i in range(26):
        messages = [{"role": "user", "content": f"weave {i}?" + " please" * (i % 5)}]
        if i == 7:
            messages[0]["content"] = "and again " * 40
        if i != 3:
            messages.append({"role": "assistant", "content": f"warp {i * i} weft"})
        if i == 9:
            messages += [{"role": "user", "content": "more"}, {"role": "assistant", "content": "Köper 織"}]
        rows.append({"id": str(i), "source": "s", "messages": messages})
    folder = tmp_path_factory.mktemp("pool")
    schema = pa.schema([("id", pa.string()), ("source", pa.string()), ("messages", MESSAGES)])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "instructions.parquet")
    return folder


@pytest.fixture
def refused(pool: Path, tmp_path: Path) -> Path:
    """The pool with an example, number 12, whose role the model's chat template does not know."""
    table = pq.read_table(pool / "instructions.parquet")
    rows = table.to_pylist()
    rows[12]["messages"][0]["role"] = "critic"
    folder = tmp_path / "refused"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / "instructions.parquet")
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shape `tiny` and both recipes cut down to 12 steps."""
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setitem(RECIPES["scratch"], "tiny", PHASES)
    monkeypatch.setitem(RECIPES["continue"], "tiny", PHASES)


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Relative name -> bytes of every file below a folder but the volatile one, which holds times."""
    return lambda folder: {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SPEED
    }
