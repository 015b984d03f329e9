"""Lateness: from the server's finish to our file, beside a script that polls each 500 ms."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import requests

from imagen import ledger
from imagen.config import loader
from imagen.records import request
from imagen.render import renderer as rendering
from imagen.workflows import template
from measure import show

TESTS = Path(__file__).parents[1] / "tests/support"


def main(state: str, rounds: int = 40, script_rounds: int = 10) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "servers.comfyui", "--port", "0"],
        cwd=TESTS,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    try:
        ours = statistics.median(_ours(url, state) for _ in range(rounds))
        script = statistics.median(_script(url, state, n) for n in range(script_rounds))
    finally:
        server.kill()
        server.wait()
    show(
        "ComfyUI: from the server's own finish to the file written (asked: ≤ 60 ms median)",
        ["client", "ms"],
        [
            ["imagen-render, verified, with sidecar, synced", f"{ours:.0f}"],
            ["a script that polls /history each 500 ms (peer)", f"{script:.0f}"],
        ],
    )


def _late(url: str, handle: str, file: Path) -> float:
    """Milliseconds from the server's stamp of the end to the last change of the file."""
    entry = requests.get(f"{url}/history/{handle}", timeout=5).json()[handle]
    return 1000 * file.stat().st_mtime - entry["status"]["messages"][-1][1]["timestamp"]


def _ours(url: str, state: str) -> float:
    file = Path(state) / "late.yaml"
    file.write_text(
        f"default_backend: comfy\nbackends: {{comfy: {{type: comfyui, url: '{url}'}}}}\n"
    )
    values = loader.load(str(file))
    defaults = {"backend": "comfy", "width": 1024, "height": 1024}
    told = request.Told(defaults=defaults, out_dir=Path(state) / "late")
    book = ledger.Ledger(Path(state) / "ledger.sqlite3")
    renderer = rendering.Renderer(values, book, told, rendering.Around(Path(state)))
    for _ in range(2):  # the second time the connection and the imports are there
        [line] = request.requests_of({"prompt": "a cat"}, told)
        [made] = renderer.render(line)
    return _late(url, made["submit"], Path(made["file"]))


def _script(url: str, state: str, number: int) -> float:
    graph = template.fill(template.load("flux1-schnell"), {"prompt": "a cat", "seed": number})
    session = requests.Session()
    handle = session.post(f"{url}/prompt", json={"prompt": graph}).json()["prompt_id"]
    while not (found := session.get(f"{url}/history/{handle}").json()):
        time.sleep(0.5)
    [image] = next(iter(found[handle]["outputs"].values()))["images"]
    body = session.get(f"{url}/view", params=image).content
    file = Path(state) / f"script-{number}.png"
    file.write_bytes(body)
    return _late(url, handle, file)
