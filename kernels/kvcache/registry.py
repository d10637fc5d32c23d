"""The KV policies by name. Entries are "module:attribute", so listing the names imports nothing."""

from __future__ import annotations

from dataclasses import MISSING, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longloom.kernels.kvcache.base import KVPolicy

_POLICIES = {
    "full": "longloom.kernels.kvcache.full:FullPolicy",
    "knorm": "longloom.kernels.kvcache.knorm:KnormPolicy",
    "razor": "longloom.kernels.kvcache.razor:RazorPolicy",
    "recent": "longloom.kernels.kvcache.recent:RecentPolicy",
    "snapkv": "longloom.kernels.kvcache.snapkv:SnapKVPolicy",
    "streaming": "longloom.kernels.kvcache.streaming:StreamingPolicy",
}


def names() -> list[str]:
    """The known KV policies, sorted."""
    return sorted(_POLICIES)


def check_name(name: str) -> None:
    """Raises ValueError for an unknown name, with the known ones. Imports no policy."""
    if name not in _POLICIES:
        raise ValueError(f"unknown KV policy {name!r}; known: {', '.join(names())}")


def get_policy(name: str, **options: Any) -> KVPolicy[Any]:
    """Build a KV policy.

    Args:
        name: one of `names()`.
        **options: the policy's own fields.

    Raises:
        ValueError: an unknown name (with the known ones), an unknown, missing or invalid option.
    """
    check_name(name)
    module, _, attribute = _POLICIES[name].partition(":")
    policy = getattr(import_module(module), attribute)
    known = {field.name: field for field in fields(policy)}
    offered = ", ".join(known) or "none"
    for option in options:
        if option not in known:
            raise ValueError(f"KV policy {name!r} has no option {option!r}; its options: {offered}")
    for option, field in known.items():
        if option not in options and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"KV policy {name!r} needs the option {option!r}; its options: {offered}")
    built: KVPolicy[Any] = policy(**options)
    return built
