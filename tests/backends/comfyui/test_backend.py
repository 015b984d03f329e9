"""The ComfyUI backend against its look-alike, mostly through the renderer."""

from __future__ import annotations

import io
import json
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from imagen.backends import Ask, Lost, Sought, Wait, open_backend
from imagen.backends.comfyui.backend import ComfyUI as Backend
from imagen.config import loader as configuration
from imagen.errors import (
    BadImage,
    IdTaken,
    ImagenError,
    Interrupted,
    Refused,
    RenderFailed,
    ServerFault,
    Stopped,
)
from imagen.ledger import Ledger
from imagen.records.record import Record, checked
from imagen.records.request import TOOL, Told
from imagen.render.renderer import Around, Renderer
from imagen.workflows import template
from servers.comfyui import TEXT, Answer, ComfyUI

ID = "5f0c8d5e-5d2f-4a6b-9d0a-1c2b3a4d5e6f"
NOT_OWNED = Lost(0, None, 0, lambda _handle: False)
FAST = {"poll_min_s": 0.001, "poll_max_s": 0.02, "retry_s": 0.01, "patience_s": 1}
PAGE = Answer(200, b"<html>please log in</html>", "text/html")
Make = Callable[..., Renderer]
Later = Callable[[Callable[[], Any]], None]
Settings = Callable[..., configuration.Config]
Open = Callable[..., Backend]
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def server() -> Iterator[ComfyUI]:
    with ComfyUI() as running:
        yield running
    assert None not in running.interrupts, "a global interrupt stops other people's renders"


@pytest.fixture
def closed_url() -> Iterator[str]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def once_polled(server: ComfyUI, until: Callable[..., Any]) -> Later:
    """Give a function that acts as soon as the server is polled for a prompt that it has."""

    def later(action: Callable[[], Any]) -> None:
        until(lambda: server.submits and asks(server, "GET /history"))
        action()

    return lambda action: threading.Thread(target=later, args=(action,), daemon=True).start()


@pytest.fixture
def settings(server: ComfyUI, tmp_path: Path) -> Settings:
    """Give a function that writes a configuration with one instance, `comfy`, and loads it."""

    def written(**more: Any) -> configuration.Config:
        instance = {"type": "comfyui", "url": server.url, **FAST, **more}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"backends": {"comfy": instance}}))
        return configuration.load(str(path))

    return written


@pytest.fixture
def make(settings: Settings, tmp_path: Path) -> Make:
    """Give a function that makes a renderer, as one process would."""

    def made(
        told: dict[str, Any] | None = None, tell: Callable[..., None] | None = None, **more: Any
    ) -> Renderer:
        ledger = Ledger(tmp_path / "state" / "ledger.sqlite3")
        said = Told(out_dir=tmp_path / "out", **(told or {}))
        ears = {"tell": tell} if tell else {}
        return Renderer(settings(**more), ledger, said, Around(tmp_path / "state", **ears))

    return made


@pytest.fixture
def backend(settings: Settings, tmp_path: Path) -> Open:
    """Give a function that opens the instance alone."""
    return lambda **more: open_backend("comfy", settings(**more), tmp_path)


def asked(**more: Any) -> Record:
    request = {"prompt": "a cat", "id": ID, "seed": 7, "width": 64, "height": 64, **more}
    return checked({"backend": "comfy", **request})


def rendered(renderer: Renderer, **more: Any) -> list[Record]:
    return list(renderer.render(asked(**more)))


def failure(renderer: Renderer, **more: Any) -> ImagenError:
    with pytest.raises(ImagenError) as caught:
        rendered(renderer, **more)
    return caught.value


def handle(number: int = 1) -> str:
    """Give the prompt_id of a submit of ID."""
    return str(uuid.uuid5(uuid.UUID(ID), str(number)))


def submitted(server: ComfyUI) -> list[str]:
    return [body["prompt_id"] for body in server.submits]


def asks(server: ComfyUI, request: str) -> int:
    """Count the requests that start so."""
    return sum(f"{method} {path}".startswith(request) for method, path, _ in server.requests)


def strangers_prompt(server: ComfyUI) -> str:
    """Submit what another client asks for; give its prompt_id."""
    image = {"width": 64, "height": 64, "batch_size": 1, "color": 0}
    save = {"images": ["1", 0], "filename_prefix": "theirs"}
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "9": {"class_type": "SaveImage", "inputs": save},
    }
    answer = server.answer("POST", "/prompt", json.dumps({"prompt": graph}).encode())
    server.submits.pop()
    return str(json.loads(answer.body)["prompt_id"])


def stopping(status: int, heard: list[str] | None = None) -> Callable[[float, str], None]:
    """Give a `tell` that a signal strikes; what it was told is `heard`."""

    def tell(_elapsed: float, text: str) -> None:
        if heard is not None:
            heard.append(text)
        raise Stopped(status)

    return tell


def images_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def a_workflow(folder: Path, change: dict[str, Any]) -> str:
    """Write the workflow of FLUX.1 with nodes added or replaced; give its path."""
    tree = json.loads((template.BUNDLED / "flux1-schnell.json").read_bytes())
    path = folder / "mine.json"
    path.write_text(json.dumps({**tree, **change}))
    return str(path)


def without_text(data: bytes) -> bytes:
    """Save a picture again without its text chunks, as --disable-metadata does."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as picture:
        Image.frombytes(picture.mode, picture.size, picture.tobytes()).save(out, "PNG")
    return out.getvalue()


# -- what is sent and what comes back ------------------------------------------------------------


def test_a_render_tells_how_it_was_made(server: ComfyUI, make: Make) -> None:
    server.seconds = 0.05
    (made,) = rendered(make())
    expected = {
        "model": "flux1-schnell.safetensors",
        "workflow": "flux1-schnell",
        "seed": 7,
        "steps": 4,
        "cfg": 1.0,
        "sampler": "euler",
        "scheduler": "simple",
        "width": 64,
        "height": 64,
        "render_id": ID,
        "submit": handle(),
        "attempts": 1,
        "cost_usd": 0,
        "format": "png",
    }
    assert {name: made[name] for name in expected} == expected
    assert "fidelity" not in made
    assert "warnings" not in made
    device = server.stats["answer"]["devices"][0]
    assert made["backend_meta"] == {
        "seed_used": 7,
        "prompt_id": handle(),
        "client_id": server.submits[0]["client_id"],
        "vram_used_mib": (device["vram_total"] - device["vram_free"]) // 2**20,
    }
    assert made["latency_ms"] - made["queue_ms"] == pytest.approx(50, abs=2)
    assert made["queue_ms"] >= 0


def test_the_bytes_are_written_as_they_came(server: ComfyUI, make: Make) -> None:
    (made,) = rendered(make())
    (data,) = server.files.values()
    assert Path(made["file"]).read_bytes() == data
    assert json.loads(Path(made["sidecar"]).read_text()) == made


def test_the_end_of_one_wait_does_not_cut_short_what_is_asked_later(
    server: ComfyUI, backend: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagen.backends.comfyui.backend._AT_LEAST_S", 1.5)
    server.held, one = True, backend()
    plan = one.plan(Ask(asked(), "a cat", None, ID))
    wait = Wait(time.monotonic(), lambda _: None)
    assert one.collect(one.submit(plan), wait, plan) is None
    time.sleep(1.6)
    assert one.find(plan, NOT_OWNED) == ID


def test_the_wait_behind_others_is_told_apart(server: ComfyUI, make: Make) -> None:
    server.seconds = 0.2
    strangers_prompt(server)
    (made,) = rendered(make())
    assert 150 <= made["queue_ms"] <= made["latency_ms"] - 195


def test_the_prompt_id_and_the_prefix_come_from_the_render_id(server: ComfyUI, make: Make) -> None:
    rendered(make())
    (body,) = server.submits
    assert body["prompt_id"] == str(uuid.uuid5(uuid.UUID(ID), "1"))
    assert body["prompt"]["9"]["inputs"]["filename_prefix"] == f"imagen/{body['prompt_id']}"
    assert len(body["client_id"]) == 32


def test_what_a_dry_run_shows_is_what_the_server_gets(server: ComfyUI, make: Make) -> None:
    shown = make().dry(asked())
    assert server.requests == []
    rendered(make())
    assert server.submits == [shown["payload"]]
    assert (shown["fidelity"], shown["cost_usd"]) == ({}, 0)


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("flux1-schnell", {"steps": 4, "cfg": 1.0, "sampler": "euler", "scheduler": "simple"}),
        ("flux2-klein", {"steps": 4, "cfg": 1.0, "sampler": "euler"}),
        (
            "sd35-medium",
            {"steps": 20, "cfg": 4.01, "sampler": "euler", "scheduler": "sgm_uniform"},
        ),
    ],
)
def test_what_nobody_says_is_the_workflows_default(
    server: ComfyUI, make: Make, name: str, defaults: dict[str, Any]
) -> None:
    request = {"prompt": "a cat", "id": ID, "seed": 7, "backend": "comfy"}
    (made,) = list(make(workflow=name).render(request))
    found = {key: made[key] for key in ("steps", "cfg", "sampler", "scheduler") if key in made}
    assert found == defaults
    assert (made["width"], made["height"], made["workflow"]) == (1024, 1024, name)
    with Image.open(made["file"]) as picture:
        assert picture.size == (1024, 1024)


def test_the_instances_steps_go_over_the_workflows_and_the_requests_over_both(
    server: ComfyUI, make: Make
) -> None:
    assert rendered(make(default_steps=6))[0]["steps"] == 6
    assert rendered(make(default_steps=6), steps=9, id="other")[0]["steps"] == 9
    assert [body["prompt"]["31"]["inputs"]["steps"] for body in server.submits] == [6, 9]


def test_a_request_reaches_the_sampler(server: ComfyUI, make: Make) -> None:
    said = {"cfg": 3, "sampler": "dpmpp_2m", "scheduler": "karras", "negative_prompt": "dogs"}
    (made,) = rendered(make(workflow="sd35-medium"), **said)
    graph = server.submits[0]["prompt"]
    sampler = graph["3"]["inputs"]
    assert [sampler[name] for name in ("cfg", "sampler_name", "scheduler")] == [
        3.0,
        "dpmpp_2m",
        "karras",
    ]
    assert (graph["16"]["inputs"]["text"], graph["40"]["inputs"]["text"]) == ("a cat", "dogs")
    assert (made["sampler"], made["scheduler"]) == ("dpmpp_2m", "karras")


def test_a_prompt_that_looks_like_a_placeholder_is_sent_as_it_is(
    server: ComfyUI, make: Make
) -> None:
    rendered(make(), prompt="${seed}")
    assert server.submits[0]["prompt"]["6"]["inputs"]["text"] == "${seed}"


def test_what_the_workflow_has_no_place_for_is_reported(server: ComfyUI, make: Make) -> None:
    (made,) = rendered(make(), negative_prompt="dogs", options={"lora": "cats", "prompt": "x"})
    dropped = {one["field"]: one["asked"] for one in made["fidelity"]["dropped"]}
    assert dropped == {"negative_prompt": "dogs", "options.lora": "cats", "options.prompt": "x"}
    assert server.submits[0]["prompt"]["6"]["inputs"]["text"] == "a cat"


@pytest.mark.parametrize("seed", [0, 2**32, 2**64 - 1])
def test_every_seed_arrives_intact(server: ComfyUI, make: Make, seed: int) -> None:
    (made,) = rendered(make(), seed=seed)
    assert server.submits[0]["prompt"]["31"]["inputs"]["seed"] == seed
    assert made["seed"] == made["backend_meta"]["seed_used"] == seed
    assert Path(made["file"]).name == f"a-cat-{seed}.png"


def test_a_size_that_cannot_be_made_is_rounded_and_reported(server: ComfyUI, make: Make) -> None:
    (made,) = rendered(make(), width=1000, height=1000)
    why = "workflow flux1-schnell makes multiples of 16"
    assert made["fidelity"] == {
        "approximated": [
            {"field": "width", "asked": 1000, "got": 992, "why": why},
            {"field": "height", "asked": 1000, "got": 992, "why": why},
        ]
    }
    with Image.open(made["file"]) as picture:
        assert picture.size == (made["width"], made["height"]) == (992, 992)


@pytest.mark.parametrize(("said", "got"), [(16, 16), (17, 16), (16383, 16384), (16384, 16384)])
def test_sizes_stay_within_the_limits_of_the_server(backend: Open, said: int, got: int) -> None:
    plan = backend().plan(Ask(asked(width=said, height=said), "a cat", None, handle()))
    assert (plan.resolved["width"], plan.resolved["height"]) == (got, got)
    assert ("approximated" in plan.fidelity) == (said != got)


def test_the_smallest_picture_can_be_made(server: ComfyUI, make: Make) -> None:
    (made,) = rendered(make(), width=16, height=16)
    assert (made["width"], made["height"]) == (16, 16)


def test_a_batch_is_several_records_of_one_submit_and_one_seed(server: ComfyUI, make: Make) -> None:
    made = rendered(make(), options={"batch_size": 3})
    assert [one["id"] for one in made] == [ID, f"{ID}.2", f"{ID}.3"]
    assert {one["submit"] for one in made} == {handle()}
    assert {one["seed"] for one in made} == {7}
    assert [one["cost_usd"] for one in made] == [0, 0, 0]
    assert len({one["sha256"] for one in made}) == len({one["file"] for one in made}) == 3
    assert [Path(one["file"]).read_bytes() for one in made] == list(server.files.values())
    assert submitted(server) == [handle()]


def test_a_picture_without_its_text_is_taken(server: ComfyUI, make: Make) -> None:
    server.spoil = without_text
    (made,) = rendered(make())
    (data,) = server.files.values()
    assert Path(made["file"]).read_bytes() == without_text(data) != data


# -- faults of the server ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble", [Answer(500, b"500 Internal Server Error", TEXT), Answer(503, b'{"error": "busy"}')]
)
def test_a_submit_is_tried_once_more_after_a_server_error(
    server: ComfyUI, make: Make, trouble: Answer
) -> None:
    server.fail("POST /prompt", trouble)
    (made,) = rendered(make())
    assert len(server.submits) == 1
    assert asks(server, "POST /prompt") == 2
    assert made["attempts"] == 2


def test_a_submit_is_given_up_after_two_server_errors(server: ComfyUI, make: Make) -> None:
    server.fail("POST /prompt", times=2)
    fault = failure(make())
    assert (fault.code, fault.retry, fault.exit_status) == ("server_fault", "safe", 75)
    assert "Server got itself in trouble" in fault.message
    assert asks(server, "POST /prompt") == 2
    assert server.submits == []


@pytest.mark.parametrize("status", [302, 400, 403, 413])
def test_a_refused_submit_is_not_repeated(server: ComfyUI, make: Make, status: int) -> None:
    server.fail("POST /prompt", Answer(status, b"not here", TEXT))
    fault = failure(make())
    assert (fault.code, fault.exit_status) == ("rejected", 1)
    assert f"answered {status}: not here" in fault.message
    assert asks(server, "POST /prompt") == 1


def test_a_throttled_submit_is_left_to_the_caller(server: ComfyUI, make: Make) -> None:
    server.fail("POST /prompt", Answer(429, b"slow down", TEXT))
    fault = failure(make())
    assert (fault.code, fault.retry, fault.exit_status) == ("rate_limited", "after", 75)
    assert asks(server, "POST /prompt") == 1


@pytest.mark.parametrize("seconds", [0.0, 0.6])
@pytest.mark.parametrize("answer", [None, Answer(502, b"bad gateway", TEXT), PAGE])
def test_a_lost_answer_is_looked_for_and_found(
    server: ComfyUI, make: Make, answer: Answer | None, seconds: float
) -> None:
    server.seconds = seconds
    server.fail("POST /prompt", answer, after=True)
    (made,) = rendered(make())
    assert submitted(server) == [handle()]
    assert asks(server, "POST /prompt") == 1
    assert made["submit"] == handle()


def test_a_request_that_never_arrived_is_sent_again(server: ComfyUI, make: Make) -> None:
    server.fail("POST /prompt", None)
    (made,) = rendered(make())
    assert submitted(server) == [handle(2)]
    assert (made["submit"], made["attempts"]) == (handle(2), 2)


def test_a_line_whose_answer_was_lost_finds_its_prompt_when_run_again(
    server: ComfyUI, make: Make
) -> None:
    server.fail("POST /prompt", None, after=True)
    server.fail("GET /queue", times=1000)
    fault = failure(make(patience_s=0.05))
    assert fault.exit_status == 75
    server.mend()
    line = {**(fault.record or {}), "error": fault.as_record(TOOL)}
    (made,) = list(make().render(line))
    assert submitted(server) == [handle()]
    assert "error" not in made


def test_a_page_instead_of_json_is_a_fault_of_the_server(server: ComfyUI, make: Make) -> None:
    server.fail("POST /prompt", PAGE, times=2)
    fault = failure(make())
    assert (fault.code, fault.exit_status) == ("server_fault", 75)
    assert "JSON" in fault.message
    assert "<html>please log in</html>" in fault.message
    assert server.submits == []


@pytest.mark.parametrize("request_line", ["GET /history", "GET /queue"])
@pytest.mark.parametrize("body", [b"[]", b'"busy"'])
def test_json_of_another_shape_is_a_fault_of_the_server(
    server: ComfyUI, backend: Open, request_line: str, body: bytes
) -> None:
    server.fail(request_line, Answer(200, body, "application/json"), times=1000)
    opened = backend(patience_s=0.05)
    with pytest.raises(ImagenError) as caught:
        opened.find(opened.plan(Ask(asked(), "a cat", None, handle())), NOT_OWNED)
    assert caught.value.exit_status == 75


@pytest.mark.parametrize("request_line", ["GET /history", "GET /view"])
@pytest.mark.parametrize("answer", [None, Answer(502, b"bad gateway", TEXT)])
def test_a_read_that_fails_is_repeated(
    server: ComfyUI, make: Make, request_line: str, answer: Answer | None
) -> None:
    server.fail(request_line, answer)
    (made,) = rendered(make())
    assert submitted(server) == [handle()]
    assert made["attempts"] == 1


def test_a_server_that_tells_no_memory_is_no_fault(server: ComfyUI, make: Make) -> None:
    server.fail("GET /system_stats")
    (made,) = rendered(make())
    assert "vram_used_mib" not in made["backend_meta"]


def test_a_failed_render_says_which_node_and_why(server: ComfyUI, make: Make) -> None:
    server.error = "CUDA out of memory.\n  Tried to allocate 2.00 GiB\n"
    fault = failure(make())
    said = "node 31 (KSampler): CUDA out of memory. Tried to allocate 2.00 GiB"
    assert fault.message == f"ComfyUI failed in {said}"
    assert (fault.code, fault.retry, fault.exit_status) == ("execution_error", "never", 1)
    assert submitted(server) == [handle()]


def test_a_render_that_somebody_interrupts_may_be_run_again(
    server: ComfyUI, make: Make, once_polled: Later
) -> None:
    server.held = True
    body = json.dumps({"prompt_id": handle()}).encode()
    once_polled(lambda: server.answer("POST", "/interrupt", body))
    fault = failure(make())
    assert isinstance(fault, Interrupted)
    assert fault.stopped is None
    assert (fault.code, fault.exit_status) == ("interrupted", 75)
    assert "interrupted" in fault.message
    assert submitted(server) == [handle()]


@pytest.mark.parametrize("error", [None, "CUDA out of memory"])
def test_the_forks_history_is_understood(server: ComfyUI, make: Make, error: str | None) -> None:
    server.fork, server.error = True, error
    if error is None:
        (made,) = rendered(make())
        assert "queue_ms" not in made
    else:
        fault = failure(make())
        assert (fault.code, fault.message) == ("execution_error", f"ComfyUI failed: {error}")


def test_the_forks_interrupt_is_understood(server: ComfyUI, make: Make, once_polled: Later) -> None:
    server.fork = server.held = True
    body = json.dumps({"prompt_id": handle()}).encode()
    once_polled(lambda: server.answer("POST", "/interrupt", body))
    assert failure(make()).code == "interrupted"


# -- what the server does not have ---------------------------------------------------------------


def test_a_missing_model_is_named_with_where_to_get_it(server: ComfyUI, make: Make) -> None:
    server.uninstall("ae.safetensors")
    server.uninstall("clip_l.safetensors")
    fault = failure(make())
    assert (fault.code, fault.retry, fault.exit_status) == ("missing_model", "never", 1)
    assert "ae.safetensors is not installed" in fault.message
    assert "clip_l.safetensors is not installed" in fault.message
    assert fault.hint == "where ComfyUI runs: imagen-models fetch flux1-schnell"
    assert asks(server, "POST /prompt") == 1


def test_a_missing_model_of_the_instances_own_has_no_source_but_a_folder(
    server: ComfyUI, make: Make
) -> None:
    fault = failure(make(unet="mine.safetensors"))
    assert fault.code == "missing_model"
    assert fault.hint == (
        "no source is known for mine.safetensors, which goes into models/diffusion_models"
    )


def test_a_missing_model_that_a_request_names_points_to_the_page(
    server: ComfyUI, make: Make
) -> None:
    fault = failure(make(), options={"unet": "mine.safetensors"})
    assert fault.code == "missing_model"
    assert "docs/guide/comfyui.md" in str(fault.hint)


def with_a_sound_output(folder: Path) -> str:
    """Write a workflow of two outputs, of which one needs no model."""
    image = {"width": 64, "height": 64, "batch_size": 1, "color": 0}
    save = {"images": ["90", 0], "filename_prefix": "x"}
    nodes = {
        "90": {"class_type": "EmptyImage", "inputs": image},
        "91": {"class_type": "SaveImage", "inputs": save},
    }
    return a_workflow(folder, nodes)


@pytest.mark.parametrize("others", [0, 1])
def test_a_model_that_only_some_outputs_miss_stops_them_all(
    server: ComfyUI, make: Make, tmp_path: Path, others: int
) -> None:
    server.held = True
    running = [strangers_prompt(server) for _ in range(others)]
    server.uninstall("ae.safetensors")
    fault = failure(make(workflow=with_a_sound_output(tmp_path)))
    assert fault.code == "missing_model"
    assert "ae.safetensors is not installed" in fault.message
    assert "imagen-models fetch" in str(fault.hint)
    assert server.queue() == (running[0] if running else None, [])
    assert submitted(server) == [handle()]


def test_a_missing_model_is_told_even_when_the_rest_cannot_be_stopped(
    server: ComfyUI, make: Make, tmp_path: Path
) -> None:
    server.uninstall("ae.safetensors")
    server.fail("POST /queue")
    assert failure(make(workflow=with_a_sound_output(tmp_path))).code == "missing_model"


WINDOWS_FILE = "SDXL\\sd_xl_base.safetensors"
WINDOWS_FLOW = Path(__file__).parents[2] / "data" / "comfyui" / "file_in_a_windows_folder.json"


def offer(server: ComfyUI, file: str, more: int) -> None:
    """Let the server list a checkpoint beside `more` others."""
    spec = server.classes["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"]
    spec[0] = [*(f"{number}.safetensors" for number in range(more)), file]


@pytest.mark.parametrize("more", [3, 40], ids=["a list in the refusal", "a list left out of it"])
@pytest.mark.parametrize("is_windows", [False, True])
def test_a_model_whose_folder_is_written_with_the_other_slash_is_there(
    server: ComfyUI, make: Make, more: int, is_windows: bool
) -> None:
    slashed = WINDOWS_FILE.replace("\\", "/")
    listed, written = (WINDOWS_FILE, slashed) if is_windows else (slashed, WINDOWS_FILE)
    offer(server, listed, more)
    fault = failure(make(workflow=str(WINDOWS_FLOW), checkpoint=written))
    assert (fault.code, fault.scope, fault.exit_status) == ("workflow_refused", "setup", 1)
    assert f"{written} is there as {listed}: write it so" in fault.message
    assert "not installed" not in fault.message
    assert "fetch" not in str(fault.hint)
    assert rendered(make(workflow=str(WINDOWS_FLOW), checkpoint=listed))


def test_a_file_that_a_long_list_does_not_have_is_not_installed(
    server: ComfyUI, make: Make
) -> None:
    offer(server, "other.safetensors", 40)
    fault = failure(make(workflow=str(WINDOWS_FLOW)))
    assert (fault.code, fault.scope) == ("missing_model", "setup")
    assert f"{WINDOWS_FILE} is not installed" in fault.message
    assert asks(server, "GET /object_info/CheckpointLoaderSimple") == 1


@pytest.mark.parametrize(
    "answer", [Answer(500, b"no"), PAGE, Answer(200, b"[]"), Answer(200, b"{}")]
)
def test_a_refusal_is_told_though_the_list_of_names_cannot_be_had(
    server: ComfyUI, make: Make, answer: Answer
) -> None:
    offer(server, "other.safetensors", 40)
    server.fail("GET /object_info", answer, times=5)
    assert failure(make(workflow=str(WINDOWS_FLOW))).code == "missing_model"


def test_a_node_that_the_server_lacks_is_named(server: ComfyUI, make: Make) -> None:
    del server.classes["Flux2Scheduler"]
    fault = failure(make(workflow="flux2-klein"))
    assert (fault.code, fault.exit_status) == ("workflow_refused", 1)
    assert "node Flux2Scheduler does not exist" in fault.message


def test_a_value_that_the_server_refuses_is_named(server: ComfyUI, make: Make) -> None:
    fault = failure(make(), sampler="euler_x")
    assert (fault.code, fault.exit_status) == ("workflow_refused", 1)
    assert "node 31 (KSampler): Value not in list: sampler_name: 'euler_x'" in fault.message


# -- pictures ------------------------------------------------------------------------------------


def test_a_picture_that_is_gone_is_made_again_once(server: ComfyUI, make: Make) -> None:
    server.fail("GET /view", Answer(404))
    (made,) = rendered(make())
    assert submitted(server) == [handle(1), handle(2)]
    assert (made["submit"], made["attempts"]) == (handle(2), 2)


def test_a_picture_that_is_gone_twice_is_a_failure(server: ComfyUI, make: Make) -> None:
    server.fail("GET /view", Answer(404), times=2)
    fault = failure(make())
    assert (fault.code, fault.exit_status) == ("render_lost", 75)
    assert "gone from the server" in fault.message
    assert submitted(server) == [handle(1), handle(2)]


def test_a_picture_that_is_gone_here_and_there_is_made_again(server: ComfyUI, make: Make) -> None:
    (first,) = rendered(make())
    Path(first["file"]).unlink()
    server.files.clear()
    (made,) = rendered(make())
    assert submitted(server) == [handle(1), handle(2)]
    assert made["submit"] == handle(2)


def test_a_prompt_that_the_server_has_made_already_is_not_submitted_again(
    server: ComfyUI, make: Make
) -> None:
    (first,) = rendered(make())
    Path(first["file"]).unlink()
    (again,) = rendered(make())
    assert submitted(server) == [handle()]
    assert again["sha256"] == first["sha256"]
    assert again["file"] == first["file"]


def test_an_id_that_made_another_picture_is_refused_before_anything_is_sent(
    server: ComfyUI, make: Make
) -> None:
    rendered(make())
    fault = failure(make(), prompt="a dog", seed=8)
    assert (fault.code, fault.exit_status) == ("id_taken", 2)
    assert submitted(server) == [handle()]


def test_an_id_that_failed_on_the_server_may_be_tried_again(server: ComfyUI, make: Make) -> None:
    server.error = "out of memory"
    failure(make())
    server.error = None
    (made,) = rendered(make())
    assert made["submit"] == handle(2)
    assert submitted(server) == [handle(), handle(2)]


def submit_and_wait(opened: Backend, prompt: str = "a cat", seed: int = 7) -> None:
    """Submit under the one id, as a run does that knows of no other; wait until it has ended."""
    plan = opened.plan(Ask(asked(prompt=prompt, seed=seed), prompt, None, handle()))
    assert opened.submit(plan) == handle()
    opened.collect(handle(), Wait(time.monotonic() + 30, lambda _: None), plan)


def test_a_handle_in_the_servers_history_is_taken_up_without_a_second_prompt(
    server: ComfyUI, backend: Open
) -> None:
    submit_and_wait(backend())
    submit_and_wait(backend())
    assert submitted(server) == [handle()]


@pytest.mark.parametrize("more", [{"prompt": "a dog"}, {"seed": 8}])
def test_a_handle_of_another_picture_in_the_servers_history_is_refused(
    server: ComfyUI, backend: Open, more: dict[str, Any]
) -> None:
    submit_and_wait(backend())
    with pytest.raises(IdTaken, match="has made another picture on the server"):
        submit_and_wait(backend(), **more)
    assert submitted(server) == [handle()]


def test_a_handle_that_failed_is_taken_out_of_the_history_and_submitted_again(
    server: ComfyUI, backend: Open
) -> None:
    server.error = "out of memory"
    with pytest.raises(RenderFailed, match="out of memory"):
        submit_and_wait(backend())
    opened = backend()
    plan = opened.plan(Ask(asked(), "a cat", None, handle()))
    assert opened.find(plan, NOT_OWNED) is Sought.ABSENT
    server.error = None
    submit_and_wait(backend())
    assert submitted(server) == [handle(), handle()]
    assert asks(server, "POST /history") == 1
    assert opened.find(plan, NOT_OWNED) == handle()


@pytest.mark.parametrize("strange", ["", "x", "../history", handle().replace("-", "")])
def test_a_handle_that_is_none_of_ours_is_not_looked_for(
    server: ComfyUI, backend: Open, strange: str
) -> None:
    with pytest.raises(Refused, match="no prompt_id of ours"):
        backend().collect(strange, Wait(time.monotonic() + 30, lambda _: None), None)
    assert server.requests == []


@pytest.mark.parametrize("outputs", [{}, {"9": {"images": []}}, {"9": {"text": ["done"]}}])
def test_a_prompt_that_ends_without_an_image_of_ours_is_not_made_again(
    server: ComfyUI, backend: Open, outputs: dict[str, Any]
) -> None:
    history = {handle(): {"status": {"status_str": "success"}, "outputs": outputs}}
    server.fail("GET /history", Answer(200, json.dumps(history).encode(), "application/json"))
    with pytest.raises(BadImage, match="without an image of ours") as caught:
        backend().collect(handle(), Wait(time.monotonic() + 30, lambda _: None), None)
    assert caught.value.retry == "never"


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt_id": 5, "node_errors": ["x"]}',
        b'{"node_errors": {"1": {"errors": 5}}}',
        b'{"prompt_id": NaN}',
        b"{}",
        b"[]",
    ],
)
def test_an_answer_of_a_strange_shape_is_a_fault_of_the_server(
    server: ComfyUI, make: Make, body: bytes
) -> None:
    server.fail("POST /prompt", Answer(200, body, "application/json"), times=2)
    assert failure(make()).code in ("server_fault", "render_failed", "workflow_refused")


@pytest.mark.parametrize(
    "queue", [b'{"queue_running": 5}', b'{"queue_pending": [[1, "a"], ["x", "b"]]}', b'{"a": NaN}']
)
def test_a_queue_of_a_strange_shape_is_a_fault_of_the_server(
    server: ComfyUI, backend: Open, queue: bytes
) -> None:
    server.fail("GET /queue", Answer(200, queue, "application/json"), times=99)
    opened = backend()
    plan = opened.plan(Ask(asked(), "a cat", None, handle()))
    with pytest.raises(ServerFault):
        opened.find(plan, NOT_OWNED)


def test_a_workflow_without_a_place_for_seed_and_prompt_says_so(
    server: ComfyUI, make: Make, tmp_path: Path
) -> None:
    graph = json.loads((template.BUNDLED / "flux1-schnell.json").read_text())
    graph["6"]["inputs"]["text"], graph["31"]["inputs"]["seed"] = "always this", 42
    (tmp_path / "fixed.json").write_text(json.dumps(graph))
    (made,) = rendered(make(workflow="./fixed.json"))
    assert {one["field"] for one in made["fidelity"]["dropped"]} == {"prompt", "seed"}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda _: b"<html><body>504 Gateway Time-out</body></html>", "no PNG, JPEG or WebP"),
        (lambda data: data[: len(data) // 2], "without its end"),
        (lambda data: data[:200] + bytes(100) + data[300:], "broken png"),
        (lambda _: b"", "no PNG, JPEG or WebP"),
    ],
)
def test_what_is_no_whole_picture_is_refused_and_not_kept(
    server: ComfyUI, make: Make, tmp_path: Path, spoil: Callable[[bytes], bytes], says: str
) -> None:
    server.spoil = spoil
    fault = failure(make())
    assert (fault.code, fault.exit_status) == ("bad_image", 75)
    assert says in fault.message
    assert images_in(tmp_path / "out") == [".a-cat-7.reserved"], "it can be fetched again"


def test_another_prompts_picture_under_our_name_is_refused(
    server: ComfyUI, make: Make, tmp_path: Path
) -> None:
    strangers_prompt(server)
    assert server.queue() == (None, [])
    (foreign,) = server.files.values()
    server.spoil = lambda _: foreign
    fault = failure(make())
    assert fault.code == "bad_image"
    assert "another prompt's picture" in fault.message
    assert images_in(tmp_path / "out") == [".a-cat-7.reserved"], "it can be fetched again"


def test_fewer_pictures_than_asked_are_kept_and_told(
    server: ComfyUI, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = server._saved

    def fewer(*these: Any) -> dict[str, Any]:
        return {"images": saved(*these)["images"][:2]}

    monkeypatch.setattr(server, "_saved", fewer)
    made = []
    with pytest.raises(ImagenError) as caught:
        for one in make().render(asked(options={"batch_size": 3})):
            made.append(one)
    assert [one["id"] for one in made] == [ID, f"{ID}.2"]
    assert caught.value.code == "too_few_images"
    assert "2 of 3" in caught.value.message


# -- how many images come --------------------------------------------------------------------------

CASE = Path(__file__).parents[2] / "data" / "comfyui" / "batch_size_of_a_tool.json"


def with_workflow(tmp_path: Path, graph: Any) -> str:
    (tmp_path / "case.json").write_text(json.dumps(graph))
    return "./case.json"


def somebodys(server: ComfyUI, batch_size: int) -> dict[str, Any]:
    """Give a graph whose images pass through a node that only this server knows."""
    spec = {"input": {"required": {"image": ["IMAGE", {}]}}, "output_node": False}
    server.classes["SomebodysNode"] = spec
    image = {"width": 64, "height": 64, "batch_size": batch_size, "color": 0}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "SomebodysNode", "inputs": {"image": ["1", 0]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    }


def test_the_batch_of_a_node_that_no_output_uses_is_not_expected(
    server: ComfyUI, make: Make, tmp_path: Path
) -> None:
    graph = json.loads(CASE.read_text())
    (made,) = rendered(make(workflow=with_workflow(tmp_path, graph)))
    assert Path(made["file"]).is_file()


def test_one_image_of_such_a_graph_may_go_to_an_output(
    server: ComfyUI, make: Make, tmp_path: Path
) -> None:
    flow = with_workflow(tmp_path, json.loads(CASE.read_text()))
    (made,) = rendered(make(told={"output": str(tmp_path / "one.png")}, workflow=flow))
    assert made["file"] == str(tmp_path / "one.png")


def test_several_planned_images_are_refused_with_an_output_before_anything_is_sent(
    server: ComfyUI, make: Make, tmp_path: Path
) -> None:
    told = {"output": str(tmp_path / "one.png")}
    fault = failure(make(told=told), options={"batch_size": 3})
    assert isinstance(fault, Refused)
    assert "makes 3" in fault.message
    assert server.requests == []


@pytest.mark.parametrize("count", [1, 3])
def test_where_the_number_cannot_be_known_any_number_is_right(
    server: ComfyUI, make: Make, tmp_path: Path, count: int
) -> None:
    flow = with_workflow(tmp_path, somebodys(server, count))
    made = rendered(make(told={"output": str(tmp_path / "one.png")}, workflow=flow))
    assert [one["id"] for one in made] == [ID, *(f"{ID}.{n}" for n in range(2, count + 1))]
    assert made[0]["file"] == str(tmp_path / "one.png")
    assert all(str(tmp_path / "out") in one["file"] for one in made[1:])


def test_all_images_of_an_unknown_number_are_collected_after_a_kill_behind_the_first(
    server: ComfyUI, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = with_workflow(tmp_path, somebodys(server, 3))
    killed = make(workflow=flow)
    monkeypatch.setattr(killed._journal, "done", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        rendered(killed)
    made = rendered(make(workflow=flow))
    assert [one["id"] for one in made] == [ID, f"{ID}.2", f"{ID}.3"]
    assert len(submitted(server)) == 1


def test_a_plan_is_journaled_as_an_older_release_reads_it(
    server: ComfyUI, make: Make, tmp_path: Path
) -> None:
    rendered(make(workflow=with_workflow(tmp_path, somebodys(server, 1))))
    with sqlite3.connect(tmp_path / "state" / "ledger.sqlite3") as db:
        ((plan,),) = db.execute("select plan from submits").fetchall()
    keys = {"payload", "resolved", "cost_usd", "images", "handle", "approximated", "dropped"}
    assert json.loads(plan).keys() == keys
    assert json.loads(plan)["images"] == 0


def test_no_more_than_a_hundred_images_are_fetched_where_one_was_asked_for(
    server: ComfyUI, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = server._saved

    def many(*these: Any) -> dict[str, Any]:
        (place,) = saved(*these)["images"]
        data = server.files[place["subfolder"], place["filename"]]
        places = [
            {**place, "filename": place["filename"].replace("00001", f"{number:05}")}
            for number in range(1, 401)
        ]
        server.files |= {(one["subfolder"], one["filename"]): data for one in places}
        return {"images": places}

    monkeypatch.setattr(server, "_saved", many)
    made = rendered(make())
    assert (len(made), asks(server, "GET /view")) == (100, 100)
    assert made[0]["backend_meta"]["not_fetched"] == 300


# -- what other nodes say --------------------------------------------------------------------------

FOREIGN = [
    {"7": {"text": ["a caption"], "images": "none"}},
    {"7": None},
    {"7": [1, 2]},
    {"7": {"images": None}, "8": {"images": [None, "x", 5, {"filename": None}]}},
    {"7": {"value": float("nan"), "images": {"0": float("inf")}}},
]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_another_node_puts_out_keeps_back_no_image(
    server: ComfyUI, make: Make, foreign: Any
) -> None:
    server.foreign = foreign
    assert len(rendered(make())) == 1


@pytest.mark.parametrize("foreign", FOREIGN)
def test_it_keeps_back_no_image_that_is_found_when_the_answer_was_lost(
    server: ComfyUI, make: Make, foreign: Any
) -> None:
    server.foreign = foreign
    server.fail("POST /prompt", None, after=True)
    assert len(rendered(make())) == 1
    assert len(submitted(server)) == 1


def test_numbers_that_json_does_not_have_are_no_fault_of_a_server(
    server: ComfyUI, make: Make, backend: Open
) -> None:
    server.stats["answer"]["devices"][0]["vram_free"] = float("nan")
    server.classes["KSampler"]["input"]["required"]["cfg"][1]["max"] = float("inf")
    assert str(backend().status(ask=True)) == "ok"
    (made,) = rendered(make())
    assert "vram_used_mib" not in made["backend_meta"]


# -- a server of before mid-2025 -------------------------------------------------------------------


@pytest.mark.parametrize("running", [True, False])
def test_an_old_server_is_named_and_left_without_a_prompt_of_ours(
    server: ComfyUI, make: Make, running: bool
) -> None:
    server.old = server.held = True
    theirs = None if running else strangers_prompt(server)
    renderer = make()
    fault = failure(renderer)
    assert (fault.code, fault.retry, fault.billed) == ("server_too_old", "never", "no")
    assert "it was cancelled" in fault.message
    assert "0.3.45" in str(fault.hint)
    assert server.queue() == (theirs, [])
    assert len(submitted(server)) == 1


def test_nothing_more_is_sent_to_an_old_server_in_this_run(server: ComfyUI, make: Make) -> None:
    server.old = True
    renderer = make()
    failure(renderer)
    before = len(server.requests)
    for number in range(3):
        assert failure(renderer, id=f"another-{number}").code == "server_too_old"
    assert len(server.requests) == before


def test_an_old_server_whose_prompt_cannot_be_cancelled_is_told_so(
    server: ComfyUI, make: Make
) -> None:
    server.old = server.held = True
    server.fail("POST /queue", times=9)
    assert "it may go on, it could not be cancelled" in failure(make()).message


def test_the_same_line_is_rendered_when_the_server_is_updated(server: ComfyUI, make: Make) -> None:
    server.old = True
    failure(make())
    server.old = False
    (made,) = rendered(make())
    assert (made["submit"], made["attempts"]) == (handle(), 1)


def test_the_status_of_an_old_server_says_so_and_queues_nothing(
    server: ComfyUI, backend: Open
) -> None:
    server.old = True
    status = backend().status(ask=True)
    assert (status.state, "ComfyUI 0.3.44" in status.detail) == ("too old", True)
    assert "0.3.45" in status.detail
    assert asks(server, "POST") == 0


# -- an absent server ----------------------------------------------------------------------------


def test_an_unreachable_server_comes_with_the_boot_hint(make: Make, closed_url: str) -> None:
    fault = failure(make(url=closed_url, boot_hint="wake the-box", patience_s=0.05))
    assert (fault.code, fault.retry, fault.exit_status) == ("unreachable", "safe", 75)
    assert f"cannot reach the ComfyUI at {closed_url}: connection refused" in fault.message
    assert fault.hint == "wake the-box"


def test_an_unreachable_server_is_told_at_once(make: Make, closed_url: str) -> None:
    began = time.monotonic()
    assert failure(make(url=closed_url, patience_s=20)).code == "unreachable"
    assert time.monotonic() - began < 10


def test_a_server_that_goes_away_during_the_poll_is_waited_for(
    server: ComfyUI, make: Make, once_polled: Later
) -> None:
    server.held = True

    def power_cycle() -> None:
        server.restart(down_s=0.2)
        server.release()

    once_polled(power_cycle)
    (made,) = rendered(make(patience_s=5))
    assert submitted(server) == [handle(1), handle(2)]
    assert (made["submit"], made["attempts"]) == (handle(2), 2)


def test_a_server_that_stays_away_during_the_poll_is_unreachable(
    server: ComfyUI, make: Make, once_polled: Later
) -> None:
    server.held = True
    once_polled(server.close)
    fault = failure(make(patience_s=0.2, boot_hint="wake the-box"))
    assert (fault.code, fault.hint, fault.exit_status) == ("unreachable", "wake the-box", 75)
    assert submitted(server) == [handle()]


def test_a_prompt_that_vanishes_twice_is_lost(
    server: ComfyUI, make: Make, once_polled: Later, until: Callable[..., Any]
) -> None:
    server.held = True

    def forget_each() -> None:
        server.forget()
        until(lambda: len(server.submits) == 2)
        server.forget()

    once_polled(forget_each)
    fault = failure(make())
    assert (fault.code, fault.exit_status) == ("render_lost", 75)
    assert submitted(server) == [handle(1), handle(2)]


# -- waiting, stopping, coming back --------------------------------------------------------------


def test_an_interrupt_takes_only_our_waiting_prompt_out_of_the_queue(
    server: ComfyUI, make: Make
) -> None:
    server.held = True
    theirs = strangers_prompt(server)
    heard: list[str] = []
    fault = failure(make(tell=stopping(130, heard)))
    assert heard == ["number 1 in the queue"]
    assert isinstance(fault, Interrupted)
    assert isinstance(fault.stopped, Stopped)
    assert fault.stopped.status == 130
    assert server.queue() == (theirs, [])
    assert server.interrupts == []
    assert submitted(server) == [handle()]


def test_an_interrupt_stops_our_running_prompt_and_no_other(
    server: ComfyUI, make: Make, once_polled: Later
) -> None:
    server.held = True
    theirs: list[str] = []
    once_polled(lambda: theirs.append(strangers_prompt(server)))
    fault = failure(make(tell=stopping(130)))
    assert fault.code == "interrupted"
    assert server.ending(handle()) == "execution_interrupted"
    assert server.interrupts == [handle()]
    assert server.queue() == (theirs[0], [])


def test_a_termination_hands_out_the_pending_line_and_leaves_the_prompt(
    server: ComfyUI, make: Make
) -> None:
    server.held = True
    made = []
    with pytest.raises(Stopped) as caught:
        for one in make(tell=stopping(143)).render(asked()):
            made.append(one)
    assert caught.value.status == 143
    (line,) = made
    assert line["pending"]["handle"] == handle()
    assert "error" not in line
    assert server.queue() == (handle(), [])
    assert server.interrupts == []


def test_a_render_that_takes_too_long_is_cancelled(server: ComfyUI, make: Make) -> None:
    server.held = True
    fault = failure(make(told={"timeout_s": 0.05}))
    assert (fault.code, fault.exit_status) == ("timeout", 75)
    assert server.queue() == (None, [])
    assert server.ending(handle()) == "execution_interrupted"


def test_a_pending_render_is_collected_by_another_process(server: ComfyUI, make: Make) -> None:
    server.held = True
    (line,) = rendered(make(told={"wait_s": 0}))
    assert line["pending"]["backend"] == "comfy"
    assert line["pending"]["handle"] == handle()
    assert line["pending"]["since"] == line["started_at"]
    assert "file" not in line

    (still,) = list(make(told={"wait_s": 0}).collect(line))
    assert still["pending"] == line["pending"]

    server.release()
    (made,) = list(make().collect(still))
    assert submitted(server) == [handle()]
    assert (made["id"], made["submit"], made["seed"]) == (ID, handle(), 7)
    assert "pending" not in made
    assert Path(made["file"]).read_bytes() == next(iter(server.files.values()))


def test_a_pending_render_is_fetched_even_when_its_workflow_has_changed(
    server: ComfyUI, make: Make, tmp_path: Path
) -> None:
    server.held = True
    (line,) = rendered(make(told={"wait_s": 0}))
    server.release()
    loader = {"class_type": "VAELoader", "inputs": {"vae_name": "${adapter}"}}
    (made,) = list(make(workflow=a_workflow(tmp_path, {"39": loader})).collect(line))
    assert (made["submit"], made["model"]) == (handle(), "flux1-schnell.safetensors")
    assert submitted(server) == [handle()]


def test_a_pending_render_that_the_server_lost_is_made_again(server: ComfyUI, make: Make) -> None:
    server.held = True
    (line,) = rendered(make(told={"wait_s": 0}))
    server.restart()
    server.release()
    (made,) = list(make().collect(line))
    assert submitted(server) == [handle(1), handle(2)]
    assert made["submit"] == handle(2)


def test_a_finished_prompt_is_collected_again_without_a_submit(
    server: ComfyUI, backend: Open
) -> None:
    opened = backend()
    plan = opened.plan(Ask(asked(), "a cat", None, handle()))
    assert opened.find(plan, NOT_OWNED) is Sought.ABSENT
    assert opened.submit(plan) == handle() == opened.find(plan, NOT_OWNED)
    wait = Wait(time.monotonic() + 5, lambda _text: None)
    one, other = (opened.collect(handle(), wait, plan) for _ in range(2))
    assert one is not None
    assert other is not None
    assert one.images == other.images
    assert submitted(server) == [handle()]


# -- settings ------------------------------------------------------------------------------------


def test_headers_from_the_environment_go_with_every_request(
    server: ComfyUI, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFY_TOKEN", "Bearer s3cret")
    rendered(make(headers_env={"Authorization": "COMFY_TOKEN"}))
    assert len(server.headers) >= 3
    assert {one.get("Authorization") for one in server.headers} == {"Bearer s3cret"}


@pytest.mark.parametrize(
    "answer",
    [
        None,
        Answer(500, b"trouble", TEXT),
        Answer(401, b"who are you?", TEXT),
        Answer(401, b"no such token: Bearer s3cret", TEXT),
        Answer(200, b"<html>token=Bearer s3cret</html>", "text/html"),
    ],
)
def test_headers_from_the_environment_are_never_printed(
    server: ComfyUI, make: Make, monkeypatch: pytest.MonkeyPatch, answer: Answer | None
) -> None:
    monkeypatch.setenv("COMFY_TOKEN", "Bearer s3cret")
    server.fail("POST /prompt", answer, times=2)
    fault = failure(make(headers_env={"Authorization": "COMFY_TOKEN"}))
    assert "s3cret" not in json.dumps([fault.as_record(TOOL), fault.as_line(), fault.record])


def test_a_header_that_cannot_be_sent_is_refused_without_being_printed(
    server: ComfyUI, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFY_TOKEN", "s3cret\nX-More: yes")
    fault = failure(make(headers_env={"Authorization": "COMFY_TOKEN"}))
    assert isinstance(fault, Refused)
    assert "s3cret" not in json.dumps([fault.as_record(TOOL), fault.record])
    assert server.requests == []


def test_a_header_whose_variable_is_not_set_is_refused(server: ComfyUI, make: Make) -> None:
    fault = failure(make(headers_env={"Authorization": "COMFY_TOKEN_NOT_SET"}))
    assert isinstance(fault, Refused)
    assert "$COMFY_TOKEN_NOT_SET" in fault.message
    assert server.requests == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"nodes": [], "links": [], "version": 0.4}, "UI-format export"),
        ({"1": {"inputs": {}}}, "node 1 has no class_type"),
        ({"1": {"class_type": "SaveImage"}}, "node 1 has no inputs"),
        ({"1": {"class_type": "KSampler", "inputs": {}}}, "no SaveImage"),
        ({}, "no SaveImage"),
        ([], "not an object"),
    ],
)
def test_what_is_no_workflow_is_said_before_anything_is_sent(
    server: ComfyUI, make: Make, tmp_path: Path, content: Any, says: str
) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(content))
    fault = failure(make(workflow=str(path)))
    assert isinstance(fault, Refused)
    assert says in fault.message
    assert server.requests == []


def test_a_ui_export_comes_with_the_way_to_the_right_one(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "ui.json"
    path.write_text(json.dumps({"nodes": [], "links": []}))
    assert failure(make(workflow=str(path))).hint == "in ComfyUI: Workflow, Export (API)"


def test_a_placeholder_without_a_value_is_named(
    server: ComfyUI, make: Make, tmp_path: Path
) -> None:
    loader = {"class_type": "VAELoader", "inputs": {"vae_name": "${adapter}"}}
    path = a_workflow(tmp_path, {"39": loader})
    fault = failure(make(workflow=path))
    assert isinstance(fault, Refused)
    assert "${adapter} has no value: node 39 (VAELoader), vae_name" in fault.message
    assert "--option adapter=…" in str(fault.hint)
    assert server.requests == []
    (made,) = rendered(make(workflow=path, adapter="ae.safetensors"))
    assert made["workflow"] == "mine"


@pytest.mark.parametrize("shift", [0, 0.5])
def test_a_placeholder_takes_the_instances_value_zero_too(
    server: ComfyUI, make: Make, tmp_path: Path, shift: float
) -> None:
    tree = json.loads((template.BUNDLED / "flux1-schnell.json").read_bytes())
    tree["_imagen"]["defaults"]["shift"] = 1.15
    tree["30"]["inputs"]["max_shift"] = "${shift}"
    rendered(make(workflow=a_workflow(tmp_path, tree), shift=shift))
    assert server.submits[0]["prompt"]["30"]["inputs"]["max_shift"] == shift


def test_a_new_model_is_one_json_file_and_a_few_lines_of_yaml(
    server: ComfyUI, tmp_path: Path
) -> None:
    graph = {
        "_imagen": {
            "defaults": {
                "width": 512,
                "height": 512,
                "steps": 25,
                "cfg": 7.0,
                "negative_prompt": "",
            },
            "models": [{"file": "${checkpoint}", "folder": "checkpoints"}],
        },
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "${checkpoint}"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "${prompt}", "clip": ["1", 1]}},
        "3": {
            "class_type": "CLIPTextEncode",
            "inputs": {"text": "${negative_prompt}", "clip": ["1", 1]},
        },
        "4": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": "${width}", "height": "${height}", "batch_size": 1},
        },
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "seed": "${seed}",
                "steps": "${steps}",
                "cfg": "${cfg}",
                "sampler_name": "dpmpp_2m",
                "scheduler": "karras",
                "denoise": 1.0,
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["6", 0]}},
    }
    (tmp_path / "sd-medium.json").write_text(json.dumps(graph))
    (tmp_path / "config.yaml").write_text(
        f"""
        backends:
          medium:
            type: comfyui
            url: {server.url}
            workflow: ./sd-medium.json
            checkpoint: sd3.5_medium.safetensors
        """
    )
    loaded = configuration.load(str(tmp_path / "config.yaml"))
    told = Told(out_dir=tmp_path / "out")
    renderer = Renderer(loaded, Ledger(None), told, Around(tmp_path / "state"))
    request = {"prompt": "a cat", "id": ID, "seed": 7, "width": 1000, "backend": "medium"}
    (made,) = list(renderer.render(request))
    assert made["model"] == "sd3.5_medium.safetensors"
    assert made["workflow"] == "sd-medium"
    assert (made["width"], made["height"], made["steps"], made["cfg"]) == (1000, 512, 25, 7.0)
    assert "fidelity" not in made


def test_the_status_says_what_is_missing(server: ComfyUI, backend: Open, closed_url: str) -> None:
    assert str(backend().status(ask=True)) == "ok"
    server.uninstall("ae.safetensors")
    incomplete = backend().status(ask=True)
    assert incomplete.state == "incomplete"
    assert "no ae.safetensors for vae_name of node 39 (VAELoader)" in incomplete.detail
    assert "imagen-models fetch flux1-schnell" in incomplete.detail
    del server.classes["KSampler"]
    assert "no node KSampler" in backend().status(ask=True).detail
    away = backend(url=closed_url, boot_hint="wake the-box").status(ask=True)
    assert away.state == "unreachable"
    assert "wake the-box" in away.detail
    unset = backend(headers_env={"Authorization": "COMFY_TOKEN_NOT_SET"}).status(ask=False)
    assert str(unset) == "not configured (set COMFY_TOKEN_NOT_SET)"
    assert str(backend(url=closed_url).status(ask=False)) == "ok"


@pytest.mark.parametrize("name", ["flux1-schnell", "flux2-klein", "sd35-medium"])
def test_the_status_of_every_bundled_workflow_is_ok(backend: Open, name: str) -> None:
    assert str(backend(workflow=name).status(ask=True)) == "ok"


def test_a_server_behind_a_path_is_reached(server: ComfyUI, make: Make) -> None:
    (made,) = rendered(make(url=f"{server.url}/api/"))
    assert made["submit"] == handle()
    assert all(path.startswith("/api/") for _, path, _ in server.requests)


def test_the_password_in_the_address_is_sent_and_never_printed(
    server: ComfyUI, backend: Open
) -> None:
    opened = backend(url=server.url.replace("://", "://me:s3cret@"))
    with pytest.raises(ImagenError) as caught:
        opened.collect(handle(), Wait(time.monotonic() + 5, lambda _text: None), None)
    assert server.headers[0]["Authorization"].startswith("Basic ")
    assert caught.value.code == "render_lost"
    assert "s3cret" not in caught.value.as_line()


# -- the real program ----------------------------------------------------------------------------


@pytest.fixture
def start(settings: Settings, tool: Any, tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts imagen-render with a configuration of one instance."""
    # an ignored SIGINT (nohup, &) would be handed on to the program
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    named = {"IMAGEN_CONFIG": str(tmp_path / "config.yaml"), "IMAGEN_BACKEND": "comfy"}

    def started(*arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        settings(**more)
        argv = [sys.executable, "-m", "imagen.commands.render", *arguments]
        return tool.start("render", argv=argv, env=named)

    yield started
    signal.signal(signal.SIGINT, before)


def test_the_program_ends_with_75_when_the_server_is_away(start: Start, closed_url: str) -> None:
    program = start("a cat", url=closed_url, boot_hint="wake the-box", patience_s=0.05)
    out, err = program.communicate(timeout=20)
    assert program.returncode == 75
    assert json.loads(out)["error"]["code"] == "unreachable"
    assert b"(hint: wake the-box)" in err


def test_interrupting_the_program_takes_its_prompt_off_the_server(
    server: ComfyUI, start: Start, until: Callable[..., Any]
) -> None:
    server.held = True
    theirs = strangers_prompt(server)
    program = start("a cat", "--id", ID)
    until(lambda: server.submits and asks(server, "GET /history"))
    assert server.queue() == (theirs, [handle()])
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=20)
    assert program.returncode == 130
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert b"Traceback" not in err
    assert server.queue() == (theirs, [])
    assert server.interrupts == []


def test_terminating_the_program_leaves_a_line_that_collects_the_render(
    server: ComfyUI, start: Start, until: Callable[..., Any]
) -> None:
    server.held = True
    program = start("a cat", "--id", ID, "--size", "64x64")
    until(lambda: server.submits and asks(server, "GET /history"))
    program.send_signal(signal.SIGTERM)
    line, err = program.communicate(timeout=20)
    assert program.returncode == 143
    assert json.loads(line)["pending"]["handle"] == handle()
    assert b"Traceback" not in err
    assert server.queue() == (handle(), [])

    server.release()
    again = start()
    out, _ = again.communicate(line, timeout=20)
    assert again.returncode == 0
    made = json.loads(out)
    assert (made["id"], made["submit"]) == (ID, handle())
    assert Path(made["file"]).read_bytes() == next(iter(server.files.values()))
    assert submitted(server) == [handle()]
