"""What an answer of a server means, and what it means that none came: without a server."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
import time
from typing import Any

import pytest
import urllib3.exceptions
from requests.exceptions import ConnectionError as RequestsConnectionError

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
from imagen.http.exchange import BrokenAnswer, Exchange, Stage
from imagen.http.responses import Answer, excerpt, judged, lost, origin, secrets

WHERE = "http://h:1"
LOGIN = "log in there"


def error_of(status: int, body: bytes = b"no", hidden: Any = (), **headers: str) -> ImagenError:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    with pytest.raises(ImagenError) as caught:
        judged(Answer(status, fields, body, hidden, LOGIN), "server", WHERE)
    return caught.value


# -- statuses --------------------------------------------------------------------------------------

SAFE_TO_REPEAT = {408, 423, 425}
OF_THE_SETUP = {*range(300, 400), 401, 402, 404, 405, 407}


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_a_status_from_200_to_299_is_an_answer(status):
    answer = Answer(status, {}, b"")
    assert judged(answer, "server", WHERE) is answer


def test_every_other_status_has_its_error_and_says_who_is_to_blame():
    for status in range(300, 600):
        error = error_of(status, Retry_After="7")
        kind = {402: OutOfCredit, 429: Throttled}.get(status, Rejected)
        if status >= 500 or status in SAFE_TO_REPEAT:
            kind = ServerFault
        assert type(error) is kind, status
        assert (error.as_record("t").get("scope") == "setup") is (status in OF_THE_SETUP), status
        may_wait = kind in (ServerFault, Throttled)
        assert getattr(error, "retry_after_s", None) == (7 if may_wait else None), status
        assert (error.hint == LOGIN) is (status == 401), status
        assert error.message == f"the server at {WHERE} answered {status}: no"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("-1", 0),
        ("1e3", 1000),
        ("1e999", None),
        ("-inf", None),
        ("nan", None),
        ("", None),
    ],
)
def test_how_long_to_wait_is_a_finite_number_that_is_not_below_nothing(text, seconds):
    assert error_of(503, Retry_After=text).retry_after_s == seconds


@pytest.mark.parametrize("status", [300, 301, 307, 399])
@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://login.example/a/b", "https://login.example/a/b"),
        ("https://login.example/a?token=abcdefg#x", "https://login.example/a"),
        ("https://me:hunter2@login.example/a", "https://login.example/a"),
        ("https://a@b@login.example", "https://login.example"),
        ("/login?next=/x", "/login"),
        ("login@home#top", "login@home"),
        ("https://h/my-long-secret/x", "https://h/***/x"),
        ("/caf\udce9", "/caf?"),
    ],
)
def test_a_redirect_says_where_it_leads_and_no_secret_in_it(status, location, shown):
    error = error_of(status, b" \n", {"my-long-secret"}, Location=location)
    assert error.message == f"the server at {WHERE} answered {status}: to {shown}"
    assert error.hint == LOGIN
    error = error_of(status, b"moved", {"my-long-secret"}, Location=location)
    assert error.message.endswith(f": to {shown}: moved")


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_an_address_beside_another_status_is_not_where_it_leads(status):
    error = error_of(status, Location="https://elsewhere.example")
    assert "elsewhere" not in error.message


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b"<html>", LOGIN),
        (b" \r\n\t<!doctype html>", LOGIN),
        (b"", None),
        (b"[]", None),
        (b"x<html>", None),
    ],
)
def test_a_page_in_place_of_json_says_who_may_have_sent_it(body, hint):
    with pytest.raises(ServerFault, match="no JSON object") as caught:
        Answer(200, {}, body, (), LOGIN).json_object()
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("headers", "hidden"),
    [
        ({"Authorization": "Bearer a-token"}, {"Bearer a-token", "a-token"}),
        ({"Authorization": "Bearer"}, set()),
        ({"Cookie": "a=1; session=abcdef"}, {"a=1; session=abcdef", "session=abcdef"}),
        ({"X-Short": "12345"}, set()),
        ({"X-Key": "123456"}, {"123456"}),
    ],
)
def test_the_secrets_of_headers_are_their_values_and_the_words_in_them(headers, hidden):
    assert secrets(headers) == hidden


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("HTTP://H:1/p?q", "http://h:1"),
        ("https://me:pass@h/p", "https://h"),
        ("https://a@b@h:8443", "https://h:8443"),
    ],
)
def test_the_origin_of_an_address_is_its_server_without_a_name(url, server):
    assert origin(url) == server


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "(nothing)"),
        (b" \n\t", "(nothing)"),
        (b"a\n b\tc", "a b c"),
        (b"x" * 10, "x" * 10),
        (b"x" * 11, "x" * 9 + "…"),
        ("ü".encode() * 11, "ü" * 9 + "…"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_the_excerpt_of_a_body_is_one_line_of_its_start(body, text):
    assert excerpt(body, 10) == text


# -- no answer -------------------------------------------------------------------------------------

SENT = [stage for stage in Stage if stage > Stage.HANDSHAKE]
NOT_SENT = [stage for stage in Stage if stage <= Stage.HANDSHAKE]


def lost_at(
    stage: Stage, fault: Exception, proxy: str | None = None, ends_in_s: float = 60
) -> ImagenError:
    now = time.monotonic()
    exchange = Exchange(now + 60, 60, now + ends_in_s, stage=stage, proxy=proxy)
    return lost(fault, exchange, "server", WHERE)


def wrapped(cause: Exception) -> Exception:
    """Wrap a fault as urllib3 and requests do."""
    inner = urllib3.exceptions.ProtocolError("Connection aborted.", cause)
    return RequestsConnectionError(inner)


FAULTS = [
    *(ValueError("x"), UnicodeError("x"), OSError("x"), KeyError("x"), TimeoutError("x")),
    *(ConnectionRefusedError("x"), ssl.SSLError("x"), socket.gaierror("x"), BrokenAnswer("x")),
]


@pytest.mark.parametrize("stage", SENT)
@pytest.mark.parametrize("fault", FAULTS, ids=repr)
@pytest.mark.parametrize("wrap", [lambda fault: fault, wrapped], ids=["bare", "wrapped"])
def test_whatever_ends_an_exchange_once_a_byte_may_have_left_the_answer_is_lost(stage, fault, wrap):
    assert type(lost_at(stage, wrap(fault))) is AnswerLost


@pytest.mark.parametrize("stage", NOT_SENT)
@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_before_any_byte_has_left_no_answer_is_lost(stage, fault):
    error = lost_at(stage, wrapped(fault))
    assert type(error) in (Unreachable, ConfigFault)
    unusable = isinstance(fault, ValueError) and (
        stage <= Stage.CONNECTING or isinstance(fault, UnicodeError)
    )
    assert (type(error) is ConfigFault) is unusable


@pytest.mark.parametrize("stage", [Stage.PREPARED, Stage.CONNECTING, Stage.HANDSHAKE])
def test_certificates_that_cannot_be_read_are_a_fault_of_the_configuration(stage):
    error = lost_at(stage, OSError("no such bundle"))
    assert type(error) is ConfigFault
    assert error.message == f"cannot ask the server at {WHERE}: no such bundle"


@pytest.mark.parametrize("stage", [Stage.SENDING, Stage.ANSWERING, Stage.TUNNEL])
def test_the_proxy_is_named_where_there_is_one(stage):
    assert f"{WHERE} through the proxy at p:3128" in lost_at(stage, KeyError("x"), "p:3128").message
    assert "proxy" not in lost_at(stage, KeyError("x")).message


def test_what_a_proxy_answers_in_place_of_a_tunnel_is_told():
    fault = wrapped(OSError("Tunnel connection failed: 407 Who are you?"))
    error = lost_at(Stage.TUNNEL, fault, "p:3128")
    assert type(error) is Unreachable
    assert error.message.endswith("through the proxy at p:3128: it answered 407 Who are you?")
    elsewhere = lost_at(Stage.HANDSHAKE, fault, "p:3128")
    assert "it answered" not in elsewhere.message


@pytest.mark.parametrize(
    ("stage", "ends_in_s", "fault", "text"),
    [
        (Stage.SENDING, -1, TimeoutError(), "takes what is sent too slowly"),
        (Stage.ANSWERING, -1, TimeoutError(), "answers too slowly"),
        (Stage.ANSWERING, -1, ConnectionResetError(), ": connection reset"),
        (Stage.ANSWERING, 60, TimeoutError(), ": timed out"),
        (Stage.AWAITING, -1, TimeoutError(), ": timed out"),
    ],
)
def test_only_what_still_moves_at_the_end_of_its_time_is_called_slow(stage, ends_in_s, fault, text):
    assert lost_at(stage, wrapped(fault), ends_in_s=ends_in_s).message.endswith(text)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (socket.gaierror("x"), "no such host"),
        (TimeoutError("x"), "timed out"),
        (urllib3.exceptions.ReadTimeoutError(None, "/", "x"), "timed out"),
        (ConnectionRefusedError("x"), "connection refused"),
        (http.client.RemoteDisconnected("x"), "the connection was closed"),
        (ConnectionResetError("x"), "connection reset"),
        (BrokenPipeError("x"), "the connection was cut"),
        (ssl.SSLCertVerificationError("x"), "its certificate is not trusted"),
        (ssl.SSLEOFError("x"), "the connection was closed"),
        (ssl.SSLError("x"), "it does not speak TLS as expected"),
        (http.client.IncompleteRead(b""), "the body was cut short"),
        (http.client.BadStatusLine("x"), "the answer is not HTTP"),
        (urllib3.exceptions.InvalidHeader("x"), "its headers contradict each other"),
        (OSError(errno.EHOSTUNREACH, "x"), "no route to the host"),
        (OSError(errno.ENETUNREACH, "x"), "the network is unreachable"),
        (BrokenAnswer("it was packed badly"), "it was packed badly"),
        (RuntimeError("x"), "ConnectionError"),
    ],
    ids=repr,
)
def test_the_reason_is_told_by_the_innermost_fault(fault, reason):
    assert lost_at(Stage.AWAITING, wrapped(fault)).message.endswith(f": {reason}")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda fault: urllib3.exceptions.MaxRetryError(None, "/", fault),
        lambda fault: wrapped(urllib3.exceptions.MaxRetryError(None, "/", fault)),
        lambda fault: urllib3.exceptions.ProtocolError(fault, "a text behind it"),
        lambda fault: TimeoutError(wrapped(fault)),
    ],
)
def test_the_innermost_fault_counts_whatever_has_wrapped_it(wrap):
    error = lost_at(Stage.AWAITING, wrap(BrokenPipeError()))
    assert error.message.endswith(": the connection was cut")


def test_a_secret_stands_in_no_text_that_is_shown():
    answer = Answer(200, {}, b"you sent a-secret", {"a-secret"})
    assert (answer.for_people(), answer.hide("a-secret!")) == (b"you sent ***", "***!")
    error = error_of(400, b"you sent a-secret", {"a-secret"}, X_Echo="a-secret")
    assert "a-secret" not in f"{error.message} {error.body!r} {error.headers}"
