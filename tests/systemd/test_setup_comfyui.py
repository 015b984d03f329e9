"""What docs/guide/comfyui.md shows is tried: by curl, through nginx, by its error codes."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import docs_sync
from imagen.workflows import template
from servers.comfyui import ComfyUI
from servers.ports import reserved_port

PAGE = (docs_sync.TOP / "docs/guide/comfyui.md").read_text()
TOKEN = "0123456789abcdef" * 4
NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include comfyui.conf;
}}
"""


def block(language: str, having: str) -> str:
    """Give the one fenced block of the page that has this text."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (one,) = [text for text in found if having in text]
    return one


def table(head: str) -> list[list[str]]:
    """Give the rows of the table with this first column."""
    text = PAGE.partition(f"| {head} |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
    assert rows
    return rows


@pytest.fixture
def comfy() -> Iterator[ComfyUI]:
    with ComfyUI() as server:
        yield server


def test_the_first_image_comes_by_the_commands_of_the_page(comfy, tool, configure, needs, tmp_path):
    needs("curl", "curl")
    needs("jq", "jq")
    configure("default_backend: local\nbackends: {local: {type: comfyui}}\n")
    plan = tool("render", "a cat in a fishbowl", "--id", "first", "--seed", "7", "--dry-run")
    (tmp_path / "plan.jsonl").write_bytes(plan.out)
    commands = block("sh", "first.png").replace("http://127.0.0.1:8188", comfy.url)
    shell = ["sh", "-euc", f"cd {shlex.quote(str(tmp_path))}\n{commands}"]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=30, check=True)
    assert '"node_errors": {}' in done.stdout
    first = (tmp_path / "first.png").read_bytes()
    assert first[:4] == b"\x89PNG"
    assert [int.from_bytes(first[at : at + 4], "big") for at in (16, 20)] == [1024, 1024]


# -- a proxy that checks a token -------------------------------------------------------------------


@pytest.fixture
def proxy(comfy, needs, until, tmp_path, monkeypatch) -> Iterator[str]:
    """An nginx with the configuration of the page before the server; its address."""
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")  # Debian's place for it
    nginx = needs("nginx", "nginx-light")
    place = f"127.0.0.1:{reserved_port()}"
    shown = block("nginx", "proxy_pass")
    ours = shown.replace("192.168.1.10:8189", place).replace("http://127.0.0.1:8188", comfy.url)
    assert place in ours and comfy.url in ours
    folder = tmp_path / "nginx"
    folder.mkdir()
    (folder / "comfyui.conf").write_text(ours)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder))
    written = re.search(r"^printf '(.+?)' ", block("sh", "comfyui-token.map"), re.MULTILINE)
    assert written
    subprocess.run(
        ["sh", "-c", f"printf '{written[1]}' {TOKEN} > {folder}/comfyui-token.map"], check=True
    )
    started = subprocess.Popen([nginx, "-p", folder, "-c", folder / "nginx.conf"])
    try:
        until(lambda: _answers(place) or started.poll() is not None)
        assert started.poll() is None, (folder / "error.log").read_text()
        yield f"http://{place}"
    finally:
        started.terminate()
        started.wait(10)


def _answers(place: str) -> bool:
    host, port = place.split(":")
    with socket.socket() as tried:
        return tried.connect_ex((host, int(port))) == 0


@pytest.fixture
def through(proxy, tool, configure) -> Callable[[str | None], tuple[int, dict]]:
    """Render through the proxy with this value of the header, or without one."""

    def render(value: str | None) -> tuple[int, dict]:
        own = block("yaml", "headers_env").replace("http://192.168.1.10:8189", proxy)
        if value is None:
            own = own.partition("    headers_env")[0]
        configure(own)
        ran = tool(
            *("render", "a cat", "--backend", "flux-schnell-local", "--seed", "7"),
            env={"COMFYUI_AUTHORIZATION": value},
        )
        assert value is None or value not in ran.err + ran.out.decode()
        return ran.status, ran.record

    return render


def test_with_the_right_token_a_render_passes_and_the_token_stays_at_the_proxy(through, comfy):
    status, record = through(f"Bearer {TOKEN}")
    assert (status, Path(record["file"]).read_bytes()[:4]) == (0, b"\x89PNG")
    assert [head["Authorization"] for head in comfy.headers if "Authorization" in head] == []


@pytest.mark.parametrize(
    "value",
    [None, f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN}0", TOKEN],
    ids=["none", "upper case", "more", "without Bearer"],
)
def test_with_any_other_it_is_rejected_and_comfyui_hears_nothing(through, comfy, value):
    status, record = through(value)
    assert (status, record["error"]["code"]) == (1, "rejected")
    assert "401" in record["error"]["message"]
    assert comfy.requests == []


# -- places ----------------------------------------------------------------------------------------


def test_each_place_on_the_page_is_one_that_the_installer_makes(tmp_path):
    script = ["sh", docs_sync.TOP / "systemd/install-comfyui.sh", "--dry-run"]
    options = ["--torch-backend", "cpu", "--folder", tmp_path / "comfyui", "--units", tmp_path]
    done = subprocess.run([*script, *options], capture_output=True, text=True, check=True)
    made = done.stdout.replace(str(tmp_path), "/var/lib")
    named = {*re.findall(r"/var/lib/comfyui[\w/.-]*", PAGE)}
    assert len(named) >= 5
    assert [one for one in named if one.partition("/NAME")[0] not in made] == []
    assert "~/ComfyUI" not in PAGE


# -- tables ----------------------------------------------------------------------------------------


def test_each_code_in_the_troubleshooting_is_an_error_code_of_ours():
    sources = [path.read_text() for path in (docs_sync.TOP / "lib/imagen").rglob("*.py")]
    known = {one.code for one in docs_sync.error_classes()}
    known |= {*re.findall(r'code="(\w+)"', "\n".join(sources))}
    listed = [row[0].partition("`, ")[0].strip("`") for row in table("code")]
    assert {*listed} <= known
    assert len({*listed}) > 10


def test_the_memory_table_has_every_bundled_workflow():
    assert [row[0].strip("`") for row in table("workflow | diffusion model")] == template.bundled()


def test_the_env_file_tells_of_every_argument_that_the_page_names():
    example = (docs_sync.TOP / "systemd/comfyui.env.example").read_text()
    for row in table("argument"):
        assert row[0].strip("`") in example
