"""The HTTP client: the one importer of requests."""

from .client import CONNECT_S, MAX_IMAGE, MAX_JSON, Flow, Server
from .responses import OF_THE_SETUP, TEMPORARY, Answer, excerpt, origin, proves_refusal

__all__ = [
    "CONNECT_S",
    "MAX_IMAGE",
    "MAX_JSON",
    "OF_THE_SETUP",
    "TEMPORARY",
    "Answer",
    "Flow",
    "Server",
    "excerpt",
    "origin",
    "proves_refusal",
]
