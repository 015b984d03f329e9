"""Our HTTP, against a real server on this machine."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

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

Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says."""

    protocol_version = "HTTP/1.1"
    reply: Reply
    seen: list[SimpleNamespace]

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.seen.append(SimpleNamespace(path=self.path, headers=dict(self.headers), body=body))
        type(self).reply(self)

    def do_POST(self) -> None:
        self.do_GET()

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], SimpleNamespace]]:
    """Start a server that answers so; gives its url and what it has seen."""
    running: list[ThreadingHTTPServer] = []

    def start(reply: Reply) -> SimpleNamespace:
        seen: list[SimpleNamespace] = []
        handler = type("Ours", (Handler,), {"reply": staticmethod(reply), "seen": seen})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", seen=seen)

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


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
        (422, Rejected, "never"),
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


def test_a_rejection_keeps_its_status_and_its_body(serve, client):
    with pytest.raises(Rejected) as caught:
        client(serve(answering(400, b'{"error":"x"}')).url).get("/")
    assert (caught.value.status, caught.value.body) == (400, b'{"error":"x"}')


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


def test_a_connection_that_takes_too_long_is_unreachable(client, monkeypatch):
    monkeypatch.setattr(http, "CONNECT_S", 0.1)
    with socket.socket() as full:  # a queue of one that nobody empties
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        with pytest.raises(Unreachable, match="timed out"):
            client(f"http://127.0.0.1:{address[1]}").get("/")
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
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()
    handler.close_connection = True
    handler.wfile = SimpleNamespace(flush=lambda: None, close=lambda: None, closed=False)


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
    time.sleep(0.6)


def test_a_server_that_says_nothing_is_given_up_after_the_time_out(serve, client):
    for reply in (stalling, lambda handler: time.sleep(0.6)):
        server = serve(reply)
        began = time.monotonic()
        with pytest.raises(AnswerLost, match="timed out"):
            client(server.url, read_s=0.1).get("/")
        assert time.monotonic() - began < 0.5


def test_a_body_that_trickles_in_is_given_up_too(serve, client, monkeypatch):
    def trickle(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            for _ in range(500):
                handler.wfile.write(b"1\r\nx\r\n")
                time.sleep(0.005)
        except OSError:
            return

    hours = iter(range(0, 10**9, 30))
    monkeypatch.setattr(http, "time", SimpleNamespace(monotonic=lambda: next(hours)))
    with pytest.raises(AnswerLost, match="too slowly"):
        client(serve(trickle).url).get("/")


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

    monkeypatch.setattr(http, "BODY_S", 0.2)
    began = time.monotonic()
    with pytest.raises(AnswerLost, match="too slowly"):
        client(serve(trickle).url, read_s=0.1).get("/")
    assert time.monotonic() - began < 1


def late(handler: Handler) -> None:
    """Answer to who is still there."""
    time.sleep(0.3)
    with suppress(OSError):
        handler.send(200, b"{}")


def test_no_answer_is_waited_for_beyond_a_time_that_was_set_and_that_ends_with_its_block(
    serve, client
):
    server = serve(late)
    one, began = client(server.url), time.monotonic()
    with one.within(time.monotonic() + 0.1), pytest.raises(AnswerLost, match="timed out"):
        one.get("/")
    assert time.monotonic() - began < 0.25
    assert one.get("/").status == 200


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

    monkeypatch.setattr(http, "BODY_S", 0.2)
    server = serve(steady)
    assert len(flowing(client(server.url), f"{server.url}/steady")) == 600_000
    with pytest.raises(AnswerLost, match="too slowly"):
        flowing(client(server.url), f"{server.url}/trickle")


def test_a_flow_that_is_silent_ends_at_the_time_out(serve, client):
    def silent(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "9")
        handler.end_headers()
        time.sleep(0.5)

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


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate", Unreachable),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", Unreachable),
        ("[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC] bad record mac", AnswerLost),
    ],
)
def test_of_the_faults_of_tls_only_those_of_the_handshake_mean_that_nothing_was_sent(
    client, monkeypatch, says, kind
):
    def fail(*_args: Any, **_more: Any) -> None:
        raise requests.exceptions.SSLError(says)

    monkeypatch.setattr(requests.Session, "send", fail)
    with pytest.raises(kind):
        client("https://127.0.0.1:1").post("/prompt", {})
