"""The Replicate backend."""

from .backend import KEYS, Replicate, open_instance

__all__ = ["KEYS", "Replicate", "open_instance"]
