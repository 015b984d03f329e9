"""The look-alike answers as real servers did.

recorded.json holds what they were asked and what they said: `answers` to single requests, entries
of /history, and /queue. A request to change a graph names the graph and what differs from it.
"""

from __future__ import annotations

import copy
import http.client
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from PIL import Image

from comfyui_recorded import ANSWERS, GRAPHS, HISTORIES, RECORDED, body_of, changed
from servers.comfyui import ComfyUI

CACHING = [
    "ok_success",
    "cached",
    "another one",
    "cached_after_other",
    "its file is deleted",
    "cached_file_deleted",
    "cached_prefix_changed",
    "cached_node_ids_renamed",
]


@pytest.fixture
def server() -> Iterator[ComfyUI]:
    with ComfyUI() as running:
        yield running


def ask(url: str, method: str, path: str, body: Any = None) -> tuple[int, str | None, Any]:
    """Ask over HTTP; give status, content type, and the body, read when it is JSON."""
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request(method, path, None if body is None else raw)
    response = connection.getresponse()
    kind, data = response.headers.get("Content-Type"), response.read()
    connection.close()
    if kind and "json" in kind:
        return response.status, kind, json.loads(data)
    return response.status, kind, data if kind and "image" in kind else data.decode()


def same_shape(one: Any, other: Any) -> bool:
    """Whether two JSON values have the same keys and kinds all the way down."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_shape(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return all(same_shape(a, b) for a, b in zip(one, other, strict=False))
    return type(one) is type(other)


@pytest.mark.parametrize("name", ANSWERS)
def test_it_answers_as_recorded(server: ComfyUI, name: str) -> None:
    exchange = ANSWERS[name]
    status, kind, answer = ask(server.url, exchange["method"], exchange["path"], body_of(exchange))
    assert (status, kind) == (exchange["status"], exchange["content_type"])
    expected = exchange["answer"]
    if status == 200 and "prompt_id" in expected:
        assert same_shape(answer, expected)
        assert answer["node_errors"] == expected["node_errors"]
        chosen = exchange.get("body", {})
        if "prompt_id" in chosen:
            assert answer["prompt_id"] == expected["prompt_id"]
    else:
        assert answer == expected


def entry_after(server: ComfyUI, recorded: dict[str, Any]) -> dict[str, Any]:
    """Submit the graph of a recorded history entry; give what /history has of it then."""
    _, _, graph, extra, _ = copy.deepcopy(recorded["prompt"])
    body = {"prompt": graph, "extra_data": extra}
    _, _, accepted = ask(server.url, "POST", "/prompt", body)
    _, _, history = ask(server.url, "GET", f"/history/{accepted['prompt_id']}")
    return history[accepted["prompt_id"]]


def comparable(entry: dict[str, Any]) -> dict[str, Any]:
    """Give an entry without what differs from run to run: its id, number, times."""
    found = json.loads(json.dumps(entry).replace(entry["prompt"][1], "the id"))
    found["prompt"][0] = 0
    found["prompt"][3].pop("create_time", None)
    for message in found["status"]["messages"]:
        if isinstance(message, list):
            message[1]["timestamp"] = 0
    return found


def test_it_caches_the_last_prompt_as_recorded(server: ComfyUI) -> None:
    for name in CACHING:
        if name == "another one":
            entry_after(server, HISTORIES["ok_batch3"])
        elif name == "its file is deleted":
            server.files.pop(("rec", "success_1795377284_00002_.png"))
        else:
            recorded = HISTORIES[name]
            assert comparable(entry_after(server, recorded)) == comparable(recorded), name


@pytest.mark.parametrize("name", ["ok_batch3", "e2e_sd35_256"])
def test_history_reads_as_recorded(server: ComfyUI, name: str) -> None:
    assert comparable(entry_after(server, HISTORIES[name])) == comparable(HISTORIES[name])


def test_only_the_sound_outputs_of_a_prompt_run(server: ComfyUI) -> None:
    entry = entry_after(server, HISTORIES["ok_partial_node_errors"])
    assert entry["prompt"][4] == HISTORIES["ok_partial_node_errors"]["prompt"][4] == ["9"]
    assert list(entry["outputs"]) == ["9"]


def test_the_fork_says_the_same_in_its_own_words(server: ComfyUI) -> None:
    server.fork = True
    recorded = HISTORIES["fork_ok_success"]
    assert comparable(entry_after(server, recorded)) == comparable(recorded)
    recorded = HISTORIES["fork_workflow_flux1-schnell"]
    server.error = recorded["status"]["messages"][-1].partition(": ")[2]
    assert comparable(entry_after(server, recorded)) == comparable(recorded)


def test_a_failed_render_reads_as_recorded(server: ComfyUI) -> None:
    recorded = HISTORIES["exec_error"]
    server.error = recorded["status"]["messages"][-1][1]["exception_message"]
    entry = entry_after(server, recorded)
    for part in ("status", "outputs", "meta"):
        ours, theirs = comparable(entry)[part], comparable(recorded)[part]
        if part == "status":
            last = ours["messages"][-1][1], theirs["messages"][-1][1]
            assert last[0].pop("current_inputs") is not None
            assert last[1].pop("current_inputs") is not None
        assert same_shape(ours, theirs)
    kinds = [message[0] for message in entry["status"]["messages"]]
    assert kinds == [message[0] for message in recorded["status"]["messages"]]


def test_an_interrupted_render_reads_as_recorded(server: ComfyUI) -> None:
    recorded = HISTORIES["interrupt_real_sampler"]
    server.held = True
    _, _, accepted = ask(server.url, "POST", "/prompt", {"prompt": recorded["prompt"][2]})
    name = accepted["prompt_id"]
    ask(server.url, "POST", "/interrupt", {"prompt_id": name})
    entry = ask(server.url, "GET", f"/history/{name}")[2][name]
    assert same_shape(entry["status"], recorded["status"])
    assert entry["status"]["messages"][-1][0] == recorded["status"]["messages"][-1][0]
    assert (entry["status"]["status_str"], entry["outputs"]) == ("error", {})


def queued(server: ComfyUI) -> list[str]:
    """Hold the server and give it two prompts; the first runs, the second waits."""
    server.held = True
    bodies = [{"prompt": GRAPHS["sd35-medium"], "client_id": "somebody"}] * 2
    return [ask(server.url, "POST", "/prompt", body)[2]["prompt_id"] for body in bodies]


def test_the_queue_reads_as_recorded(server: ComfyUI) -> None:
    running, waiting = queued(server)
    _, _, queue = ask(server.url, "GET", "/queue")
    assert queue.keys() == RECORDED["queue"].keys()
    for name, ours in zip(RECORDED["queue"], (running, waiting), strict=True):
        (item,), (recorded,) = queue[name], RECORDED["queue"][name]
        assert [type(part) for part in item] == [type(part) for part in recorded]
        assert item[1] == ours
        assert item[3].keys() == recorded[3].keys()


def test_history_is_empty_while_a_prompt_waits_or_runs(server: ComfyUI) -> None:
    for name in queued(server):
        assert ask(server.url, "GET", f"/history/{name}")[2] == {}


def test_only_waiting_prompts_can_be_deleted(server: ComfyUI) -> None:
    running, waiting = queued(server)
    assert ask(server.url, "POST", "/queue", {"delete": [running, waiting]}) == (200, None, "")
    assert server.queue() == (running, [])
    assert ask(server.url, "GET", f"/history/{waiting}")[2] == {}


def test_an_interrupt_by_id_stops_that_prompt_only_while_it_runs(server: ComfyUI) -> None:
    running, waiting = queued(server)
    ask(server.url, "POST", "/interrupt", {"prompt_id": waiting})
    assert server.queue() == (running, [waiting])
    ask(server.url, "POST", "/interrupt", {"prompt_id": running})
    assert server.queue() == (waiting, [])
    assert server.ending(running) == "execution_interrupted"


def test_an_interrupt_without_an_id_stops_whatever_runs(server: ComfyUI) -> None:
    running, waiting = queued(server)
    ask(server.url, "POST", "/interrupt", "")
    assert server.queue() == (waiting, [])
    assert server.ending(running) == "execution_interrupted"
    assert server.interrupts == [None]


def test_history_shows_the_values_that_were_converted(server: ComfyUI) -> None:
    graph = changed(GRAPHS["sd35-medium"], {"3": {"inputs": {"seed": "1", "steps": 4.9}}})
    entry = entry_after(server, {"prompt": [0, "", graph, {}, []]})
    inputs = entry["prompt"][2]["3"]["inputs"]
    assert (inputs["seed"], inputs["steps"]) == (1, 4)


@pytest.mark.parametrize(
    ("asked", "drawn"), [((250, 250), (248, 248)), ((257, 256), (256, 256)), ((264, 16), (264, 16))]
)
def test_a_picture_has_the_size_of_its_latent_and_tells_its_graph(
    server: ComfyUI, asked: tuple[int, int], drawn: tuple[int, int]
) -> None:
    size = {"width": asked[0], "height": asked[1]}
    graph = changed(GRAPHS["sd35-medium"], {"53": {"inputs": size}})
    entry = entry_after(server, {"prompt": [0, "", graph, {}, []]})
    (place,) = entry["outputs"]["9"]["images"]
    status, kind, data = ask(server.url, "GET", f"/view?{urlencode(place)}")
    assert (status, kind) == (200, "image/png")
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == drawn
        assert json.loads(picture.info["prompt"]) == graph


def test_a_batch_is_several_pictures_of_one_seed(server: ComfyUI) -> None:
    graph = changed(GRAPHS["sd35-medium"], {"53": {"inputs": {"width": 64, "height": 64}}})
    for seed in (7, 7 + 2**32):
        change = {"3": {"inputs": {"seed": seed}}, "53": {"inputs": {"batch_size": 2}}}
        entry_after(server, {"prompt": [0, "", changed(graph, change), {}, []]})
    pixels = [Image.open(io.BytesIO(data)).tobytes() for data in server.files.values()]
    assert pixels[:2] == pixels[2:]
    assert pixels[0] != pixels[1]


def test_a_restart_loses_everything_but_the_files(server: ComfyUI) -> None:
    entry = entry_after(server, HISTORIES["ok_batch3"])
    before = server.url
    server.restart()
    assert server.url == before
    assert ask(server.url, "GET", f"/history/{entry['prompt'][1]}")[2] == {}
    again = entry_after(server, HISTORIES["ok_batch3"])
    assert again["prompt"][0] == 0
    names = [place["filename"] for one in (entry, again) for place in one["outputs"]["9"]["images"]]
    assert [name[-7:-5] for name in names] == ["01", "02", "03", "04", "05", "06"]


def test_every_route_is_also_under_api(server: ComfyUI) -> None:
    assert ask(server.url, "GET", "/api/queue") == ask(server.url, "GET", "/queue")


def test_it_is_a_program_too() -> None:
    support = Path(__file__).parents[2] / "support"
    environment = {**os.environ, "PYTHONPATH": str(support)}
    command = [sys.executable, "-m", "servers.comfyui", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        url = program.stdout.readline().strip()
        assert ask(url, "GET", "/queue")[0] == 200
        program.terminate()
