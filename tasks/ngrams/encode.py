"""Text to tokens, the same for the corpus and for the queries: by a tokenizer, or as the bytes of UTF-8.

Text is text: characters that spell a special token (`<|end|>`) are encoded as characters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from longloom.tasks.ngrams.layout import TOKEN_TYPES, token_dtype_for

TOKENIZER_FILE = "tokenizer.json"

#: A batch to encode ends with this many documents or characters: an encoding takes about 100 bytes a token.
BATCH_DOCUMENTS = 512
BATCH_CHARACTERS = 1_000_000


class Encoder(Protocol):
    """Turns text into tokens.

    Attributes:
        token_dtype: u8, u16 or u32.
        vocab_size: tokens are below it.
        unknown: the token that stands for whatever the vocabulary cannot express; None where there is none.
        digest: sha256 of tokenizer.json, since two vocabularies of one size may differ; None for raw bytes.
    """

    token_dtype: str
    vocab_size: int
    unknown: int | None
    digest: str | None

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The tokens of each text, as arrays of the token type; no special tokens are added."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; bytes that are a part of a character become U+FFFD."""

    def locate(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of one text, and for each its first and past its last character; all bytes of one share it."""


class ByteEncoder:
    """Raw bytes: a token is a byte of UTF-8, so that counts are those of substrings."""

    token_dtype: str = "u8"
    vocab_size: int = 256
    unknown: int | None = None
    digest: str | None = None

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """See `Encoder`."""
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Encoder`."""
        return bytes(tokens).decode("utf-8", errors="replace")

    def locate(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """See `Encoder`."""
        widths = ((place, character.encode("utf-8")) for place, character in enumerate(text))
        return list(text.encode("utf-8")), [(place, place + 1) for place, bytes_ in widths for _ in bytes_]


class TokenizerEncoder:
    """A tokenizer of the `tokenizers` library, without its truncation and padding.

    Args:
        folder: holds tokenizer.json.

    Raises:
        FileNotFoundError: it does not.
        ValueError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path}: is missing; expected a tokenizer saved in the fast format")
        self._path = path
        content = path.read_bytes()
        try:
            self._tokenizer = Tokenizer.from_buffer(content)
        except BaseException as error:
            raise self._refusal("cannot be read", error) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.token_dtype = token_dtype_for(self.vocab_size)
        self.unknown = self._unknown(content)
        self.digest: str | None = hashlib.sha256(content).hexdigest()

    def _refusal(self, what: str, error: BaseException) -> BaseException:
        """The library raises bare Exceptions, and where it panics what is none (an interrupt stays itself)."""
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            return error
        return ValueError(f"{self._path}: {what} ({' '.join(str(error).split()):.200})")

    def _unknown(self, content: bytes) -> int | None:
        model = json.loads(content)["model"]
        if model.get("unk_id") is not None:  # Unigram
            return int(model["unk_id"])
        token = model.get("unk_token")
        return None if token is None else self._tokenizer.token_to_id(token)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """See `Encoder`."""
        dtype = TOKEN_TYPES[self.token_dtype]
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except BaseException as error:  # an unknown token that is not in the vocabulary
            raise self._refusal("cannot encode a text", error) from None
        return [np.array(encoding.ids, dtype=dtype) for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Encoder`."""
        text: str = self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False)
        return text

    def locate(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """See `Encoder`."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return list(encoding.ids), list(encoding.offsets)


def encoder(folder: Path | None) -> Encoder:
    """The encoder of a tokenizer's folder, or of raw bytes for None."""
    return ByteEncoder() if folder is None else TokenizerEncoder(folder)
