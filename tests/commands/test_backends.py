"""imagen-backends: which instances there are, and whether they can be used."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from servers.answering import Answering
from servers.comfyui import ComfyUI
from servers.ports import refusing_port
from servers.replicate import SCHNELL, TOKEN, Replicate
from servers.replicate import Answer as Late


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port where nobody listens."""
    with refusing_port() as port:
        yield port


def local(url: str, **more: str) -> str:
    lines = ["backends:", "  local:", "    type: comfyui", f"    url: {url}"]
    return "\n".join([*lines, *(f"    {key}: {value}" for key, value in more.items()), ""])


def test_the_mock_is_there_when_nothing_is_configured(tool):
    ran = tool("backends")
    assert (ran.status, ran.err) == (0, "")
    assert ran.records == [
        {"name": "mock", "type": "mock", "model": "mock", "status": "ok", "checked": False}
    ]


def test_the_sample_gives_a_line_for_each_instance_in_its_order(tool, configure):
    configure(tool("config", "sample").out.decode())
    rows = tool("backends").records
    assert [(row["name"], row["type"]) for row in rows] == [
        ("mock", "mock"),
        ("flux-schnell-local", "comfyui"),
        ("flux2-klein-local", "comfyui"),
        ("sd35-medium-local", "comfyui"),
        ("flux-schnell-replicate", "replicate"),
        ("flux-dev-replicate", "replicate"),
    ]
    by_name = {row["name"]: row for row in rows}
    assert by_name["flux-schnell-local"]["workflow"] == "flux1-schnell"
    assert by_name["flux-schnell-local"]["model"] == "flux1-schnell.safetensors"
    assert by_name["flux-dev-replicate"]["model"] == "black-forest-labs/flux-dev"
    assert by_name["flux-dev-replicate"]["status"] == "not configured (set REPLICATE_API_TOKEN)"


def test_names_choose_and_an_unknown_one_is_refused_with_close_matches(tool, configure):
    configure(tool("config", "sample").out.decode())
    ran = tool("backends", "sd35-medium-local", "mock")
    assert [row["name"] for row in ran.records] == ["sd35-medium-local", "mock"]
    wrong = tool("backends", "sd35-medum-local")
    assert (wrong.status, wrong.out) == (2, b"")
    assert "sd35-medium-local" in wrong.err


def test_a_check_of_a_server_that_is_off_says_so_with_the_boot_hint(tool, configure, closed_port):
    configure(local(f"http://127.0.0.1:{closed_port}", boot_hint="boot-it now"))
    ran = tool("backends", "--check", "local")
    assert ran.status == 1
    assert ran.record["checked"] is True
    assert ran.record["status"].startswith("unreachable (")
    assert "boot-it now" in ran.record["status"]


def test_without_a_check_no_server_is_asked(tool, configure, closed_port):
    configure(local(f"http://127.0.0.1:{closed_port}"))
    ran = tool("backends", "local")
    assert (ran.status, ran.record["checked"]) == (0, False)


def test_a_check_of_the_mock_is_ok(tool):
    ran = tool("backends", "--check", "mock")
    assert (ran.status, ran.record["status"]) == (0, "ok")


def test_a_check_looks_for_nodes_and_model_files_and_says_what_cures(tool, configure):
    with ComfyUI() as server:
        configure(local(server.url, workflow="flux1-schnell"))
        assert tool("backends", "--check", "local").record["status"] == "ok"
        server.uninstall("ae.safetensors")
        del server.classes["ModelSamplingFlux"]
        ran = tool("backends", "--check", "local")
    assert ran.status == 1
    assert ran.record["missing_models"] == ["ae.safetensors"]
    assert ran.record["missing_nodes"] == ["ModelSamplingFlux"]
    assert ran.record["cure"] == "where ComfyUI runs: imagen-models fetch flux1-schnell"
    assert ran.record["status"] == (
        "incomplete (no node ModelSamplingFlux; "
        f"no ae.safetensors for vae_name of node 39 (VAELoader); {ran.record['cure']})"
    )


@pytest.mark.parametrize("how", ["unet: mine.safetensors", "options: {unet: mine.safetensors}"])
def test_a_check_of_a_file_of_the_instances_own_says_that_it_has_no_source(tool, configure, how):
    with ComfyUI() as server:
        configure(local(server.url) + f"    {how}\n")
        row = tool("backends", "--check", "local").record
        assert row["missing_models"] == ["mine.safetensors"]
        assert row["cure"].startswith("no source is known for mine.safetensors")
        server.uninstall("ae.safetensors")
        row = tool("backends", "--check", "local").record
    assert row["cure"].endswith("imagen-models fetch flux1-schnell --option=unet=mine.safetensors")


def test_a_check_of_a_server_that_is_too_old_says_so(tool, configure):
    with ComfyUI() as server:
        server.old = True
        configure(local(server.url))
        ran = tool("backends", "--check", "local")
    assert ran.status == 1
    assert ran.record["status"].startswith("too old (ComfyUI 0.3.44; update ComfyUI to 0.3.45")
    assert {method for method, *_ in server.requests} == {"GET"}


def test_a_check_asks_all_at_once_and_takes_five_seconds_at_most(tool, configure):
    with socket.socket() as deaf, ComfyUI() as server, Replicate() as paid_server:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(16)
        silent = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        paid_server.fail("GET", Late(wait_s=20))
        rows = {
            "deaf": f"{{type: comfyui, url: '{silent}'}}",
            "mute": f"{{type: replicate, model: {SCHNELL}, base_url: '{paid_server.url}'}}",
            "also-deaf": f"{{type: comfyui, url: '{silent}'}}",
            "local": f"{{type: comfyui, url: '{server.url}'}}",
        }
        configure("backends:\n" + "".join(f"  {name}: {row}\n" for name, row in rows.items()))
        began = time.monotonic()
        ran = tool("backends", "--check", *rows, env={"REPLICATE_API_TOKEN": TOKEN})
        took = time.monotonic() - began
    assert took < 15, "5 s of ours, and a start of Python on a busy machine"
    assert [row["name"] for row in ran.records] == [*rows]
    by_name = {row["name"]: row for row in ran.records}
    assert by_name["local"]["status"] == "ok"
    for name in ("deaf", "mute", "also-deaf"):
        assert by_name[name]["status"].startswith("unreachable (")
        assert by_name[name]["checked"] is True


def test_a_value_that_a_server_does_not_offer_is_no_missing_file(tool, configure):
    with ComfyUI() as server:
        configure(local(server.url) + "    options: {sampler: no-such}\n")
        row = tool("backends", "--check", "local").record
    assert "missing_models" not in row


def test_headers_from_the_environment_are_asked_for_and_never_shown(tool, configure):
    with ComfyUI() as server:
        configure(local(server.url, headers_env="{Authorization: MY_TOKEN}"))
        without = tool("backends", "--check", "local")
        given = tool("backends", "--check", "local", env={"MY_TOKEN": "hunter2"})
    assert without.record["status"] == "not configured (set MY_TOKEN)"
    assert given.record["status"] == "ok"
    assert "hunter2" in [head.get("Authorization") for head in server.headers]
    assert b"hunter2" not in given.out


def paid(url: str, model: str = SCHNELL) -> str:
    line = f"paid: {{type: replicate, model: {model}, base_url: '{url}', read_s: 1}}"
    return f"backends:\n  {line}\n"


def test_a_check_of_replicate_asks_whether_the_token_is_accepted(tool, configure):
    with Replicate() as server:
        configure(paid(server.url))
        without = tool("backends", "--check", "paid")
        assert (without.status, server.requests) == (1, [])
        unasked = tool("backends", "paid", env={"REPLICATE_API_TOKEN": TOKEN})
        assert (unasked.status, server.requests) == (0, [])
        given = tool("backends", "--check", "paid", env={"REPLICATE_API_TOKEN": TOKEN})
        refused = tool("backends", "--check", "paid", env={"REPLICATE_API_TOKEN": "r8_wrong-one"})
        assert server.creates == 0
        assert {(method, path) for method, path, _ in server.requests} == {
            ("GET", "/v1/predictions")
        }
    off = tool("backends", "--check", "paid", env={"REPLICATE_API_TOKEN": TOKEN})
    assert without.record["status"] == "not configured (set REPLICATE_API_TOKEN)"
    assert unasked.record == given.record | {"checked": False}
    assert (given.status, given.record["status"], given.record["model"]) == (0, "ok", SCHNELL)
    assert refused.record["status"] == (
        "not configured (the token in $REPLICATE_API_TOKEN is refused)"
    )
    assert off.record["status"].startswith("unreachable (")
    for ran in (without, given, refused, off):
        assert TOKEN.encode() not in ran.out
        assert b"r8_wrong-one" not in ran.out


def test_the_environment_says_where_replicate_is(tool, configure):
    with Replicate() as server:
        configure(paid("http://127.0.0.1:9"))
        env = {"REPLICATE_API_TOKEN": TOKEN, "REPLICATE_BASE_URL": server.url}
        assert tool("backends", "--check", "paid", env=env).status == 0
    env["REPLICATE_BASE_URL"] = "nowhere"
    wrong = tool("backends", "--check", "paid", env=env)
    assert "$REPLICATE_BASE_URL must be a URL" in wrong.record["status"]


@pytest.mark.parametrize(
    ("model", "says"), [("null", "no model"), ("flux-schnell", "is owner/name or owner/name:ver")]
)
def test_a_replicate_without_a_model_is_a_line_that_says_so(tool, configure, model, says):
    path = configure(paid("http://127.0.0.1:9", model))
    assert says in tool("backends").records[1]["status"]
    ran = tool("config", "validate")
    assert ran.status == 2
    assert f"{path}:2: backends.paid: " in ran.err
    assert says in ran.err
    assert SCHNELL in ran.err


@pytest.mark.parametrize(
    ("settings", "says"),
    [("workflow: flux1-shnell", "flux1-schnell"), ("workflow: /no/such.json", "/no/such.json")],
)
def test_an_instance_that_is_wrong_is_a_line_that_says_why(tool, configure, settings, says):
    configure(f"backends:\n  broken:\n    type: comfyui\n    {settings}\n")
    ran = tool("backends")
    assert [row["name"] for row in ran.records] == ["mock", "broken"]
    assert ran.records[1]["status"].startswith("not configured (")
    assert says in ran.records[1]["status"]
    assert tool("backends", "--check").status == 1


def test_on_terminal_it_is_a_table(tool, configure):
    configure(tool("config", "sample").out.decode())
    lines = tool.on_terminal("backends", NO_COLOR="1").splitlines()
    assert lines[0].split() == ["name", "type", "model", "workflow", "status"]
    assert len(lines) == 7
    at = lines[0].index("status")
    assert all(line[at - 1] == " " and line[at] != " " for line in lines)


def test_colour_is_for_terminals_that_want_it(tool):
    assert "\x1b[32mok" in tool.on_terminal("backends")
    assert "\x1b" not in tool.on_terminal("backends", NO_COLOR="1")


# -- what stands before a server -------------------------------------------------------------------

LOGIN = "headers_env sends a token or a cookie"
PAGE = b"\n<!doctype html><title>Log in</title>"


@pytest.mark.parametrize(
    ("status", "body", "place", "says"),
    [
        (301, b"", "https://me:hunter2@new.example.org/c", "301: to https://new.example.org/c"),
        (302, b"moved", "/login?next=%2Fhunter2", "302: to /login: moved"),
        (401, b'{"error": "who are you?"}', "", "answered 401"),
        (200, PAGE, "", "no JSON object"),
    ],
)
def test_a_redirect_a_401_and_a_login_page_name_headers_env(
    tool, configure, status, body, place, says
):
    headers = {"Location": place} if place else {}
    with Answering(lambda handler: handler.send(status, body, **headers)) as server:
        url = f"http://127.0.0.1:{server.port}"
        configure(local(url, patience_s="1"))
        listed = tool("backends", "--check", "local")
        rendered = tool("render", "a cat", "--backend", "local", "--size", "64x64")
    for text in (listed.record["status"], rendered.err):
        assert says in text and LOGIN in text, text
        assert "hunter2" not in text


def test_the_tools_reach_a_loopback_server_though_a_dead_proxy_is_set(tool, configure):
    with ComfyUI() as server:
        configure(f"backends: {{c: {{type: comfyui, url: {server.url}}}}}\n")
        dead = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
        ran = tool("render", "a cat", "--backend", "c", "--size", "64x64", env=dead)
    assert ran.status == 0, ran.err


def test_a_dead_proxy_is_named_by_the_tools(tool, configure):
    configure("backends: {c: {type: comfyui, url: 'http://comfyui.test:8188', patience_s: 1}}\n")
    dead = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    ran = tool("render", "a cat", "--backend", "c", "--size", "64x64", env=dead)
    assert ran.status == 75
    assert "through the proxy at 127.0.0.1:9: connection refused" in ran.err
