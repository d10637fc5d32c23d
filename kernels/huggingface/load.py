"""Load a causal language model or a reward model, and its tokenizer, or say in one line why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def window_of(config: PreTrainedConfig) -> int | None:
    """The tokens that a model was trained to read at once; None where its configuration tells none (BLOOM, MPT).

    Args:
        config: of the model; of one that reads more than text, its text configuration counts.
    """
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def load_model(
    path_or_name: str | Path, *, device: str | None = None, dtype: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in evaluation mode, and a tokenizer that has a pad token.

    Code that comes with a model is never run.

    Args:
        path_or_name: a local folder, or a model's name on the Hugging Face hub.
        device: a torch device; None: cuda where there is one, else cpu.
        dtype: float32, bfloat16 or float16; None: as stored.

    Raises:
        ValueError: no such folder or model, a model or tokenizer that cannot be loaded, an unknown device or dtype.
    """
    model, tokenizer, _ = _load(AutoModelForCausalLM, path_or_name, device=device, dtype=dtype)
    return model, tokenizer


def load_reward_model(
    path_or_name: str | Path, *, device: str | None = None, dtype: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Load a sequence classifier of one output; of a language model, its body under a head of random weights.

    Args:
        path_or_name, device, dtype: as in `load_model`.

    Returns:
        the model in evaluation mode; its tokenizer; the weights of the head that are not in the folder, all of them or
        none.

    Raises:
        ValueError: as `load_model`; a classifier of several outputs, a part of a model.
    """
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # that a head is new is told to the caller
    try:
        model, tokenizer, missing = _load(
            AutoModelForSequenceClassification, path_or_name, device=device, dtype=dtype, num_labels=1
        )
    finally:
        logging.set_verbosity(level)
    prefix = f"{model.base_model_prefix}."
    if inner := [name for name in missing if name.startswith(prefix)]:
        raise ValueError(f"the model {str(path_or_name)!r} lacks weights below its head, such as {inner[0]}")
    return model, tokenizer, missing


def _load(
    auto: Any, path_or_name: str | Path, *, device: str | None, dtype: str | None, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """The model as one of transformers' auto classes, its tokenizer, and the names of weights that it lacks."""
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(_DTYPES)}")
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}; for example: cpu, cuda, cuda:1") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch finds no GPU")

    name = str(path_or_name)
    local = _is_local(path_or_name)
    tokenizer = _tokenizer(name, local)
    try:
        model, told = auto.from_pretrained(
            name,
            dtype=_DTYPES[dtype] if dtype else "auto",
            local_files_only=local,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # the same, and safetensors' errors
        raise _failure("model", name, local, error) from error
    return model.to(target).eval(), tokenizer, sorted(told["missing_keys"])


def load_tokenizer(path_or_name: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer alone, with a pad token, as `load_model` would (ValueError: it cannot be loaded)."""
    return _tokenizer(str(path_or_name), _is_local(path_or_name))


def _tokenizer(name: str, local: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, local_files_only=local, trust_remote_code=False
        )
    except Exception as error:  # the library raises OSError, ValueError, KeyError, json and tokenizers' own errors
        raise _failure("tokenizer", name, local, error) from error
    if tokenizer.pad_token_id is None:
        # Padding is masked, so any known token serves.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ValueError(f"the tokenizer of {name!r} has no pad, end, begin or unknown token to pad with")
    return tokenizer


def _is_local(path_or_name: str | Path) -> bool:
    """Whether only local files (a folder, or the hub's cache) are to be used: so too where the hub does not answer.

    Asking the hub once, first, spares minutes of the library's retries where there is no network.
    """
    name = str(path_or_name)
    if Path(name).is_dir():
        return True
    if isinstance(path_or_name, Path) or name.startswith((".", "/", "~")) or Path(name).exists():
        raise ValueError(f"no model folder at {name!r}")
    try:
        HfApi().model_info(name, timeout=10)
    except HFValidationError:
        raise ValueError(f"{name!r} is neither a folder nor a possible name on the Hugging Face hub") from None
    except RepositoryNotFoundError:
        raise ValueError(f"{name!r} is neither a folder nor a model that the Hugging Face hub shows") from None
    except Exception:  # no network, a refused connection, offline mode, ...: types of whichever HTTP library is used
        return True
    return False


def _failure(part: str, name: str, local: bool, error: Exception) -> ValueError:
    if Path(name).is_dir():
        return ValueError(f"the folder {name!r} holds no {part} that can be loaded: {_first_line(error)}")
    if local:
        return ValueError(
            f"no {part} {name!r}: there is no such folder, it is not in the hub's local cache, and the Hugging Face "
            "hub does not answer (offline?)"
        )
    return ValueError(f"the {part} {name!r} of the Hugging Face hub cannot be loaded: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
