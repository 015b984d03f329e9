"""Lateness: from submit to the file written, beside a script that polls each 500 ms."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

from imagen import config, ledger, render, request, workflow
from measure import show

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main(state: str, rounds: int = 40) -> None:
    from servers.comfyui import ComfyUI

    with ComfyUI() as server:
        ours = statistics.median(_ours(server, state) for _ in range(rounds))
        script = statistics.median(_script(server, state, n) for n in range(10))
    show(
        "A ComfyUI that answers at once: submit to file written (asked: ≤ 60 ms median)",
        ["client", "ms"],
        [
            ["imagen-render, verified, with sidecar, synced", f"{ours:.0f}"],
            ["a script that polls /history each 500 ms (peer)", f"{script:.0f}"],
        ],
    )


def _ours(server: Any, state: str) -> float:
    values = config.Config(None, backends={"comfy": {"type": "comfyui", "url": server.url}})
    values.values["default_backend"] = "comfy"
    told = request.Told(
        defaults={"backend": "comfy", "width": 1024, "height": 1024}, out_dir=Path(state) / "late"
    )
    renderer = render.Renderer(
        values, ledger.Ledger(Path(state) / "ledger.sqlite3"), told, state=Path(state)
    )
    [line] = request.requests_of({"prompt": "a cat"}, told)
    list(renderer.render(line))  # the connection and the imports are there
    [line] = request.requests_of({"prompt": "a cat"}, told)
    began = time.perf_counter()
    [made] = renderer.render(line)
    assert Path(made["file"]).exists()
    return 1000 * (time.perf_counter() - began)


def _script(server: Any, state: str, number: int) -> float:
    import requests

    graph = workflow.fill(workflow.load("flux1-schnell"), {"prompt": "a cat", "seed": number})
    session = requests.Session()
    began = time.perf_counter()
    handle = session.post(f"{server.url}/prompt", json={"prompt": graph}).json()["prompt_id"]
    while not (found := session.get(f"{server.url}/history/{handle}").json()):
        time.sleep(0.5)
    [image] = next(iter(found[handle]["outputs"].values()))["images"]
    body = session.get(f"{server.url}/view", params=image).content
    (Path(state) / f"script-{number}.png").write_bytes(body)
    return 1000 * (time.perf_counter() - began)
