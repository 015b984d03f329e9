"""Our HTTP through real proxies that cut at every stage: what was sent is known, never guessed.

The servers are reached by a name that only the proxy resolves: what arrives came through it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from imagen import http
from imagen.errors import AnswerLost, ImagenError, Rejected, ServerFault, Unreachable
from imagen.http import connections
from servers.answering import Answering, Handler
from servers.proxy import HOW, REFUSALS, Proxy
from servers.tls import Certificate, certificate

NAME = "render.test"
KINDS = ("http", "https")  # forwarded, and through a tunnel
SENT = ("before", "after", "head", "body")  # stages at which bytes of the request had left
UNSENT = ("connect", "handshake")  # of a tunnel
PUBLIC = "93.184.216.34"  # never connected to: the proxy says where it leads


@pytest.fixture(scope="module")
def tls(tmp_path_factory, needs) -> Certificate:
    names = [NAME, f"files.{NAME}", PUBLIC]
    return certificate(tmp_path_factory.mktemp("tls"), names, needs("openssl", "openssl"))


class Place:
    """A server, a proxy that knows it, and our client."""

    def __init__(self, origin: Answering, proxy: Proxy, server: http.Server) -> None:
        self.origin, self.proxy, self.server = origin, proxy, server


@pytest.fixture
def place(tls, monkeypatch) -> Iterator[Callable[..., Place]]:
    """Start a server and a proxy in front of it; gives them and a client that uses the proxy."""
    for name in ("all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls.ca))
    with ExitStack() as running:

        def start(
            kind: str,
            cut: str | None = None,
            reply: Callable[[Handler], None] = lambda handler: handler.send(200, b'{"a": 1}'),
            **options: Any,
        ) -> Place:
            origin = running.enter_context(Answering(reply, tls if kind == "https" else None))
            names: Mapping[str, tuple[str, int]] = dict.fromkeys(
                (NAME, f"files.{NAME}", PUBLIC), ("127.0.0.1", origin.port)
            )
            proxy = running.enter_context(Proxy(names, cut, **options))
            monkeypatch.setenv("http_proxy", proxy.url)
            monkeypatch.setenv("https_proxy", proxy.url)
            server = http.Server(f"{kind}://{NAME}", read_s=1.5, who="test server")
            running.callback(server.close)
            return Place(origin, proxy, server)

        yield start


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_goes_through_the_proxy_and_arrives_once(place, kind):
    here = place(kind)
    assert here.server.post("/x", {"b": 2}).json_object() == {"a": 1}
    assert [seen.body for seen in here.origin.seen] == [b'{"b": 2}']
    assert (here.proxy.forwarded, here.proxy.opened) == (1, 1)
    assert here.proxy.targets == [f"{NAME}:{443 if kind == 'https' else 80}"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("stage", SENT)
@pytest.mark.parametrize("kind", KINDS)
def test_once_the_request_has_left_a_cut_is_a_lost_answer_and_nothing_is_sent_again(
    place, kind, stage, how
):
    here = place(kind, f"{how} {stage}")
    with pytest.raises(AnswerLost) as caught:
        here.server.post("/", {})
    assert f"through the proxy at 127.0.0.1:{here.proxy.port}" in caught.value.message
    count = 0 if stage == "before" else 1
    assert (here.proxy.forwarded, len(here.origin.seen)) == (count, count)
    assert (len(here.proxy.targets), here.proxy.opened) == (1, 1)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("stage", UNSENT)
def test_a_tunnel_that_breaks_before_the_request_means_that_nothing_was_sent(place, stage, how):
    here = place("https", f"{how} {stage}")
    here.server.connect_s = 1
    with pytest.raises(Unreachable) as caught:
        here.server.post("/", {})
    assert f"through the proxy at 127.0.0.1:{here.proxy.port}" in caught.value.message
    assert (here.proxy.forwarded, len(here.origin.seen)) == (0, 0)
    assert len(here.proxy.targets) == 1


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_tunnel_that_is_refused_means_that_nothing_was_sent(place, refusal):
    here = place("https", refusal)
    with pytest.raises(Unreachable, match=rf"it answered {refusal.split()[1]} ") as caught:
        here.server.post("/", {})
    assert f"through the proxy at 127.0.0.1:{here.proxy.port}" in caught.value.message
    assert (here.proxy.forwarded, len(here.origin.seen)) == (0, 0)


@pytest.mark.parametrize(
    ("refusal", "kind", "proves"),
    [
        ("refuse 502", ServerFault, False),
        ("refuse 403", Rejected, False),
        ("refuse 407", Rejected, True),
    ],
)
def test_a_page_of_the_proxy_is_an_answer_and_only_407_proves_that_it_was_refused(
    place, refusal, kind, proves
):
    here = place("http", refusal)
    with pytest.raises(ImagenError) as caught:
        here.server.post("/", {})
    fault: Any = caught.value
    assert type(fault) is kind
    assert http.proves_refusal(fault.status, fault.body) is proves
    assert (here.proxy.forwarded, len(here.origin.seen)) == (0, 0)


def test_a_name_that_the_proxy_does_not_know_is_unreachable_through_a_tunnel(place):
    here = place("https")
    server = http.Server("https://nowhere.test", who="test server")
    with pytest.raises(Unreachable, match="502"):
        server.post("/", {})
    assert here.proxy.forwarded == 0
    server.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_proxy_is_named_without_its_password(place, monkeypatch, kind):
    here = place(kind)
    here.proxy.__exit__()
    url = here.proxy.url.replace("//", "//me:hunter2@")
    monkeypatch.setenv(f"{kind}_proxy", url)
    with pytest.raises(Unreachable, match="connection refused") as caught:
        here.server.post("/", {})
    assert f"through the proxy at 127.0.0.1:{here.proxy.port}" in caught.value.message
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_and_password_of_the_proxy_go_to_it_and_not_to_the_server(place, monkeypatch, kind):
    here = place(kind)
    monkeypatch.setenv(f"{kind}_proxy", here.proxy.url.replace("//", "//me:hunter2@"))
    here.server.post("/", {})
    if kind == "https":
        assert "Proxy-Authorization" not in here.origin.seen[0].headers
    assert here.proxy.credentials == ["Basic bWU6aHVudGVyMg=="]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_this_machine_is_asked_around_the_proxy(place, host):
    here = place("http")
    server = http.Server(f"http://{host}:{here.origin.port}", who="test server")
    assert server.post("/", {}).status == 200
    assert (here.proxy.targets, len(here.origin.seen)) == ([], 1)
    server.close()


@pytest.fixture
def idle(monkeypatch) -> Callable[[float], None]:
    """Let all connections have been idle for so many seconds more."""
    clock = [0.0]
    monkeypatch.setattr(connections, "boottime", lambda: clock[0])
    return lambda seconds: clock.append(clock.pop() + seconds)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_post_opens_a_new_connection_through_the_proxy_after_a_second(place, kind, idle):
    here = place(kind)
    for _ in range(2):
        here.server.post("/", {}, fresh=True)
    assert here.proxy.opened == 1
    idle(1.1)
    here.server.post("/", {})
    assert here.proxy.opened == 1
    idle(1.1)
    here.server.post("/", {}, fresh=True)
    assert here.proxy.opened == 2
    assert len(here.origin.seen) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_trickle_through_the_proxy_ends_in_time(place, kind):
    def trickle(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(200):
            handler.wfile.write(b"A")
            time.sleep(0.05)

    here = place(kind, reply=trickle)
    here.server.connect_s = 1
    began = time.monotonic()
    with pytest.raises(AnswerLost, match="too slowly"):
        here.server.post("/", {}, read_s=0.5)
    assert time.monotonic() - began < here.server.limit_s(0.5) + 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_fetched_through_the_proxy_but_none_that_is_local_by_its_name(place, kind):
    here = place(kind)
    for host in (NAME, f"files.{NAME}", PUBLIC):
        assert here.server.fetch(f"{kind}://{host}/x", lambda _: False).status == 200
    count = len(here.proxy.targets)
    for host in (
        "169.254.169.254",
        "10.0.0.1",
        "metadata.google.internal",
        "intranet",
        "2130706433",
    ):
        with pytest.raises(Rejected, match="not on the internet"):
            here.server.fetch(f"{kind}://{host}/x", lambda _: False)
    assert len(here.proxy.targets) == count
