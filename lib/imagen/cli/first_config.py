"""The first configuration file: the sample, with a default backend that answers."""

from __future__ import annotations

from ..config.loader import SAMPLE, parse
from ..errors import ImagenError
from ..http import Server

LOCAL = "flux-schnell-local"
NOTES = {
    "mock": "the default backend is the mock, which draws test images: no ComfyUI answers at {url}"
    " (docs/guide/comfyui.md sets one up; then change default_backend)",
    LOCAL: "the default backend is {name}, the ComfyUI that answers at {url}",
}


def first_file() -> tuple[str, str]:
    """Return the text of a first configuration file, and a note for people on its backend."""
    url = parse(SAMPLE).tree["backends"][LOCAL]["url"]
    name = default_backend(url)
    text = SAMPLE.read_text(encoding="utf-8")
    if name != LOCAL:
        text = text.replace(f"default_backend: {LOCAL} ", f"default_backend: {name} ", 1)
        text = text.replace(
            "# A ComfyUI server on this machine; without one, write mock.",
            f"# The mock draws test images; for real ones write {LOCAL}, or another below.",
            1,
        )
    return text, NOTES[name].format(name=name, url=url)


def default_backend(url: str) -> str:
    """Return the instance for a ComfyUI that answers at its usual address, else the mock."""
    server = Server(url, read_s=1, who="ComfyUI", connect_s=1)
    try:
        stats = server.get("/system_stats").json_object(lenient=True)
        return LOCAL if isinstance(stats.get("system"), dict) else "mock"
    except ImagenError:
        return "mock"
    finally:
        server.close()
