"""The Replicate backend against a real server: what a mock of the network cannot show."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagen import http
from imagen.backends import Ask, Instance, Lost, Sought, Wait
from imagen.backends.replicate.backend import Replicate as Backend
from imagen.errors import (
    AnswerLost,
    BadImage,
    ImagenError,
    NotAnImage,
    OutOfCredit,
    RenderFailed,
    RenderLost,
    ServerFault,
    Unreachable,
)
from imagen.images import codec
from servers.replicate import (
    DEV,
    NO_CREDIT,
    SCHNELL,
    TOKEN,
    TROUBLE,
    VERSION,
    Answer,
    Replicate,
    said,
    throttled,
)

FAST = {"poll_s": 0.005, "retry_s": 0.005, "settle_s": 0.02, "patience_s": 3, "read_s": 10}
# only where the server stays silent or away: a machine may stand still for longer
IMPATIENT = {"patience_s": 0.2, "read_s": 0.5}
PNG = codec.encode_png(Image.linear_gradient("L").resize((16, 16)), {})
FOUND = Answer(200, PNG, "image/png")
Open = Callable[..., Backend]


@pytest.fixture
def server() -> Iterator[Replicate]:
    with Replicate() as running:
        yield running


@pytest.fixture
def elsewhere() -> Iterator[Replicate]:
    with Replicate() as running:
        yield running


@pytest.fixture
def backend(server: Replicate, monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setenv("REPLICATE_API_TOKEN", TOKEN)

    def opened(model: str = SCHNELL, **more: Any) -> Backend:
        settings = {"type": "replicate", "model": model, "base_url": server.url, **FAST, **more}
        return Backend(Instance("paid", settings, Path(), Path()))

    return opened


def ask(**more: Any) -> Ask:
    request = {"prompt": "a cat", "seed": 7, "width": 512, "height": 512, **more}
    return Ask(request, request["prompt"], None, "an id")


def soon(seconds: float = 30.0) -> Wait:
    return Wait(time.monotonic() + seconds, lambda _: None)


def submit(backend: Backend, **more: Any) -> str:
    return backend.submit(backend.plan(ask(**more)))


def fetch(backend: Backend, handle: str, seconds: float = 30.0) -> Any:
    return backend.collect(handle, soon(seconds), backend.plan(ask()))


def find(backend: Backend, *owned: str, age_s: float = 1.0, **more: Any) -> Any:
    lost = Lost(age_s, None, time.time() - age_s, lambda handle: handle in owned)
    return backend.find(backend.plan(ask(**more)), lost)


def fault_of(act: Callable[[], Any], within_s: float = 9.0) -> ImagenError:
    began = time.monotonic()
    with pytest.raises(ImagenError) as caught:
        act()
    assert time.monotonic() - began < within_s
    assert TOKEN not in caught.value.as_line()
    return caught.value


def tokens(server: Replicate, path: str) -> list[str | None]:
    """Give the Authorization of each request to a path."""
    pairs = zip(server.requests, server.headers, strict=True)
    return [heads.get("Authorization") for (_, asked, _), heads in pairs if asked.startswith(path)]


# -- one render, from end to end -------------------------------------------------------------------


@pytest.mark.parametrize("model", [SCHNELL, DEV, f"{SCHNELL}:{VERSION}"])
def test_a_prediction_is_created_once_waited_for_and_fetched(server, backend, model):
    server.statuses, server.seconds = ["starting", "starting", "processing"], 0.1
    one = backend(model)
    plan = one.plan(ask())
    handle = one.submit(plan)
    told: list[str] = []
    found = one.collect(handle, Wait(time.monotonic() + 30, told.append), plan)
    assert found is not None
    (body,) = found.images
    with Image.open(io.BytesIO(body)) as picture:
        assert (picture.format, picture.size) == ("PNG", (512, 512))
    assert found.meta["prediction_id"] == handle
    assert found.meta["predict_time_s"] == pytest.approx(0.1, abs=0.001)
    assert found.run_ms == 100
    assert list(dict.fromkeys(told)) == ["starting", "processing"]
    assert server.creates == 1
    assert server.predictions[0]["input"].items() >= plan.payload["input"].items()


def test_several_images_come_and_filtered_ones_are_missing(server, backend):
    one = backend(options={"num_outputs": 4})
    assert len(set(fetch(one, submit(one)).images)) == 4
    server.filtered = 3
    assert len(fetch(one, submit(one)).images) == 1


def test_a_seed_of_64_bits_arrives_as_it_is(server, backend):
    one = backend()
    handle = submit(one, seed=2**64 - 1)
    assert server.predictions[0]["input"]["seed"] == 2**64 - 1
    assert find(one, seed=2**64 - 1) == handle


def test_a_drawn_seed_is_read_in_the_logs(server, backend):
    one = backend()
    plan = one.plan(ask(seed=0))
    found = one.collect(one.submit(plan), soon(), plan)
    assert found is not None
    assert found.meta["seed_used"] == server.predictions[0]["_seed"]


def test_an_answer_is_waited_for_when_that_is_preferred(server, backend):
    server.seconds = 0.5
    one = backend(prefer_wait_s=2)
    handle = submit(one)
    assert server.headers[0]["Prefer"] == "wait=2"
    assert fetch(one, handle).images
    assert server.asks("GET /v1/predictions/") == 1, "it had ended when the create was answered"


def test_a_time_out_leaves_it_alone_and_another_process_collects_it(server, backend):
    server.held = True
    one = backend()
    handle = submit(one)
    assert fetch(one, handle, 0.5) is None
    assert server.asks("POST") == 1
    server.held = False
    found = backend().collect(handle, soon(), None)
    assert found is not None
    assert found.images


@pytest.mark.parametrize(
    ("queue_s", "seconds", "code", "billed"),
    [(9, 0, "prediction_aborted", "no"), (0, 9, "prediction_canceled", "unknown")],
)
def test_the_deadline_is_replicates_to_keep(server, backend, queue_s, seconds, code, billed):
    server.queue_s, server.seconds = queue_s, seconds
    one = backend(cancel_after_s=1)
    fault = fault_of(lambda: fetch(one, submit(one)))
    assert (fault.code, fault.billed) == (code, billed)


def test_what_somebody_cancels_before_it_began_was_not_billed(server, backend):
    server.queue_s = 9
    one = backend()
    handle = submit(one)
    request = urllib.request.Request(
        f"{server.url}/v1/predictions/{handle}/cancel",
        method="POST",
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    urllib.request.urlopen(request).close()
    fault = fault_of(lambda: fetch(one, handle))
    assert (fault.code, fault.billed) == ("prediction_canceled", "no")


def test_a_failed_prediction_tells_why(server, backend):
    server.ending, server.error = "failed", "CUDA out of memory"
    one = backend()
    fault = fault_of(lambda: fetch(one, submit(one)))
    assert isinstance(fault, RenderFailed)
    assert "CUDA out of memory" in fault.message


def test_a_status_that_nobody_knows_is_not_the_end(server, backend):
    server.statuses = ["queued", "paused", "processing"]
    one = backend()
    assert fetch(one, submit(one)).images


def test_what_is_gone_after_an_hour_is_lost_and_paid(server, backend):
    one = backend()
    handle = submit(one)
    server.remove_data(handle)
    fault = fault_of(lambda: fetch(one, handle))
    assert isinstance(fault, RenderLost)
    assert (fault.finished, fault.billed) == (True, "yes")


def test_a_render_that_replicate_refuses_is_not_created(server, backend):
    server.fail("POST", NO_CREDIT)
    assert isinstance(fault_of(lambda: submit(backend())), OutOfCredit)
    assert (
        "aspect_ratio" in fault_of(lambda: submit(backend(options={"aspect_ratio": "9:9"}))).message
    )
    assert fault_of(lambda: submit(backend("nobody/nothing"))).hint
    assert server.creates == 0


@pytest.mark.parametrize("where", ["header", "body", "text"])
def test_a_429_is_waited_out_as_told(server, backend, where):
    server.fail("POST", throttled(1, where))
    began = time.monotonic()
    assert submit(backend())
    assert 0.9 < time.monotonic() - began < 4
    assert (server.creates, server.asks("POST")) == (1, 2)


# -- lost creates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (TROUBLE, ServerFault),
        (None, AnswerLost),
        (Answer(201, b'{"id": "abc', only=5), AnswerLost),
        (said(201, {"id": "abc"}, wait_s=9), AnswerLost),
        (Answer(201, b"<html>", "text/html"), AnswerLost),
    ],
)
def test_a_create_whose_answer_was_lost_is_found(server, backend, answer, kind):
    server.fail("POST", answer, after=True)
    asking = backend(**(IMPATIENT if answer and answer.wait_s else {}))
    assert type(fault_of(lambda: submit(asking))) is kind
    assert server.creates == 1
    one = backend()
    handle = server.predictions[0]["id"]
    assert find(one) == handle
    assert fetch(one, handle).images
    assert server.creates == 1


@pytest.mark.parametrize("answer", [TROUBLE, None])
def test_a_create_that_did_not_arrive_is_certainly_absent(server, backend, answer):
    server.fail("POST", answer)
    one = backend()
    fault_of(lambda: submit(one))
    server.add({"prompt": "somebody else's"})
    assert find(one) is Sought.ABSENT
    assert server.creates == 1


def test_what_cannot_be_told_is_not_called_absent(server, backend):
    stranger = server.add({"prompt": "?"})
    server.remove_data(stranger)
    assert find(backend()) is Sought.UNKNOWN
    assert find(backend(), stranger) is Sought.ABSENT


def test_others_handles_are_skipped_and_living_ones_go_first(server, backend):
    one = backend()
    server.ending = "failed"
    failed = submit(one)
    server.ending = "succeeded"
    first, second = submit(one), submit(one)
    assert find(one) == first
    assert find(one, first) == second
    assert find(one, first, second) == failed
    assert find(one, first, second, failed) is Sought.ABSENT


def test_the_list_is_read_page_by_page(server, backend):
    server.page = 2
    one = backend()
    handle = submit(one)
    for number in range(7):
        server.add({"prompt": f"another {number}"})
    assert find(one) == handle
    assert server.asks("GET /v1/predictions") == 4
    assert tokens(server, "/v1/predictions") == [f"Bearer {TOKEN}"] * 4


@pytest.mark.parametrize("skew_s", [7200, -7200])
@pytest.mark.parametrize("fractions", [True, False])
def test_the_servers_clock_counts(server, backend, skew_s, fractions):
    server.skew_s, server.fractions = skew_s, fractions
    one = backend()
    server.add(one.plan(ask()).payload["input"], age_s=4000)
    assert find(one) is Sought.ABSENT
    handle = submit(one)
    assert find(one) == handle


def test_a_list_that_is_too_slow_proves_nothing(server, backend):
    server.fail("GET /v1/predictions", Answer(wait_s=9), times=2)
    assert isinstance(fault_of(lambda: find(backend(**IMPATIENT))), AnswerLost)


# -- redirects, and where the token goes -----------------------------------------------------------


def test_an_image_elsewhere_is_fetched_without_the_token(server, elsewhere, backend):
    server.files_url = elsewhere.url
    elsewhere.fail("GET /files", FOUND)
    one = backend()
    assert fetch(one, submit(one)).images == [PNG]
    assert tokens(elsewhere, "/") == [None], "another port of the same host is another server"
    assert TOKEN not in json.dumps(elsewhere.headers)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_takes_the_token_elsewhere(server, elsewhere, backend, status):
    server.fail("GET /files", Answer(status, headers={"Location": f"{elsewhere.url}/x?y=1"}))
    elsewhere.fail("GET /x", FOUND)
    one = backend()
    assert fetch(one, submit(one)).images == [PNG]
    assert tokens(server, "/files") == [f"Bearer {TOKEN}"]
    assert tokens(elsewhere, "/x") == [None]


def test_who_trusts_is_asked_anew_at_each_hop(server, elsewhere, backend):
    server.fail("GET /files", Answer(302, headers={"Location": f"{elsewhere.url}/away"}))
    elsewhere.fail("GET /away", Answer(302, headers={"Location": f"{server.url}/back"}))
    server.fail("GET /back", Answer(302, headers={"Location": "/again"}))
    server.fail("GET /again", FOUND)
    one = backend()
    assert fetch(one, submit(one)).images == [PNG]
    assert tokens(elsewhere, "/away") == [None]
    assert tokens(server, "/again") == [f"Bearer {TOKEN}"]


def test_redirects_in_a_circle_end(server, backend):
    server.fail("GET /files", Answer(302, headers={"Location": "/files/round"}), times=99)
    one = backend()
    assert type(fetch(one, submit(one)).fault) is NotAnImage
    assert server.asks("GET /files") == 12, "followed six times, and once more"


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://h/", "http://a@b/", "http://h:0/", "http://[::1"]
)
def test_a_redirect_to_what_is_no_web_address_is_refused(server, backend, location):
    server.fail("GET /files", Answer(302, headers={"Location": location}), times=2)
    one = backend()
    found = fetch(one, submit(one))
    assert (type(found.fault), found.images) == (NotAnImage, [])
    assert (found.fault.billed, found.fault.retry) == ("yes", "never")
    assert found.meta["outputs"] == [f"{server.url}/files/{found.meta['prediction_id']}/out-0.png"]


def test_the_api_itself_is_not_followed_elsewhere(server, elsewhere, backend):
    server.fail("POST", Answer(307, headers={"Location": f"{elsewhere.url}/v1/predictions"}))
    fault = fault_of(lambda: submit(backend()))
    assert (type(fault), fault.billed) == (AnswerLost, "unknown"), "who is asked may have obeyed"
    assert elsewhere.requests == []


def test_a_netrc_puts_no_token_of_ours_or_its_own_into_a_download(
    server, elsewhere, backend, tmp_path
):
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    server.files_url = elsewhere.url
    elsewhere.fail("GET /files", FOUND)
    one = backend()
    assert fetch(one, submit(one)).images == [PNG]
    assert tokens(elsewhere, "/") == [None]


def test_a_token_that_the_server_echoes_is_not_told(server, backend):
    server.fail("POST", said(422, {"detail": f"you sent Bearer {TOKEN}"}))
    assert "***" in fault_of(lambda: submit(backend())).message
    server.fail("GET /files", Answer(403, f"Bearer {TOKEN}".encode()))
    one = backend()
    assert "***" in fault_of(lambda: fetch(one, submit(one))).message


# -- bodies that are cut, slow or endless ----------------------------------------------------------


def test_a_truncated_image_is_fetched_again_and_never_taken(server, backend):
    cut = Answer(200, PNG * 5000, "image/png", only=10_000)
    server.fail("GET /files", cut)
    one = backend()
    assert len(fetch(one, submit(one)).images[0]) > 1000
    server.fail("GET /files", cut, times=2)
    fault = fault_of(lambda: fetch(one, submit(one)))
    assert (type(fault), fault.billed, fault.retry) == (AnswerLost, "yes", "safe")


def test_an_older_urllib3_does_not_hide_that_a_body_was_cut(server, backend, monkeypatch):
    """Version 1 takes a body that is too short for whole; its read1 is not there either."""
    monkeypatch.setattr("urllib3.HTTPResponse._error_catcher", _lenient)
    server.fail("GET /files", Answer(200, PNG * 50, "image/png", only=100), times=2)
    one = backend()
    fault = fault_of(lambda: fetch(one, submit(one)))
    assert isinstance(fault, AnswerLost)
    assert "cut short" in fault.message


def _lenient(_response: Any) -> Any:
    from contextlib import suppress

    from urllib3.exceptions import IncompleteRead

    return suppress(IncompleteRead)


def test_an_image_that_trickles_in_is_given_up(server, backend, monkeypatch):
    monkeypatch.setattr("imagen.http.client.BODY_S", 0.3)
    server.fail("GET /files", Answer(200, PNG * 5000, "image/png", trickle_s=0.01), times=2)
    handle = submit(backend())
    fault = fault_of(lambda: fetch(backend(**IMPATIENT), handle))
    assert (type(fault), fault.billed) == (AnswerLost, "yes")
    assert "too slowly" in fault.message


def test_an_image_that_is_too_large_is_not_read_to_its_end(server, backend, monkeypatch):
    monkeypatch.setattr(http.Server.fetch, "__defaults__", (1000,))
    server.fail("GET /files", Answer(200, b"x" * 100_000), times=2)
    one = backend()
    found = fetch(one, submit(one))
    assert (type(found.fault), found.raw) == (NotAnImage, None)


def test_an_error_page_is_fetched_once_more_and_only_then_believed(server, backend):
    page = Answer(200, b"<html>sorry</html>", "text/html; charset=utf-8")
    server.fail("GET /files", page)
    one = backend()
    assert codec.kind(fetch(one, submit(one)).images[0]) == "png"
    server.fail("GET /files", page, times=2)
    found = fetch(one, submit(one))
    assert (type(found.fault), found.fault.billed, found.images) == (NotAnImage, "yes", [])
    assert found.raw == (b"<html>sorry</html>", ".html")


def test_an_image_that_is_cut_though_its_length_is_right_is_safe_to_ask_for_again(server, backend):
    server.fail("GET /files", Answer(200, PNG[:-20], "image/png"), times=2)
    one = backend()
    fault = fault_of(lambda: fetch(one, submit(one)))
    assert (type(fault), fault.billed, fault.retry) == (BadImage, "yes", "safe")


@pytest.fixture
def half_open() -> Iterator[str]:
    """A port that takes connections and requests, and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_never_answers_is_given_up(server, half_open, backend):
    one = backend(base_url=half_open, **IMPATIENT)
    assert isinstance(fault_of(lambda: submit(one)), AnswerLost)
    assert isinstance(fault_of(lambda: find(one)), AnswerLost)
    fault = fault_of(lambda: one.collect("abc", soon(0.5), None))
    assert (type(fault), fault.billed, fault.retry) == (AnswerLost, "unknown", "safe")
    assert one.status(True).state == "unreachable"
    server.files_url = half_open
    handle = submit(backend())
    fault = fault_of(lambda: fetch(backend(**IMPATIENT), handle))
    assert (type(fault), fault.billed) == (AnswerLost, "yes")


def test_a_server_that_is_not_there_was_never_asked(server, backend):
    server.close()
    assert isinstance(fault_of(lambda: submit(backend(**IMPATIENT))), Unreachable)
    assert isinstance(fault_of(lambda: find(backend(**IMPATIENT))), Unreachable)


def test_a_server_that_comes_back_is_waited_for(server, backend):
    one = backend(patience_s=30)
    handle, port = submit(one), int(server.url.rpartition(":")[2])
    server.close()
    threading.Timer(0.3, lambda: server.open(port)).start()
    assert fetch(one, handle).images


# -- the look-alike itself -------------------------------------------------------------------------

CLIENT = """
import sys, urllib.request
body = b'{"input": {"prompt": "a cat", "seed": 7}}'
heads = {"Authorization": "Bearer " + sys.argv[2], "Content-Type": "application/json"}
request = urllib.request.Request(sys.argv[1], body, heads)
print(urllib.request.urlopen(request).status, flush=True)
"""


def test_a_client_that_is_killed_leaves_what_is_counted_also_listed(server, until):
    server.fail("POST", said(201, {}, wait_s=5), after=True)
    path = f"{server.url}/v1/models/{SCHNELL}/predictions"
    with subprocess.Popen([sys.executable, "-c", CLIENT, path, TOKEN]) as client:
        until(lambda: server.creates)
        os.kill(client.pid, signal.SIGKILL)
    request = urllib.request.Request(
        f"{server.url}/v1/predictions", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    with urllib.request.urlopen(request) as answer:
        listed = json.load(answer)["results"]
    assert [one["id"] for one in listed] == [server.predictions[0]["id"]]


def test_it_runs_as_a_program_too():
    folder = Path(__file__).parents[2] / "support"
    command = [sys.executable, "-m", "servers.replicate"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        url = program.stdout.readline().strip()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}/v1/predictions")
        program.kill()


def test_it_counts_each_of_many_creates_at_once(server, backend):
    clients = [backend() for _ in range(8)]
    with ThreadPoolExecutor(len(clients)) as pool:
        handles = [*pool.map(submit, clients)]
    assert len(set(handles)) == 8
    assert sorted(handles) == sorted(one["id"] for one in server.predictions)
