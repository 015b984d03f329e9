"""The ComfyUI backend."""

from .backend import KEYS, ComfyUI, extra_keys, open_instance

__all__ = ["KEYS", "ComfyUI", "extra_keys", "open_instance"]
