"""Backends: how a prompt becomes an image. One interface, a module for each type."""

from .base import (
    Account,
    Ask,
    Backend,
    Collected,
    Instance,
    Lost,
    PaidBackend,
    Plan,
    Ran,
    Raw,
    Refusals,
    Sought,
    Status,
    Wait,
    as_paid,
)
from .registry import BASE_KEYS, TYPES, faults, open_backend

__all__ = [
    "BASE_KEYS",
    "TYPES",
    "Account",
    "Ask",
    "Backend",
    "Collected",
    "Instance",
    "Lost",
    "PaidBackend",
    "Plan",
    "Ran",
    "Raw",
    "Refusals",
    "Sought",
    "Status",
    "Wait",
    "as_paid",
    "faults",
    "open_backend",
]
