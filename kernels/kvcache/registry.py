"""The KV policies by name. Entries are "module:attribute", so listing the names imports nothing."""

from __future__ import annotations

from dataclasses import MISSING, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    from longloom.kernels.kvcache.base import KVPolicy

_POLICIES = {
    "adakv": "longloom.kernels.kvcache.adakv:AdaKVPolicy",
    "duo": "longloom.kernels.kvcache.duo:DuoPolicy",
    "full": "longloom.kernels.kvcache.full:FullPolicy",
    "h2o": "longloom.kernels.kvcache.h2o:H2OPolicy",
    "infllm": "longloom.kernels.kvcache.infllm:InfLLMPolicy",
    "knorm": "longloom.kernels.kvcache.knorm:KnormPolicy",
    "longcache": "longloom.kernels.kvcache.longcache:LongCachePolicy",
    "pyramidkv": "longloom.kernels.kvcache.pyramidkv:PyramidKVPolicy",
    "razor": "longloom.kernels.kvcache.razor:RazorPolicy",
    "razor+longcache": "longloom.kernels.kvcache.razor_longcache:RazorLongCachePolicy",
    "razor-alibi": "longloom.kernels.kvcache.razor_alibi:RazorAlibiPolicy",
    "recent": "longloom.kernels.kvcache.recent:RecentPolicy",
    "snapkv": "longloom.kernels.kvcache.snapkv:SnapKVPolicy",
    "streaming": "longloom.kernels.kvcache.streaming:StreamingPolicy",
}


def names() -> list[str]:
    """The known KV policies, sorted."""
    return sorted(_POLICIES)


def names_for(encoding: type) -> list[str]:
    """Those that work with positions encoded so (`Rope` or `Alibi`), sorted. Imports every policy."""
    return [name for name in names() if encoding in _policy(name).encodings]


def check_name(name: str) -> None:
    """Raises ValueError for an unknown name, with the known ones. Imports no policy."""
    if name not in _POLICIES:
        raise ValueError(f"unknown KV policy {name!r}; known: {', '.join(names())}")


def get_policy(name: str, **options: Any) -> KVPolicy[Any]:
    """Build a KV policy.

    Args:
        name: one of `names()`.
        **options: the policy's own fields; a flag may be 0 or 1, and any number a whole one.

    Raises:
        ValueError: an unknown name (with the known ones), an unknown, missing or invalid option.
    """
    check_name(name)
    policy = _policy(name)
    known = {field.name: field for field in fields(policy)}
    offered = ", ".join(known) or "none"
    for option in options:
        if option not in known:
            raise ValueError(f"KV policy {name!r} has no option {option!r}; its options: {offered}")
    for option, field in known.items():
        if option not in options and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"KV policy {name!r} needs the option {option!r}; its options: {offered}")
    types = get_type_hints(policy)
    built: KVPolicy[Any] = policy(
        **{option: _typed(name, option, value, types[option]) for option, value in options.items()}
    )
    return built


def policy_settings(policy: KVPolicy[Any]) -> dict[str, Any]:
    """The policy's options that differ from their defaults, for `get_policy`; equal for equal policies of one model.

    The head profile is left out: it belongs to a model, not to a setting.
    """
    built: Any = policy
    known = [field for field in fields(built) if not (policy.profiled and field.name == "heads")]
    values = {field.name: getattr(policy, field.name) for field in known}
    return {field.name: values[field.name] for field in known if values[field.name] != field.default}


def policy_text(policy: KVPolicy[Any]) -> str:
    """The policy as it is written down: `razor:induction=0.25,compression=8,compensate=0`."""
    shown = ",".join(f"{option}={_shown(value)}" for option, value in policy_settings(policy).items())
    return f"{policy.name}:{shown}" if shown else policy.name


def _policy(name: str) -> Any:
    """The class of a known name."""
    module, _, attribute = _POLICIES[name].partition(":")
    return getattr(import_module(module), attribute)


def _typed(name: str, option: str, value: Any, expected: Any) -> Any:
    """The value as its field has it, so that equal settings are equal: 1 as a flag is True, 8 as a float is 8.0."""
    if expected is bool:
        if not isinstance(value, int) or value not in (0, 1):
            raise ValueError(f"KV policy {name!r}: {option} must be 0 or 1, found {value!r}")
        return bool(value)
    return float(value) if expected is float and type(value) is int else value


def _shown(value: Any) -> str:
    """A number as short as it reads back equal."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(int(value) if isinstance(value, bool) else value)
