"""What real ComfyUI servers were asked and what they answered: tests/data/comfyui/recorded.json.

`ANSWERS` to single requests, `HISTORIES` of prompts, and the `GRAPHS` that both name.
"""

from __future__ import annotations

import json
from typing import Any

from servers.comfyui import DATA

RECORDED = json.loads((DATA / "recorded.json").read_text())
ANSWERS, HISTORIES, GRAPHS = (RECORDED[name] for name in ("answers", "histories", "graphs"))


def changed(value: Any, change: Any) -> Any:
    """Merge a change into a copy of a graph; null takes a key away (RFC 7396)."""
    if not isinstance(change, dict):
        return change
    merged = dict(value)
    for key, one in change.items():
        merged[key] = changed(merged.get(key, {}), one)
    return {key: one for key, one in merged.items() if key not in change or one is not None}


def body_of(exchange: dict[str, Any]) -> Any:
    if "graph" in exchange:
        return {"prompt": changed(GRAPHS[exchange["graph"]], exchange["change"])}
    return exchange.get("body")
