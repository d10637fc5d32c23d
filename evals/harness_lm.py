"""The model `longloom` of lm-eval's own command: a transformers model under a KV policy.

    lm_eval --model longloom --model_args pretrained=FOLDER,kv_policy=streaming,sink=4,window=252 --tasks ...

The package makes the name known to lm-eval by itself (evals/plugin.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.utils import simple_parse_args_string

from longloom.evals.lm import PolicyLM
from longloom.kernels.huggingface.load import load_model
from longloom.kernels.kvcache.heads import HeadProfile
from longloom.kernels.kvcache.registry import get_policy

_ARGUMENTS = ("pretrained", "kv_policy", "heads", "device", "dtype", "batch_size", "max_length")

#: The command's own device, which it hands over whether or not anybody asked for it.
_UNASKED_DEVICE = "cuda:0"


class HarnessLM(PolicyLM):
    """A model and a KV policy by lm-eval's arguments.

    Args:
        pretrained: a model folder, or a name on the hub.
        kv_policy: a KV policy's name.
        heads: the model's head profile, a file that `longloom heads` wrote, for policies that protect heads.
        device, dtype: as `load_model` takes them.
        batch_size: prompts a batch.
        max_length: as `PolicyLM` takes it.
        **options: of the KV policy.

    Raises:
        ValueError: an unknown model, KV policy or argument, or one out of range.
    """

    def __init__(
        self,
        *,
        pretrained: str,
        kv_policy: str = "full",
        heads: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        max_length: int | None = None,
        **options: Any,
    ) -> None:
        if heads is not None:
            options["heads"] = HeadProfile.read(Path(heads))
        try:
            policy = get_policy(kv_policy, **options)
        except ValueError as error:
            raise ValueError(f"--model_args: {error} (and of the model: {', '.join(_ARGUMENTS)})") from None
        if not str(batch_size).isdecimal():
            raise ValueError(f"--batch_size is {batch_size!r}, expected a whole number: its size is not found by trial")
        model, tokenizer = load_model(pretrained, device=device, dtype=dtype)
        super().__init__(model, tokenizer, policy, batch_size=int(batch_size), max_length=max_length)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> HarnessLM:
        """Made by lm-eval's command.

        Args:
            arg_dict: of --model_args.
            additional_config: of options of their own, such as --batch_size; --model_args come first.

        Raises:
            ValueError: no model is named, or as the class does.
        """
        if "pretrained" not in arg_dict:
            raise ValueError(
                f"--model_args name {', '.join(arg_dict) or 'nothing'}, expected pretrained=FOLDER_OR_NAME among them"
            )
        settings = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if settings.get("device") == _UNASKED_DEVICE:
            del settings["device"]
        return cls(**{**settings, **arg_dict})

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> HarnessLM:
        """As `create_from_arg_obj`, from NAME=VALUE,NAME=VALUE."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)
