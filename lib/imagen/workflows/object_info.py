"""What ComfyUI's /object_info says of an input: its choices, and how files are spelt. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MODEL_FILES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


def choices(spec: Any) -> list[Any] | None:
    """Read a COMBO input in both of its shapes; None when the input is none."""
    if isinstance(spec, list) and spec:
        if isinstance(spec[0], list):
            return spec[0]
        if spec[0] == "COMBO" and len(spec) > 1 and isinstance(spec[1], dict):
            options = spec[1].get("options")
            return options if isinstance(options, list) else None
    return None


def other_spelling(name: str, offered: Iterable[Any]) -> str | None:
    """Return how a server spells a file whose folders are named with other slashes, if it has it.

    A server on Windows lists SDXL\\x.safetensors, others list SDXL/x.safetensors.
    """
    plain = name.replace("\\", "/")
    names = (one for one in offered if isinstance(one, str) and one != name)
    return next((one for one in names if one.replace("\\", "/") == plain), None)


def there_as(name: str, other: str) -> str:
    """Say that a file is on the server under another spelling."""
    return f"{name} is there as {other}: write it so"
