"""Our HTTP, against a real server on this machine."""

from __future__ import annotations

import gzip
import io
import json
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imagen import http
from imagen.errors import (
    AnswerLost,
    ConfigFault,
    ImagenError,
    OutOfCredit,
    Rejected,
    ServerFault,
    Throttled,
    Unreachable,
)
from imagen.http import addresses, connections, proves_refusal
from imagen.http.client import _check_whole
from imagen.http.exchange import BrokenAnswer
from servers.answering import Answering, Handler, Reply
from servers.tls import Certificate, certificate


@pytest.fixture
def serve() -> Iterator[Callable[..., Answering]]:
    """Start a server that answers so; gives its url and what it has seen."""
    with ExitStack() as running:
        yield lambda reply, *more: running.enter_context(Answering(reply, *more))


@pytest.fixture
def client() -> Iterator[Callable[..., http.Server]]:
    opened: list[http.Server] = []

    def connect(url: str, **more: Any) -> http.Server:
        opened.append(http.Server(url, who="test server", **more))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()


def answering(status: int, body: bytes = b"", **headers: str) -> Reply:
    return lambda handler: handler.send(status, body, **headers)


# -- a good answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 204])
def test_a_good_answer_has_status_headers_and_body(serve, client, status):
    server = serve(answering(status, b"" if status == 204 else b"data", X_Mine="yes"))
    answer = client(server.url).get("/path", params={"a": "1 2", "b": "ü"})
    assert (answer.status, answer.body) == (status, b"" if status == 204 else b"data")
    assert answer.headers["x-mine"] == "yes"
    assert server.seen[0].path == "/path?a=1+2&b=%C3%BC"


def test_a_post_carries_json_and_the_headers_of_the_session(serve, client):
    server = serve(answering(200, b"{}"))
    client(server.url + "/", headers={"X-Mine": "yes"}).post("/p", {"a": "ü", "b": 2**64 - 1})
    (seen,) = server.seen
    assert seen.path == "/p"
    assert json.loads(seen.body) == {"a": "ü", "b": 2**64 - 1}
    assert seen.headers["Content-Type"] == "application/json"
    assert seen.headers["X-Mine"] == "yes"
    assert seen.headers["User-Agent"].startswith("imagen")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[1]", b"null", b"7", b"\xff", b"{", b"[" * 100_000]
)
def test_an_answer_that_is_no_json_object_is_a_fault_of_the_server(serve, client, body):
    answer = client(serve(answering(200, body)).url).get("/")
    with pytest.raises(ServerFault, match="no JSON object"):
        answer.json_object()


@pytest.mark.parametrize("body", [b'{"a":[NaN,-Infinity,{"b":Infinity}]}', b'{"a":NaN}'])
def test_no_number_is_null_where_that_is_allowed_and_a_fault_of_the_server_elsewhere(
    serve, client, body
):
    answer = client(serve(answering(200, body)).url).get("/")
    lenient = answer.json_object(lenient=True)
    assert lenient == ({"a": [None, None, {"b": None}]} if b"b" in body else {"a": None})
    with pytest.raises(ServerFault, match="no JSON object"):
        answer.json_object()


def test_an_answer_that_is_one_is_read(serve, client):
    assert client(serve(answering(200, b'{"a":[1]}')).url).get("/").json_object() == {"a": [1]}


# -- what the status says --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "retry"),
    [
        (301, Rejected, "never"),
        (302, Rejected, "never"),
        (304, Rejected, "never"),
        (307, Rejected, "never"),
        (400, Rejected, "never"),
        (401, Rejected, "never"),
        (402, OutOfCredit, "never"),
        (404, Rejected, "never"),
        (408, ServerFault, "safe"),
        (422, Rejected, "never"),
        (423, ServerFault, "safe"),
        (425, ServerFault, "safe"),
        (429, Throttled, "after"),
        (500, ServerFault, "safe"),
        (502, ServerFault, "safe"),
        (503, ServerFault, "safe"),
        (599, ServerFault, "safe"),
    ],
)
def test_a_bad_status_is_an_error_of_ours(serve, client, status, kind, retry):
    body = b"" if status == 304 else b"the \n reason"
    server = serve(answering(status, body, Location="/elsewhere"))
    with pytest.raises(ImagenError) as caught:
        client(server.url).get("/")
    fault = caught.value
    assert (type(fault), fault.retry, fault.billed) == (kind, retry, "no")
    assert f"the test server at {server.url} answered {status}: " in fault.message
    assert "\n" not in fault.message
    if body:
        assert fault.message.endswith("the reason")


@pytest.mark.parametrize("status", [301, 308, 402, 404, 405])
def test_a_status_that_no_request_can_cause_is_of_the_setup(serve, client, status):
    with pytest.raises(ImagenError) as caught:
        client(serve(answering(status, b"{}")).url).get("/")
    assert caught.value.as_record("t")["scope"] == "setup"


@pytest.mark.parametrize("status", [400, 403, 409, 413, 422, 500])
def test_a_status_that_a_request_can_cause_is_not(serve, client, status):
    with pytest.raises(ImagenError) as caught:
        client(serve(answering(status, b"{}")).url).get("/")
    assert "scope" not in caught.value.as_record("t")


def test_a_redirect_is_not_followed_and_takes_no_header_elsewhere(serve, client):
    elsewhere = serve(answering(200, b"{}"))
    server = serve(answering(302, b"", Location=elsewhere.url))
    with pytest.raises(Rejected):
        client(server.url, headers={"Authorization": "Bearer secret"}).get("/")
    with pytest.raises(Rejected):
        client(server.url).post("/", {})
    assert (len(server.seen), len(elsewhere.seen)) == (2, 0)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0.5", 0.5),
        ("-3", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("", None),
    ],
)
def test_how_long_to_wait_is_read_where_it_is_a_number(serve, client, header, seconds):
    with pytest.raises(Throttled) as caught:
        client(serve(answering(429, b"", Retry_After=header)).url).get("/")
    assert caught.value.retry_after_s == seconds


@pytest.mark.parametrize("status", [301, 400, 402, 407, 429, 500, 503])
def test_an_error_carries_the_status_the_body_and_the_headers_without_our_secret(
    serve, client, status
):
    def reply(handler: Handler) -> None:
        echo = handler.headers["Authorization"]
        handler.send(status, f'{{"detail":"{echo}"}}'.encode(), X_Echo=echo)

    ours = client(serve(reply).url, headers={"Authorization": "Bearer a-long-secret"})
    with pytest.raises(ImagenError) as caught:
        ours.post("/", {})
    fault: Any = caught.value
    assert (fault.status, fault.body) == (status, b'{"detail":"***"}')
    assert fault.headers["x-echo"] == "***"


REFUSING = {*range(400, 408), 409, 411, 413, 414, 415, 421, 422, 426, 428, 429, 431}


def test_only_a_status_that_refuses_with_an_object_of_json_proves_a_refusal():
    for status in range(100, 600):
        proven = proves_refusal(status, b'{"detail":"no"}')
        assert proven is (status in REFUSING), status


@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b'"no"', b"[{}]", b"null", b"[" * 10**5])
def test_anything_but_an_object_proves_no_refusal_except_where_the_api_speaks_no_json(body):
    assert not proves_refusal(422, body)
    assert proves_refusal(422, body, speaks_json=False)


def test_407_is_the_proxys_own_and_proves_it_without_json():
    assert proves_refusal(407, b"<html>who are you?</html>")


def test_a_backend_may_name_other_statuses():
    assert proves_refusal(410, b"{}", {410})
    assert not proves_refusal(400, b"{}", {410})
    assert not proves_refusal(407, b"{}", {410})


def test_a_long_answer_is_cut_short_in_the_message(serve, client):
    with pytest.raises(ServerFault) as caught:
        client(serve(answering(500, "ü".encode() * 50_000)).url).get("/")
    assert len(caught.value.message) < 400


# -- connections -----------------------------------------------------------------------------------


def test_a_refused_connection_is_unreachable(client):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(Unreachable, match="connection refused") as caught:
            client(url).get("/")
    assert url in caught.value.message
    assert caught.value.retry == "safe"


def test_a_host_that_has_no_address_is_unreachable(client):
    with pytest.raises(Unreachable, match="no such host"):
        client("http://no-such-host.invalid:1").get("/")


def test_a_connection_that_takes_too_long_is_unreachable(client):
    with socket.socket() as full:  # a queue of one that nobody empties
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        with pytest.raises(Unreachable, match="timed out"):
            client(f"http://127.0.0.1:{address[1]}", connect_s=0.1).get("/")
        for one in waiting:
            one.close()


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("http://127.0.0.1:99999", {}),
        ("http://[::1", {}),
        ("http://127.0.0.1:1", {"X": "a\nb"}),
    ],
)
def test_an_address_or_a_header_that_cannot_be_is_a_fault_of_the_configuration(
    client, url, headers
):
    with pytest.raises(ImagenError) as caught:
        client(url, headers=headers).get("/")
    assert isinstance(caught.value, (ConfigFault, Unreachable))
    assert "a\nb" not in caught.value.message


def cut(handler: Handler) -> None:
    """Close the connection without a word, and at once."""
    handler.cut()


def silent(handler: Handler) -> None:
    """Close the connection in good order, and without a word."""
    handler.close_connection = True


def truncated(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x" * 10)
    handler.close_connection = True


def broken_chunks(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"5\r\nhello\r\nzz\r\n")
    handler.close_connection = True


def no_http(handler: Handler) -> None:
    handler.wfile.write(b"hello, I am no web server\r\n\r\n")
    handler.close_connection = True


@pytest.mark.parametrize("reply", [cut, silent, truncated, broken_chunks, no_http])
def test_an_answer_that_is_cut_off_is_lost_and_may_have_been_obeyed(serve, client, reply):
    server = serve(reply)
    with pytest.raises(AnswerLost) as caught:
        client(server.url).post("/", {"a": 1})
    assert len(server.seen) == 1
    assert server.url in caught.value.message
    assert "\n" not in caught.value.message


def stalling(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x")
    handler.wfile.flush()
    time.sleep(9)


def test_a_server_that_says_nothing_is_given_up_after_the_time_out(serve, client):
    for reply in (stalling, lambda handler: time.sleep(9)):
        server = serve(reply)
        began = time.monotonic()
        with pytest.raises(AnswerLost, match="timed out"):
            client(server.url, read_s=0.1).get("/")
        assert time.monotonic() - began < 8


def test_a_body_that_trickles_in_is_given_up_too(serve, client, monkeypatch):
    def trickle(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            for _ in range(3000):
                handler.wfile.write(b"1\r\nx\r\n")
                time.sleep(0.005)
        except OSError:
            return

    monkeypatch.setattr("imagen.http.client.BODY_S", 0.3)
    ours = client(serve(trickle).url, read_s=1, connect_s=1)
    began = time.monotonic()
    with pytest.raises(AnswerLost, match="too slowly"):
        ours.get("/")
    assert time.monotonic() - began < 10


def test_a_body_that_is_too_large_is_not_read_to_its_end(serve, client):
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        try:
            while True:
                handler.wfile.write(b"x" * 2**20)
        except OSError:
            return

    with pytest.raises(ServerFault, match="more than 2 MiB"):
        client(serve(endless).url).get("/", limit=2 * 2**20)


def test_a_body_of_just_the_limit_is_read(serve, client):
    assert len(client(serve(answering(200, b"x" * 1000)).url).get("/", limit=1000).body) == 1000


def test_a_length_that_is_waited_for_in_vain_ends_at_the_time_out_of_bodies(
    serve, client, monkeypatch
):
    def trickle(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x")
                time.sleep(0.01)
        except OSError:
            return

    monkeypatch.setattr("imagen.http.client.BODY_S", 0.2)
    began = time.monotonic()
    with pytest.raises(AnswerLost, match="too slowly"):
        client(serve(trickle).url, read_s=1).get("/")
    assert time.monotonic() - began < 8


def late(handler: Handler) -> None:
    """Answer to who is still there."""
    time.sleep(1)
    with suppress(OSError):
        handler.send(200, b"{}")


def test_no_answer_is_waited_for_beyond_a_time_that_was_set_and_that_ends_with_its_block(
    serve, client
):
    ended = threading.Event()

    def silent_once(handler: Handler) -> None:
        if len(server.seen) == 1:
            ended.wait(60)
            return
        handler.send(200, b"{}")

    server = serve(silent_once)
    one, began = client(server.url), time.monotonic()
    with one.within(began + 0.5), pytest.raises(AnswerLost, match="timed out"):
        one.get("/")
    assert time.monotonic() - began < 30
    assert one.get("/").status == 200
    ended.set()


def test_the_body_of_a_redirect_is_limited_too(serve, client):
    def endless(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/")
        handler.end_headers()
        handler.close_connection = True
        try:
            while True:
                handler.wfile.write(b"x" * 2**20)
        except OSError:
            return

    with pytest.raises(ServerFault, match="more than 2 MiB"):
        client(serve(endless).url).get("/", limit=2 * 2**20)


# -- fetching from elsewhere -----------------------------------------------------------------------


def test_a_stranger_gets_none_of_our_headers_and_no_name_of_our_address(serve, client):
    theirs = serve(answering(200, b"data"))
    ours = client("http://me:pw@127.0.0.1:1", headers={"X-Token": "long-secret", "X-Own": "1"})
    assert ours.fetch(f"{theirs.url}/x", lambda url: False).body == b"data"
    assert not {"X-Token", "X-Own", "Authorization"} & {*theirs.seen[0].headers}
    assert theirs.seen[0].headers["User-Agent"] == "imagen"
    ours.fetch(f"{theirs.url}/x", lambda url: url.startswith(theirs.url))
    assert theirs.seen[1].headers["X-Token"] == "long-secret"


def test_a_fault_of_a_stranger_names_the_stranger_and_not_the_whole_address(serve, client):
    theirs = serve(answering(500, b"no"))
    with pytest.raises(ServerFault) as caught:
        client("http://127.0.0.1:1").fetch(f"{theirs.url}/x?signature=hunter2", lambda url: False)
    assert theirs.url in caught.value.message
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    "url", ["ftp://h/", "/x", "", "http://a b/", "http://a@b/", "http://a\\@b", "http://h:0/"]
)
def test_an_address_that_can_be_read_in_two_ways_is_not_fetched(client, url):
    asked: list[str] = []
    with pytest.raises(Rejected, match="cannot be fetched"):
        client("http://127.0.0.1:1").fetch(url, lambda one: bool(asked.append(one)))
    assert asked == []


def redirects(times: int, status: int = 302, body: bytes = b"data") -> Reply:
    """Lead on from /0 to /1 and so forth, so many times; then answer."""

    def reply(handler: Handler) -> None:
        number = int(handler.path.strip("/"))
        if number < times:
            handler.send(status, b"", Location=f"/{number + 1}")
        else:
            handler.send(200, body)

    return reply


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_file_is_fetched_from_where_a_redirect_leads(serve, client, status):
    ours = client(serve(redirects(1, status)).url)
    assert ours.fetch(f"{ours.url}/0", lambda _: True).body == b"data"
    with ours.flow(f"{ours.url}/0", lambda _: True, {}) as flow:
        assert b"".join(flow.parts) == b"data"


@pytest.mark.parametrize("status", [300, 304, 305, 306, 309])
def test_no_other_answer_that_names_a_place_is_followed(serve, client, status):
    server = serve(redirects(1, status))
    with pytest.raises(Rejected, match=f"answered {status}"):
        client(server.url).fetch(f"{server.url}/0", lambda _: True)
    assert len(server.seen) == 1


def test_five_redirects_are_followed_and_no_sixth(serve, client):
    server = serve(redirects(5))
    assert client(server.url).fetch(f"{server.url}/0", lambda _: True).body == b"data"
    server = serve(redirects(6))
    with pytest.raises(Rejected, match="redirects more than 5 times"):
        client(server.url).fetch(f"{server.url}/0", lambda _: True)
    assert len(server.seen) == 6


def test_a_redirect_to_nowhere_is_an_answer_of_its_own(serve, client):
    server = serve(answering(302, b""))
    with pytest.raises(Rejected, match="answered 302"):
        client(server.url).fetch(f"{server.url}/x", lambda _: True)


# -- a body as it comes ---------------------------------------------------------------------------


def test_a_flow_gives_the_bytes_as_they_were_sent_and_asks_for_no_other(serve, client):
    theirs = serve(answering(206, b"data", Content_Range="bytes 5-8/9"))
    there = {"Location": f"{theirs.url}/x"}
    server = serve(lambda handler: handler.send(302, b"elsewhere", **there))
    ours = client(server.url, headers={"Authorization": "Bearer mine"})
    asked = {"Range": "bytes=5-"}
    with ours.flow(f"{server.url}/y", lambda url: url.startswith(server.url), asked) as flow:
        assert (flow.status, flow.headers["content-range"]) == (206, "bytes 5-8/9")
        assert b"".join(flow.parts) == b"data"
    (first,), (last,) = server.seen, theirs.seen
    assert [seen.headers.get("Authorization") for seen in (first, last)] == ["Bearer mine", None]
    for seen in (first, last):
        assert seen.headers["Range"] == "bytes=5-"
        assert seen.headers["Accept-Encoding"] == "identity"


def flowing(server: http.Server, url: str) -> bytes:
    with server.flow(url, lambda _url: True, {}) as flow:
        return b"".join(flow.parts)


@pytest.mark.parametrize(
    ("status", "kind"), [(404, Rejected), (429, Throttled), (503, ServerFault)]
)
def test_a_flow_that_is_refused_is_an_error_that_hides_our_secret(serve, client, status, kind):
    server = serve(lambda handler: handler.send(status, b"you sent a-long-secret"))
    ours = client(server.url, headers={"Authorization": "Bearer a-long-secret"})
    with pytest.raises(kind, match=f"answered {status}") as caught:
        flowing(ours, server.url)
    assert "a-long-secret" not in caught.value.as_line()


def test_a_flow_that_is_encoded_is_refused(serve, client):
    server = serve(answering(200, b"x", Content_Encoding="gzip"))
    with pytest.raises(Rejected, match="encoded"):
        flowing(client(server.url), server.url)


@pytest.mark.parametrize("length", [5, 10**9])
def test_a_flow_that_is_cut_is_no_end(serve, client, length):
    def cut(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(b"data")
        handler.close_connection = True

    server = serve(cut)
    with pytest.raises(AnswerLost):
        flowing(client(server.url), server.url)


def test_a_flow_may_take_any_time_but_not_trickle(serve, client, monkeypatch):
    def steady(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "600000")
        handler.end_headers()
        part = b"x" * (20_000 if handler.path == "/steady" else 2_000)
        with suppress(OSError):
            for _ in range(600_000 // len(part)):
                handler.wfile.write(part)
                time.sleep(0.02)

    monkeypatch.setattr("imagen.http.client.BODY_S", 0.2)
    server = serve(steady)
    assert len(flowing(client(server.url), f"{server.url}/steady")) == 600_000
    with pytest.raises(AnswerLost, match="too slowly"):
        flowing(client(server.url), f"{server.url}/trickle")


def test_a_flow_that_is_silent_ends_at_the_time_out(serve, client):
    def silent(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "9")
        handler.end_headers()
        time.sleep(9)

    server = serve(silent)
    with pytest.raises(AnswerLost, match="timed out"):
        flowing(client(server.url, read_s=0.1), server.url)


# -- who we are ------------------------------------------------------------------------------------


@pytest.fixture
def netrc(tmp_path) -> None:
    path = Path(tmp_path / "home" / ".netrc")
    path.write_text("machine 127.0.0.1 login somebody password else\n")
    path.chmod(0o600)


@pytest.mark.usefixtures("netrc")
def test_netrc_does_not_replace_our_header(serve, client):
    server = serve(answering(200))
    client(server.url, headers={"Authorization": "Bearer mine"}).get("/")
    client(server.url).get("/")
    sent = [seen.headers.get("Authorization") for seen in server.seen]
    assert sent == ["Bearer mine", None]


def test_a_post_may_have_headers_and_a_time_out_of_its_own(serve, client):
    server = serve(late)
    ours = client(server.url, headers={"X-Mine": "yes"}, read_s=0.1)
    ours.post("/", {}, {"Prefer": "wait=1"}, 5)
    assert (server.seen[0].headers["Prefer"], server.seen[0].headers["X-Mine"]) == ("wait=1", "yes")
    with pytest.raises(AnswerLost):
        ours.post("/", {})
    assert "Prefer" not in server.seen[1].headers


def test_a_name_in_the_address_is_sent_and_never_told(serve, client):
    server = serve(answering(500, b"no"))
    url = server.url.replace("//", "//me:hunter2@")
    with pytest.raises(ServerFault) as caught:
        client(url).get("/")
    assert server.seen[0].headers["Authorization"].startswith("Basic ")
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("status", [200, 400, 402, 429, 500])
def test_a_secret_that_the_server_echoes_is_not_told(serve, client, status):
    def echo(handler: Handler) -> None:
        handler.send(status, f"you sent {handler.headers['Authorization']}".encode())

    headers = {"Authorization": "Bearer a-long-secret"}
    with pytest.raises(ImagenError) as caught:
        client(serve(echo).url, headers=headers).get("/").json_object()
    assert "a-long-secret" not in caught.value.as_line()
    assert b"a-long-secret" not in getattr(caught.value, "body", b"")


def test_a_secret_that_contains_another_is_hidden_whole(serve, client):
    secrets = {"X-Short": "abcdefgh", "X-Long": "abcdefgh-and-more", "X-Longer": "of-abcdefgh-too"}
    echo = answering(400, f"you sent {' '.join(secrets.values())}".encode())
    with pytest.raises(Rejected) as caught:
        client(serve(echo).url, headers=secrets).get("/")
    assert caught.value.body == b"you sent *** *** ***"


@pytest.mark.parametrize(
    ("promised", "came", "is_whole"),
    [
        *(("5", 5, True), ("5", 4, False), ("5", 6, True), ("0", 0, True), ("1", 0, False)),
        *(("", 0, True), ("soon", 0, True), ("-1", 0, True), ("9" * 19, 5, False)),
        ("9" * 5000, 5, True),
    ],
)
def test_a_body_that_is_shorter_than_its_length_is_no_answer(promised, came, is_whole):
    """Whatever the library below lets pass."""
    response = SimpleNamespace(
        headers={"Content-Length": promised}, raw=SimpleNamespace(tell=lambda: came)
    )
    with nullcontext() if is_whole else pytest.raises(BrokenAnswer, match="cut short"):
        _check_whole(response)


# -- heads that lie --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 HANDSHAKE_FAILURE CERTIFICATE_VERIFY_FAILED\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nthis is no header\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n folded: first\r\n\r\n{}",
        b"HTTP/1.1 99 Too Low\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: a",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 407 ProxyError: Unable to connect to proxy" + b"!" * 70_000,
        b"NewConnectionError: Name or service not known",
    ],
)
def test_a_head_that_cannot_be_read_is_a_lost_answer_whatever_it_says(serve, client, head):
    server = serve(lambda handler: handler.send_raw(head))
    with pytest.raises(AnswerLost) as caught:
        client(server.url).post("/", {})
    assert len(server.seen) == 1
    assert caught.value.__class__ is AnswerLost
    assert server.url in caught.value.message


def test_what_only_announces_an_answer_is_read_over(serve, client):
    text = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nA: b\r\n\r\n"
    early = b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"
    server = serve(lambda handler: handler.wfile.write(text + early + answer))
    ours = client(server.url)
    for _ in range(2):
        assert (ours.post("/", {}).status, len(server.seen)) == (201, _ + 1)
    assert server.connections == 1


# -- one deadline over all of it -------------------------------------------------------------------


def repeating(first: bytes, part: bytes, wait_s: float = 0.02) -> Reply:
    """Begin an answer, and go on with it until nobody listens."""

    def reply(handler: Handler) -> None:
        with suppress(OSError):
            handler.wfile.write(first)
            while True:
                handler.wfile.write(part)
                time.sleep(wait_s)

    return reply


OK = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {
    "status line": repeating(b"", b"H"),
    "header": repeating(OK, b"A"),
    "headers": repeating(OK, b"", 9),
    "100 Continue": repeating(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a flood of 100 Continue": repeating(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 999, 0),
    "103 Early Hints": repeating(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "body": repeating(OK + b"Content-Length: 999999\r\n\r\n", b"x"),
    "chunks": repeating(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "chunk": repeating(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "trailers": repeating(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n"),
    "body without a length": repeating(OK + b"\r\n", b"x"),
    "silence": repeating(b"", b"", 9),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_post_ends_within_its_limit_whatever_trickles_in(serve, client, what):
    server = serve(ENDLESS[what])
    ours = client(server.url, connect_s=0.3, read_s=9)
    assert ours.limit_s(0.5) == 0.8
    assert ours.limit_s() == 9.3
    began = time.monotonic()
    with pytest.raises(AnswerLost, match=r"timed out|too slowly"):
        ours.post("/", {}, read_s=0.5)
    assert 0.4 < time.monotonic() - began < 3
    assert len(server.seen) == 1


@pytest.mark.parametrize("what", ENDLESS)
def test_a_get_and_a_flow_end_too(serve, client, monkeypatch, what):
    monkeypatch.setattr("imagen.http.client.BODY_S", 0.5)
    ours = client(serve(ENDLESS[what]).url, connect_s=0.3, read_s=0.5)
    for ask in (lambda: ours.get("/"), lambda: flowing(ours, ours.url)):
        began = time.monotonic()
        with pytest.raises(AnswerLost):
            ask()
        assert time.monotonic() - began < 4


@pytest.mark.parametrize("what", ["header", "silence", "body"])
def test_a_time_that_was_set_ends_an_exchange_and_an_inner_one_does_not_move_it(
    serve, client, what
):
    ours = client(serve(ENDLESS[what]).url)
    began = time.monotonic()
    with ours.within(began + 0.5):
        with ours.within(began + 100), pytest.raises(AnswerLost):
            ours.get("/")
        assert 0.4 < time.monotonic() - began < 3
        with pytest.raises(AnswerLost):  # the outer one is still there
            ours.get("/")
        assert time.monotonic() - began < 3
    assert ours.until == float("inf")


def test_redirects_have_one_deadline_together(serve, client, monkeypatch):
    def onwards(handler: Handler) -> None:
        time.sleep(0.4)
        with suppress(OSError):
            handler.send(302, b"", Location=f"/{len(server.seen)}")

    server = serve(onwards)
    monkeypatch.setattr("imagen.http.client.BODY_S", 0.1)
    began = time.monotonic()
    with pytest.raises(AnswerLost):
        client(server.url, read_s=0.5, connect_s=0.1).fetch(f"{server.url}/x", lambda _: True)
    assert time.monotonic() - began < 5
    assert len(server.seen) in (2, 3)


def test_a_server_that_reads_nothing_ends_what_is_sent(client):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        ours = client(f"http://127.0.0.1:{deaf.getsockname()[1]}", read_s=0.5)
        body = "x" * 20_000_000
        for send in (
            lambda: ours.post("/", {"a": body}),
            lambda: ours.put("/", io.BytesIO(body.encode()), {}),
        ):
            began = time.monotonic()
            with pytest.raises(AnswerLost, match="timed out"):
                send()
            assert 0.4 < time.monotonic() - began < 4


def test_a_resolver_that_does_not_answer_ends_with_the_connection_time(client, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: over.wait(9) or [])
    began = time.monotonic()
    with pytest.raises(Unreachable, match="timed out"):
        client("http://render.test", connect_s=0.4).post("/", {})
    assert 0.3 < time.monotonic() - began < 3
    over.set()


def test_an_address_that_leads_nowhere_leaves_time_for_the_next(serve, client, monkeypatch):
    server = serve(answering(200))
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        rows = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
            for address in (full.getsockname(), ("127.0.0.1", server.port))
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: rows)
        ours = client("http://render.test", connect_s=1)
        assert ours.get("/").status == 200
        for each in waiting:
            each.close()


# -- what is packed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"data" * 99_999, mtime=0)),
        ("X-GZIP", gzip.compress(b"data" * 99_998, mtime=0) + gzip.compress(b"data", mtime=0)),
        ("deflate", zlib.compress(b"data" * 99_999)),
        ("identity", b"data" * 99_999),
    ],
)
def test_a_packed_body_is_unpacked(serve, client, encoding, body):
    server = serve(answering(200, body, Content_Encoding=encoding))
    ours = client(server.url)
    assert ours.get("/").body == b"data" * 99_999
    assert ours.post("/", {}).body == b"data" * 99_999
    assert server.connections == 1
    assert server.seen[0].headers["Accept-Encoding"] == "gzip"


PACKED = gzip.compress(b"data" * 999, mtime=0)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", PACKED[:-9]),
        ("gzip", PACKED[:30] + b"!" + PACKED[31:]),
        ("gzip", b"plain"),
        ("gzip, gzip", gzip.compress(PACKED, mtime=0)),
        ("br", b"plain"),
    ],
)
def test_a_body_that_cannot_be_unpacked_is_a_lost_answer(serve, client, encoding, body):
    server = serve(answering(200, body, Content_Encoding=encoding))
    with pytest.raises(AnswerLost, match=r"its body|cut short"):
        client(server.url).post("/", {})


def test_an_empty_body_may_claim_to_be_packed(serve, client):
    assert client(serve(answering(200, b"", Content_Encoding="gzip")).url).get("/").body == b""


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_small_body_that_unpacks_to_a_huge_one_ends_at_the_limit_and_fills_no_memory(
    serve, client, encoding
):
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(80)) + packer.flush()
    assert len(bomb) < 100_000
    server = serve(answering(200, bomb, Content_Encoding=encoding))
    tracemalloc.start()
    try:
        with pytest.raises(ServerFault, match="more than 4 MiB"):
            client(server.url).get("/", limit=4 * 2**20)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


# -- connections are kept, and a paid request goes over no stale one -------------------------------


@pytest.fixture
def idle(monkeypatch) -> Callable[[float], None]:
    """Let all connections have been idle for so many seconds more."""
    clock = [0.0]
    monkeypatch.setattr(connections, "boottime", lambda: clock[0])
    return lambda seconds: clock.append(clock.pop() + seconds)


def test_a_connection_is_kept_and_a_request_that_needs_a_fresh_one_gets_it(serve, client, idle):
    server = serve(answering(200, b"{}"))
    ours = client(server.url)
    for fresh in (False, True, True, False):
        ours.post("/", {}, fresh=fresh)
    assert server.connections == 1
    idle(1.1)
    ours.post("/", {})
    assert server.connections == 1
    idle(1.1)
    ours.post("/", {}, fresh=True)
    assert server.connections == 2


def test_a_stale_connection_that_looks_open_does_not_lose_the_answer_of_a_fresh_post(
    serve, client, idle
):
    ports: list[int] = []

    def once_a_connection(handler: Handler) -> None:
        if handler.client_address[1] in ports:
            return handler.cut()
        ports.append(handler.client_address[1])
        return handler.send(200, b"{}")

    server = serve(once_a_connection)
    ours = client(server.url)
    ours.get("/")
    idle(1.1)
    assert ours.post("/", {}, fresh=True).status == 200
    idle(1.1)
    with pytest.raises(AnswerLost):
        ours.post("/", {})


@pytest.mark.parametrize("status", [408, 413, 425, 429, 500, 502, 503, 504])
def test_nothing_is_sent_again_whatever_the_answer_asks_for(serve, client, status):
    server = serve(answering(status, b"", Retry_After="0", Connection="close"))
    with pytest.raises(ImagenError):
        client(server.url).post("/", {})
    time.sleep(0.1)
    assert len(server.seen) == 1


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trusted(tmp_path_factory, needs) -> Certificate:
    folder = tmp_path_factory.mktemp("tls")
    return certificate(folder, ["127.0.0.1", "localhost"], needs("openssl", "openssl"))


@pytest.fixture
def tls(trusted, monkeypatch) -> Certificate:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(trusted.ca))
    return trusted


def test_a_trusted_server_is_spoken_to_over_one_connection(serve, client, tls):
    server = serve(answering(200, b'{"a": 1}'), tls)
    ours = client(server.url)
    assert [ours.post("/", {}, fresh=True).json_object() for _ in range(3)] == [{"a": 1}] * 3
    assert server.connections == 1


def test_a_certificate_that_is_not_trusted_means_that_nothing_was_sent(serve, client, trusted):
    server = serve(answering(200, b"{}"), trusted)
    with pytest.raises(Unreachable, match="certificate is not trusted"):
        client(server.url).post("/", {})
    assert server.seen == []


def test_a_certificate_of_another_host_means_that_nothing_was_sent(serve, client, tls, monkeypatch):
    server = serve(answering(200, b"{}"), tls)
    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: rows)
    with pytest.raises(Unreachable, match="certificate is not trusted"):
        client("https://render.test").post("/", {})
    assert server.seen == []


def test_a_bundle_of_certificates_that_is_not_there_is_a_fault_of_the_configuration(
    serve, client, tls, monkeypatch
):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    server = serve(answering(200, b"{}"), tls)
    with pytest.raises(ConfigFault, match=r"/nowhere\.pem"):
        client(server.url).post("/", {})
    assert server.seen == []


def test_a_server_that_speaks_no_tls_was_sent_nothing(serve, client):
    server = serve(answering(200, b"{}"))
    with pytest.raises(Unreachable, match="does not speak TLS"):
        client(server.url.replace("http:", "https:")).post("/", {})
    assert server.seen == []


@pytest.mark.usefixtures("tls")
def test_a_handshake_that_never_ends_ends_with_the_connection_time(client):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        ours = client(f"https://127.0.0.1:{mute.getsockname()[1]}", connect_s=0.4)
        began = time.monotonic()
        with pytest.raises(Unreachable, match="timed out"):
            ours.post("/", {})
        assert 0.3 < time.monotonic() - began < 3


@pytest.mark.parametrize("what", [cut, silent, truncated])
def test_what_is_cut_after_the_request_over_tls_is_a_lost_answer(serve, client, tls, what):
    server = serve(what, tls)
    with pytest.raises(AnswerLost):
        client(server.url).post("/", {})
    assert len(server.seen) == 1


@pytest.mark.parametrize("what", ["header", "100 Continue", "body", "silence"])
def test_what_trickles_over_tls_ends_too(serve, client, tls, what):
    server = serve(ENDLESS[what], tls)
    began = time.monotonic()
    with pytest.raises(AnswerLost):
        client(server.url, connect_s=2).post("/", {}, read_s=0.5)
    assert time.monotonic() - began < 5
    assert len(server.seen) == 1


# -- addresses that are none of the internet -------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%lo", "fc00::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1"),
        *("64:ff9b::a00:1", "2002:7f00:1::", "2002:a00:1::1"),
    ],
)
def test_a_file_at_a_name_that_leads_inside_is_refused_before_anything_is_sent(
    serve, client, monkeypatch, address
):
    server = serve(answering(200, b"inside"))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    rows = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80)),
        (family, socket.SOCK_STREAM, 6, "", (address, server.port)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: rows)
    with pytest.raises(Rejected, match="is not on the internet"):
        client("http://api.example.com").fetch(
            f"http://files.example.com:{server.port}/x", lambda _: False
        )
    assert server.seen == []


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::1]", "[::ffff:7f00:1]"),
        *("localhost", "a.localhost", "LOCALHOST.", "printer", "printer.local", "db.internal"),
        *("169.254.169.254", "metadata.google.internal", "router.lan", "nas.home.arpa", "10.1.1.1"),
    ],
)
def test_a_file_at_a_host_that_is_local_by_its_name_is_refused_without_a_look(
    client, monkeypatch, host
):
    def look(*_args: Any, **_more: Any) -> list[Any]:
        raise AssertionError("looked up")

    monkeypatch.setattr(socket, "getaddrinfo", look)
    with pytest.raises(Rejected, match=r"not on the internet|cannot be fetched"):
        client("https://api.example.com").fetch(f"http://{host}/x", lambda _: False)


def test_the_servers_own_host_may_be_anywhere_and_a_redirect_from_it_may_not(
    serve, client, monkeypatch
):
    inside = serve(answering(200, b"inside"))
    there = {"Location": f"http://localhost:{inside.port}/x"}
    server = serve(lambda handler: handler.send(302, b"", **there))
    ours = client("http://127.0.0.1:1")
    assert ours.fetch(f"{inside.url}/x", lambda _: False).body == b"inside"
    with pytest.raises(Rejected, match="not on the internet"):
        ours.fetch(f"{server.url}/x", lambda _: False)
    assert len(inside.seen) == 1


def test_a_name_is_looked_up_once_and_connected_to_where_it_was_judged(serve, client, monkeypatch):
    good, bad = serve(answering(200, b"good")), serve(answering(200, b"bad"))
    answers = iter([good.port, bad.port])
    checked: list[str] = []

    def look(*_args: Any, **_more: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", next(answers)))]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    monkeypatch.setattr(addresses, "is_public", lambda text: not checked.append(text))
    ours = client("http://api.example.com")
    assert ours.fetch("http://files.example.com/x", lambda _: False).body == b"good"
    assert checked == ["127.0.0.1"]
    assert good.seen[0].headers["Host"] == "files.example.com"
    assert bad.seen == []


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_an_address_of_the_internet_is_public(address):
    assert addresses.is_public(address)
