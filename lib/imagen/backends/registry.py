"""Backend types by name, and opening a configured instance of one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config.loader import Config
from ..config.settings import Fault, Key, check_keys
from ..errors import ConfigFault, Refused, suggest
from .base import Backend, Instance

TYPES = ("mock", "comfyui", "replicate")
BASE_KEYS = {
    "type": Key("string"),
    "default_steps": Key("count"),
    "timeout_s": Key("seconds"),
    "options": Key("mapping"),
}


def open_backend(name: str, config: Config, state_folder: Path) -> Backend:
    """Open a configured instance; Refused when there is none of that name or it is wrong."""
    if name not in config.backends:
        hint = suggest(name, config.backends)
        raise Refused(f"no backend {name!r}", code="unknown_backend", hint=hint)
    folder = config.path.parent if config.path else Path()
    instance = Instance(name, config.backends[name], folder, state_folder, config.prices)
    for fault in faults(instance):
        place = ".".join(fault.place)
        raise ConfigFault(f"{config.path}: {place}: {fault.message}", hint=fault.hint)
    opened: Backend = _module(instance.settings["type"]).open_instance(instance)
    return opened


def faults(instance: Instance) -> Iterator[Fault]:
    """Yield what is wrong with an instance's settings."""
    place = ("backends", instance.name)
    kind = instance.settings.get("type")
    if kind not in TYPES:
        yield Fault((*place, "type"), f"no backend type {kind!r}", suggest(str(kind), TYPES))
        return
    module = _module(kind)
    try:
        extra = module.extra_keys(instance) if hasattr(module, "extra_keys") else {}
        keys = {**BASE_KEYS, **module.KEYS, **extra}
    except Refused as fault:
        yield Fault((*place, "workflow"), fault.message, fault.hint)
        return
    problems = list(check_keys(place, keys, instance.settings))
    yield from problems
    if not problems:
        try:
            module.open_instance(instance)
        except Refused as fault:
            yield Fault(place, fault.message, fault.hint)


def _module(kind: str) -> Any:
    return importlib.import_module(f"{__package__}.{kind}")
