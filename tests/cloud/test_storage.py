"""The Storage look-alike answers as the real one did, and fails as a test asks.

tests/data/storage/recorded.json holds what Supabase Storage was asked and what it said, in order.
Here all of it is asked again, once with rows in memory and once with those of a real PostgreSQL.
Ids, times and tokens differ, so they are masked; all else must be the same, to the byte.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from servers import postgres
from servers.gateway import AS_IT_IS
from servers.postgrest import token
from servers.storage import Storage
from servers.storage_wire import DATABASE_TIMEOUT, SLOW_DOWN

RECORDED = json.loads((Path(__file__).parents[1] / "data/storage/recorded.json").read_text())
EXCHANGES = {one["name"]: one for one in RECORDED["exchanges"]}
PNG = base64.b64decode(RECORDED["png"])
SECRET = "a-secret-of-the-tests-that-is-long-enough"
LATER = 4102444800  # the year 2100
DOWN = [name for name in EXCHANGES if "db-down" in name]
UP = [name for name in EXCHANGES if name not in DOWN]
BEFORE = {  # objects that were put there by what is not replayed: a move, a race
    "91-delete-one": "u1/moved.png",
    "101-upsert-header-True": "race/no.png",
}
KEYS = {
    "SERVICE_KEY": token(SECRET, role="service_role", exp=LATER),
    "ANON_KEY": token(SECRET, role="anon", exp=LATER),
    "USER": token(SECRET, role="authenticated", sub="00000000-0000-0000-0000-00000000000a"),
    "UNKNOWN_ROLE": token(SECRET, role="nobody_knows", exp=LATER),
    "WRONG_SECRET": token("another", role="service_role", exp=LATER),
    "EXPIRED": token(SECRET, role="service_role", exp=1),
}
MASKS = {
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": "<ID>",
    r"\d{4}-\d\d-\d\dT[\d:.]+Z": "<TIME>",
    r"eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+": "<JWT>",
    r"\w{3}, \d\d \w{3} \d{4} [\d:]+ GMT": "<DATE>",
}
BUCKET = {"name": "imagen-generated", "public": False}


def masked(text):
    for pattern, mask in MASKS.items():
        text = re.sub(pattern, mask, text)
    return text


def ask(storage, method, path, headers=None, body=None, who="SERVICE_KEY"):
    """Ask over HTTP; give status, headers in lower case, and the body."""
    connection = http.client.HTTPConnection(urlsplit(storage.front.url).netloc, timeout=10)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        heads = {"Authorization": f"Bearer {KEYS[who]}"} if headers is None else headers
        if isinstance(body, dict):
            body, heads = json.dumps(body).encode(), {**heads, "Content-Type": "application/json"}
        for name, value in heads.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, answer.read()
    finally:
        connection.close()


def put(storage, name, data=PNG, who="SERVICE_KEY", mime="image/png"):
    heads = {"Authorization": f"Bearer {KEYS[who]}", "Content-Type": mime}
    path = f"/object/imagen-generated/{name}"
    return ask(storage, "PUT", path, heads, data)


def form(size):
    """A form with a field and the PNG in it, padded to the size."""
    head = '--XBOUNDARYX\r\nContent-Disposition: form-data; name="cacheControl"\r\n\r\n3600\r\n'
    file = 'form-data; name=""; filename="multi.png"\r\nContent-Type: image/png'
    head += f"--XBOUNDARYX\r\nContent-Disposition: {file}\r\n\r\n"
    tail = b"\r\n--XBOUNDARYX--\r\n"
    return head.encode() + PNG.ljust(size - len(head) - len(tail), b"\0") + tail


def sent(body, headers):
    """The bytes that were sent: a number is how many there were."""
    if not isinstance(body, int):
        return b"" if body is None else body.encode()
    if "multipart" in headers.get("Content-Type", ""):
        return form(body)
    return PNG if body == len(PNG) else b"x" * body


class Replay:
    """Asks what was recorded, in order, and keeps the answers."""

    def __init__(self, storage):
        self.storage = storage
        self.keys = {**KEYS, "BAD": token("another", url="imagen-generated/u1/2026/a.png")}
        self.answers = {}

    def run(self, names):
        for name in names:
            if name in BEFORE:
                put(self.storage, BEFORE[name])
            if name == "70-signed-expired":
                self.storage.skew_s += 2
            self.answers[name] = self.ask(EXCHANGES[name]["request"])
            self.remember(self.answers[name][2])
            if name == "70-signed-expired":
                self.storage.skew_s = 0

    def ask(self, request):
        headers = {name: self.filled(value) for name, value in request["headers"].items()}
        body = sent(request["body"], headers)
        method = request["method"]
        has_body = method in ("POST", "PUT") or "Content-Type" in headers
        path = self.filled(request["path"])
        return ask(self.storage, method, path, headers, body if has_body else None)

    def filled(self, text):
        return re.sub(r"<(\w+)>", lambda found: self.keys[found[1]], text)

    def remember(self, body):
        if found := re.search(rb'"(signedURL|url)":"[^"]*token=([^"]+)"', body):
            kind = "SIGNED" if found[1] == b"signedURL" else "UPLOAD"
            self.keys[kind] = found[2].decode()


@pytest.fixture(scope="module", params=["memory", "PostgreSQL"])
def replayed(request):
    """What the look-alike answered to all that was recorded."""
    if request.param == "memory":
        return run_all(None)
    with request.getfixturevalue("cluster").database(postgres.BARE) as place:
        return run_all(place.dsn("authenticator"))


def run_all(dsn):
    with Storage(SECRET, dsn) as up, Storage(SECRET, "host=/there/is/none") as down:
        replays = Replay(up), Replay(down)
        replays[0].run(UP)
        replays[1].run(DOWN)
        return {**replays[0].answers, **replays[1].answers}


@pytest.mark.parametrize("name", EXCHANGES)
def test_it_answers_as_the_real_one_did(replayed, name):
    wanted = EXCHANGES[name]["answer"]
    status, headers, body = replayed[name]
    said = "<PNG>" if body == PNG else masked(body.decode())
    found = {key: masked(headers.get(key, "nothing")) for key in wanted["headers"]}
    assert (status, said) == (wanted["status"], wanted["body"])
    assert found == wanted["headers"]


def test_nearly_everything_that_was_recorded_is_replayed():
    assert len(EXCHANGES) == 105


@pytest.fixture
def storage():
    with Storage(SECRET) as running:
        ask(running, "POST", "/bucket", body=BUCKET)
        yield running


def names(storage, **body):
    found = ask(storage, "POST", "/object/list/imagen-generated", body={"prefix": "", **body})
    return [one["name"] for one in json.loads(found[2])]


# -- uploads ---------------------------------------------------------------------------------------


def test_an_upload_that_is_cut_off_leaves_nothing(storage, until):
    head = (
        "PUT /object/imagen-generated/cut.png HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"
        f"Authorization: Bearer {KEYS['SERVICE_KEY']}\r\nContent-Length: 5000\r\n\r\n"
    )
    place = urlsplit(storage.front.url)
    with socket.create_connection((place.hostname, place.port)) as client:
        client.sendall(head.encode() + b"x" * 2000)
        until(lambda: storage.front.asks("PUT"))
    until(lambda: not storage.front.connections)
    assert ask(storage, "HEAD", "/object/imagen-generated/cut.png")[0] == 400
    assert storage.objects() == {}


def test_an_upload_in_chunks_is_whole(storage):
    connection = http.client.HTTPConnection(urlsplit(storage.front.url).netloc, timeout=10)
    heads = {"Authorization": f"Bearer {KEYS['SERVICE_KEY']}", "Content-Type": "image/png"}
    path = "/object/imagen-generated/a.png"
    connection.request("PUT", path, iter([b"a" * 70_000, b"b"]), heads)
    assert connection.getresponse().status == 200
    connection.close()
    assert storage.objects() == {"a.png": b"a" * 70_000 + b"b"}


def test_a_form_gives_the_bytes_and_their_type(storage):
    data = b"\r\n--XB\r\n\x00\xff"
    part = b"Content-Disposition: form-data; name="
    body = b'--XBO\r\n%s"cacheControl"\r\n\r\n60\r\n' % part
    body += b'--XBO\r\n%s"file"; filename="a"\r\nContent-Type: image/webp\r\n\r\n' % part
    heads = {
        "Authorization": f"Bearer {KEYS['SERVICE_KEY']}",
        "Content-Type": "multipart/form-data; boundary=XBO",
    }
    path = "/object/imagen-generated/a.webp"
    ask(storage, "POST", path, heads, body + data + b"\r\n--XBO--\r\n")
    _, headers, found = ask(storage, "GET", path)
    assert found == data
    assert (headers["content-type"], headers["cache-control"]) == ("image/webp", "max-age=60")


def test_bytes_can_be_kept_in_a_folder(tmp_path):
    folder = tmp_path / "bytes"
    folder.mkdir()
    with Storage(SECRET, folder=folder) as storage:
        ask(storage, "POST", "/bucket", body=BUCKET)
        put(storage, "a.png", b"one")
        put(storage, "a.png", b"two")
        assert storage.objects() == {"a.png": b"two"}
        assert [path.read_bytes() for path in folder.iterdir()] == [b"two"]
        ask(storage, "DELETE", "/object/imagen-generated/a.png")
        assert list(folder.iterdir()) == []


# -- lists -----------------------------------------------------------------------------------------


def test_a_list_goes_by_folder_page_and_order(storage):
    for name in ("b.png", "a.png", "c/d.png", "c/e.png", "c/f/g.png"):
        put(storage, name)
    assert names(storage) == ["a.png", "b.png", "c"]
    assert names(storage, sortBy={"column": "name", "order": "desc"}) == ["c", "b.png", "a.png"]
    assert names(storage, limit=1, offset=1) == ["b.png"]
    assert names(storage, prefix="c") == ["d.png", "e.png", "f"]
    assert names(storage, prefix="c/f/") == ["g.png"]
    assert names(storage, prefix="c", search="e") == ["e.png"]
    by_time = {"column": "created_at", "order": "asc"}
    assert names(storage, sortBy=by_time) == ["c", "b.png", "a.png"]


def test_a_list_has_a_hundred_entries_unless_more_are_asked_for(storage):
    for number in range(101):
        put(storage, f"{number:03}.png")
    assert len(names(storage)) == 100
    assert len(names(storage, limit=1000)) == 101


# -- tokens ----------------------------------------------------------------------------------------


def test_a_token_that_says_it_is_not_signed_is_refused(storage):
    head, claims = (
        base64.urlsafe_b64encode(json.dumps(one).encode()).decode().rstrip("=")
        for one in ({"alg": "none"}, {"role": "service_role"})
    )
    heads = {"Authorization": f"Bearer {head}.{claims}."}
    assert b"AccessDenied" in ask(storage, "GET", "/object/imagen-generated/a.png", heads)[2]


def test_a_signed_upload_needs_its_own_token(storage):
    put(storage, "a.png")
    path = "imagen-generated/a.png"
    signed = ask(storage, "POST", f"/object/sign/{path}", body={"expiresIn": 60})[2]
    token_of_reader = json.loads(signed)["signedURL"].partition("token=")[2]
    url = f"/object/upload/sign/imagen-generated/b.png?token={token_of_reader}"
    assert b"InvalidSignature" in ask(storage, "PUT", url, {"Content-Type": "image/png"}, PNG)[2]


# -- faults ----------------------------------------------------------------------------------------


def test_it_fails_so_often_and_then_works(storage):
    storage.front.fail("PUT /object/", SLOW_DOWN, times=2)
    storage.front.fail("PUT /object/", DATABASE_TIMEOUT)
    assert [put(storage, "a.png")[0] for _ in range(4)] == [429, 429, 544, 200]
    assert storage.front.asks("PUT /object/imagen-generated/a.png") == 4


def test_it_cuts_the_connection_before_or_after_it_obeys(storage):
    for after, kept in ((False, {}), (True, {"a.png": PNG})):
        storage.front.fail("PUT", None, after=after)
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            put(storage, "a.png")
        assert storage.objects() == kept


def test_it_can_be_slow(storage):
    storage.front.fail("PUT", AS_IT_IS, wait_s=0.2)
    ended = threading.Event()
    threading.Thread(target=lambda: (put(storage, "a.png"), ended.set())).start()
    assert not ended.wait(0.1)
    assert ended.wait(5)
    assert storage.objects() == {"a.png": PNG}


def test_it_can_answer_without_reading_the_body(storage):
    storage.front.fail("PUT", DATABASE_TIMEOUT, unread=True)
    assert put(storage, "a.png")[0] == 544
    assert storage.objects() == {}
