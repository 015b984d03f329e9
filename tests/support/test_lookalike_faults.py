"""The faults of the look-alikes do what they are named for; else the matrix would prove nothing."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from servers import wire
from servers.comfyui import ComfyUI
from servers.replicate import ALIASES, SCHNELL, SHOWN_PROMPT, SPELLINGS, TOKEN, Replicate

INPUT = {"prompt": "a cat " * 300, "seed": 7, "aspect_ratio": "1:1", "output_format": "png"}
PATH = f"/v1/models/{SCHNELL}/predictions"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}


@pytest.fixture
def server():
    with Replicate() as running:
        yield running


def ask(server, path, body=None):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(server.url + path, data, HEADERS)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response), response.headers


def created(server):
    return ask(server, PATH, {"input": INPUT})[0]


def listed(server):
    return ask(server, "/v1/predictions")[0]["results"]


def test_a_create_is_accepted_late_though_its_client_is_gone(server, until):
    server.fail("POST", wire.SILENCE, after=True, late_s=0.3)
    body = json.dumps({"input": INPUT})
    head = f"POST {PATH} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        client.sendall(f"{head}\r\n\r\n{body}".encode())
        until(lambda: server.asks("POST"))
    assert server.creates == 0
    until(lambda: server.creates == 1)


def test_a_create_may_be_accepted_just_after_the_list_was_read(server, until):
    server.fail("POST", after=True, late_s=60, until_listed=True)
    with ThreadPoolExecutor(1) as pool:
        create = pool.submit(created, server)
        until(lambda: server.asks("POST"))
        assert listed(server) == []
        with pytest.raises(urllib.error.HTTPError) as lost:
            create.result(timeout=20)
        lost.value.close()
    assert len(listed(server)) == 1


def test_the_list_lags_and_the_prediction_itself_does_not(server, until):
    server.lag_s = 0.5
    number = created(server)["id"]
    assert listed(server) == []
    assert ask(server, f"/v1/predictions/{number}")[0]["id"] == number
    until(lambda: [one["id"] for one in listed(server)] == [number])


def test_the_list_tells_input_and_model_differently_and_the_image_is_the_same(server):
    plain = created(server)
    server.spelling = SPELLINGS
    (shown,) = listed(server)
    assert plain["model"] == SCHNELL and shown["model"] == ALIASES[SCHNELL]
    assert shown["input"] == {
        "prompt": INPUT["prompt"][:SHOWN_PROMPT],
        "seed": "7",
        "output_format": "PNG",
        "go_fast": True,
    }
    assert shown["output"] == plain["output"]


def test_times_of_predictions_may_be_far_from_its_date(server):
    server.created_skew_s = -86_400
    created(server)
    results, headers = ask(server, "/v1/predictions")
    day = results["results"][0]["created_at"][8:10]
    assert int(headers["Date"].split()[1]) != int(day)


@pytest.mark.parametrize("kind", [Replicate, ComfyUI])
def test_what_breaks_an_answer_breaks_it_as_it_is_named(kind):
    with kind() as server:
        for broken, error in (
            (wire.CUT, http.client.RemoteDisconnected),
            (wire.RESET, ConnectionResetError),
            (wire.SILENCE, TimeoutError),
            (wire.MALFORMED, http.client.BadStatusLine),
            (wire.HALF_A_BODY, http.client.IncompleteRead),
        ):
            server.fail("GET /", broken)
            with pytest.raises(error) as raised:
                response_of(server, seconds=1)
            assert (raised.type is ConnectionResetError) == broken.reset
        server.fail("GET /", wire.TWO_LENGTHS)
        assert len(response_of(server).headers.get_all("Content-Length")) == 2
        server.fail("GET /", wire.MOVED)
        assert response_of(server).headers["Location"] == "/somewhere"
        server.fail("GET /", wire.page("502 Bad Gateway"))
        assert response_of(server).status == 502


def test_a_trickle_goes_on_byte_by_byte(server):
    server.fail("GET /", wire.TRICKLE)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        client.settimeout(5)
        assert [len(client.recv(1)) for _ in range(10)] == [1] * 10


def response_of(server, seconds=10.0):
    """Ask for a page, and read the whole answer."""
    host = server.url.removeprefix("http://")
    with closing(http.client.HTTPConnection(host, timeout=seconds)) as connection:
        connection.request("GET", "/somewhere")
        response = connection.getresponse()
        response.read()
        return response
