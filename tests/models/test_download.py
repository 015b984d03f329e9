"""One file from its source to its final name: whatever the source does, whenever we are killed."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagen.errors import FileFault, ImagenError, Rejected, Unreachable
from imagen.files import atomic
from imagen.models import download
from imagen.models import files as model_files
from imagen.models.download import Sought, goes_on
from imagen.models.files import WrongFile
from imagen.models.source import Hub, Offer
from imagen.workflows.template import Model
from servers.filehost import Fault, FileHost

BYTES = random.Random(7).randbytes(40_000)
SHA256 = hashlib.sha256(BYTES).hexdigest()
PATH = "/lab/model/resolve/main/a.safetensors"
CUT = Fault(cut_after=15_000)


@pytest.fixture
def host() -> Iterator[FileHost]:
    with FileHost() as found:
        found.put(PATH, BYTES)
        yield found


class Getting:
    """Fetches a file from a host into a folder, and keeps what was said meanwhile."""

    def __init__(self, host: FileHost, folder: Path) -> None:
        self.host = host
        self.path = folder / "vae" / "a.safetensors"
        self.notes: list[str] = []
        self.told: list[tuple[int, int | None]] = []

    def __call__(self, *sources: str, patience_s: float = 5, **known: Any) -> str | None:
        facts = {"size": len(BYTES), "sha256": SHA256, **known}
        model = Model("a.safetensors", "vae", sources or (self.host.url + PATH,), **facts)
        with closing(Hub(self.host.url, patience_s=patience_s)) as hub:
            tell = lambda *done: self.told.append(done)  # noqa: E731
            return download.fetch(model, self.path, hub, tell, self.notes.append)

    def left(self) -> list[str]:
        """Give the names in the folder."""
        return sorted(path.name for path in self.path.parent.iterdir())

    def is_whole(self) -> bool:
        """Whether the file is there, and nothing else."""
        return self.left() == ["a.safetensors"] and self.path.read_bytes() == BYTES

    def leave(self, data: bytes, **about: Any) -> None:
        """Leave a part there, as an earlier run would."""
        self.path.parent.mkdir()
        part = download.Part(self.path)
        part.begin({"source": self.host.url + PATH, **about})
        part.add(data)
        part.close()


@pytest.fixture
def get(host: FileHost, tmp_path: Path) -> Getting:
    return Getting(host, tmp_path)


UNKNOWN: dict[str, Any] = {"size": None, "sha256": None}
TAG = f'"{SHA256[:16]}"'


# -- whatever the source does ----------------------------------------------------------------------


def test_it_gives_the_address_and_tells_how_far_it_is(get, host):
    assert get() == host.url + PATH
    assert get.is_whole()
    assert get.told[-1] == (len(BYTES), len(BYTES))
    assert get() is None, "it is there"


@pytest.mark.parametrize("known", [{}, UNKNOWN])
@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_one_is_finished(get, host, known, lengths, ranges):
    host.lengths, host.ranges = lengths, ranges
    host.faults = [CUT]
    if known and not lengths:
        with pytest.raises(Rejected, match="how large"):
            get(**known)
        return
    get(**known)
    assert get.is_whole()
    assert host.ranges_asked() == [None, "bytes=15000-"]


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_without_a_tag_to_trust_only_a_known_sha256_lets_it_go_on(get, host, tag):
    host.tags[PATH] = tag
    host.faults = [CUT, Fault(), CUT]
    get()
    get.path.unlink()
    get(**UNKNOWN)
    assert get.is_whole()
    assert host.ranges_asked() == [None, "bytes=15000-", None, None]


@pytest.mark.parametrize("known", [{}, UNKNOWN])
def test_a_source_that_changes_while_it_is_cut_is_fetched_anew(get, host, known):
    host.files[PATH] = BYTES[::-1]
    host.faults = [CUT, Fault(silent_s=0.2)]

    def change(*done: Any) -> None:
        host.files[PATH] = BYTES

    get.told = type("Told", (list,), {"append": change})()
    get(**known)
    assert get.is_whole()
    assert host.ranges_asked() == [None, "bytes=15000-"]
    assert [headers["If-Range"] for _, headers in host.asked][1] not in (None, TAG)


def test_a_host_that_ignores_if_range_is_found_out_by_its_tag(get, host):
    get.leave(b"old" * 5000, tag='"old"', size=len(BYTES))
    host.faults = [Fault(start=15_000)]
    get(**UNKNOWN)
    assert get.is_whole()
    assert host.ranges_asked() == ["bytes=15000-", None]


def test_another_source_goes_on_with_what_is_there_when_the_sha256_is_known(get, host):
    host.put("/mirror", BYTES)
    get.leave(BYTES[:15_000], tag=TAG)
    get(f"{host.url}/mirror")
    assert get.is_whole()
    assert host.ranges_asked() == ["bytes=15000-"]
    assert host.asked[0][1]["If-Range"] is None


def test_another_source_begins_anew_when_it_is_not(get, host):
    host.put("/mirror", BYTES)
    get.leave(BYTES[:15_000], tag=TAG)
    get(f"{host.url}/mirror", **UNKNOWN)
    assert get.is_whole()
    assert host.ranges_asked() == [None]


def test_another_source_is_tried_where_one_refuses(get, host):
    assert get(f"{host.url}/gone", host.url + PATH) == host.url + PATH
    assert get.is_whole()
    (note,) = get.notes
    assert "404" in note


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(status=404), "answered 404"),
        (Fault(status=301), "answered 301"),
        (Fault(status=204), "answers 204"),
        (Fault(status=206), "answers 206"),
        (Fault(length=len(BYTES) + 1), f"of {len(BYTES) + 1} bytes, not {len(BYTES)}"),
        (Fault(length=9), f"of 9 bytes, not {len(BYTES)}"),
        (Fault(status=206, headers={"Content-Range": f"bytes 0-8/{'9' * 5000}"}), "answers 206"),
        (Fault(length="9" * 5000), "answers 200"),  # type: ignore[arg-type]
        (Fault(start=5), "another part"),
        (Fault(start=5, total=9), "of 9 bytes"),
        (Fault(status=200, headers={"Content-Encoding": "gzip"}), "encoded"),
        (Fault(status=416), "answered 416"),
    ],
)
def test_what_a_source_refuses_or_mistakes_ends_it_and_leaves_nothing(get, host, fault, says):
    host.faults = [fault, fault]
    with pytest.raises(ImagenError, match=says) as caught:
        get()
    assert (caught.value.exit_status, get.left(), get.notes) == (1, [], [])


def test_a_source_that_sends_more_than_it_should_is_stopped(get, host):
    host.lengths = False
    host.put(PATH, BYTES + b"x")
    with pytest.raises(WrongFile, match=f"more than {len(BYTES)} bytes"):
        get()
    assert not get.path.exists()


def test_other_bytes_than_the_known_ones_are_thrown_away_and_not_asked_for_again(get, host):
    host.put(PATH, BYTES[::-1])
    with pytest.raises(WrongFile, match=f"not {SHA256}"):
        get()
    assert get.left() == []
    assert len(host.asked) == 1, "the same source would send the same again"


def test_a_link_where_the_part_goes_is_not_followed(get, tmp_path):
    """A models folder may be shared: whoever fetches must not lose a file of theirs."""
    mine = tmp_path / "mine"
    mine.write_bytes(b"precious")
    get.path.parent.mkdir()
    model_files.part_of(get.path).symlink_to(mine)
    with pytest.raises(ImagenError, match=r"symbolic links: .*\.part"):
        get()
    assert (mine.read_bytes(), get.path.exists()) == (b"precious", False)


def test_a_part_that_a_crash_spoiled_is_found_out_and_fetched_anew(get, host):
    get.leave(bytes(15_000), tag=TAG, size=len(BYTES))
    get()
    assert get.is_whole()
    assert host.ranges_asked() == ["bytes=15000-", None]


@pytest.mark.parametrize("known", [{}, UNKNOWN])
@pytest.mark.parametrize("size", [len(BYTES), len(BYTES) + 1])
def test_a_part_with_all_bytes_or_more_is_no_trouble(get, host, size, known):
    get.leave((BYTES + b"x")[:size], tag=TAG, size=len(BYTES))
    get(**known)
    assert get.is_whole()
    assert host.ranges_asked() == ([] if size == len(BYTES) else [f"bytes={size}-", None])


@pytest.mark.parametrize("about", [b"", b"[]", b"{", b'{"source": 7, "tag": [], "size": "x"}'])
def test_what_stands_beside_a_part_may_be_anything(get, host, about):
    get.leave(BYTES[:15_000])
    get.path.with_name(".a.safetensors.part.json").write_bytes(about)
    get()
    assert get.is_whole()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500),
        Fault(status=503, headers={"Retry-After": "0"}),
        Fault(status=429, headers={"Retry-After": "0.1"}),
        Fault(cut_after=0),
        Fault(cut_after=10),
    ],
)
def test_a_transient_fault_is_waited_out(get, host, fault):
    host.faults = [fault, fault]
    get()
    assert get.is_whole()
    (note,) = get.notes
    assert note.endswith("; trying again"), "people are told why they wait, once"


def test_a_source_that_stays_away_is_a_temporary_fault_and_the_part_stays(get, host):
    get.leave(BYTES[:15_000], tag=TAG)
    with pytest.raises(Unreachable) as caught:
        get("http://127.0.0.1:9/a", patience_s=0.5)
    assert caught.value.exit_status == 75
    assert "goes on where it stopped" in str(caught.value.hint)
    assert model_files.part_of(get.path).stat().st_size == 15_000


def test_an_answer_of_nothing_is_not_asked_for_for_ever(get, host):
    host.put(PATH, b"")
    with pytest.raises(ImagenError):
        get(patience_s=0.5, **UNKNOWN)


def test_after_a_source_that_stays_away_the_next_file_is_asked_for_once(get, tmp_path):
    hub = Hub("http://127.0.0.1:9", patience_s=2)
    model = Model("a.safetensors", "vae", ("http://127.0.0.1:9/a",))
    for _ in range(2):
        with pytest.raises(Unreachable):
            download.fetch(model, get.path, hub, lambda *_: None, get.notes.append)
    assert len(get.notes) == 1
    hub.close()


def test_no_room_is_told_before_the_first_byte(get, host):
    host.faults = [Fault(length=2**60)]
    with pytest.raises(FileFault, match="no room"):
        get(**UNKNOWN)
    assert get.left() == []


def test_what_came_up_meanwhile_is_not_touched_and_the_part_stays(get, tmp_path):
    get.leave(BYTES[:15_000], tag=TAG)
    get.path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(WrongFile, match="no file stands at"):
        get()
    assert get.path.is_symlink()
    assert model_files.part_of(get.path).stat().st_size == 15_000


@given(st.lists(st.integers(0, len(BYTES)), max_size=6), st.booleans(), st.booleans())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_wherever_it_is_cut_the_bytes_are_right(monkeypatch, tmp_path_factory, cuts, ranges, known):
    monkeypatch.setattr(download.retry, "in_time", lambda call, _patience: again(call))
    with FileHost() as host:
        host.put(PATH, BYTES)
        host.ranges = ranges
        host.faults = [Fault(cut_after=cut) for cut in cuts]
        get = Getting(host, tmp_path_factory.mktemp("cuts"))
        get(**({} if known else UNKNOWN))
        assert get.is_whole()
        if ranges:
            assert len(host.asked) <= 1 + len(cuts)


def again(call: Callable[[float], bool]) -> bool:
    while True:
        with suppress(ImagenError):
            return call(0)


# -- which bytes go on -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "found", "known", "yes"),
    [
        ({"source": "u", "tag": "t", "size": 9}, Offer(5, 9, "t"), False, True),
        ({"source": "u", "tag": "t", "size": 9}, Offer(5, None, "t"), False, True),
        ({"source": "u", "tag": "t", "size": 9}, Offer(5, 9, "other"), True, False),
        ({"source": "u", "tag": "t", "size": 9}, Offer(5, 8, "t"), True, False),
        ({"source": "u", "tag": "t", "size": 9}, Offer(4, 9, "t"), True, False),
        ({"source": "u", "tag": "t", "size": 9}, Offer(5, 9, None), True, True),
        ({"source": "u", "tag": "t", "size": 9}, Offer(5, 9, None), False, False),
        ({"source": "other", "tag": "t", "size": 9}, Offer(5, 9, "x"), True, True),
        ({"source": "other", "tag": "t", "size": 9}, Offer(5, 9, "t"), False, False),
        ({}, Offer(5, 9, "t"), True, True),
        ({}, Offer(5, 9, "t"), False, False),
    ],
)
def test_what_goes_on_is_the_rest_of_the_very_file(tmp_path, about, found, known, yes):
    part = download.Part(tmp_path / "a")
    part.begin(about)
    part.add(b"12345")
    assert goes_on(part, found, Sought("u", Model("a", sha256=SHA256 if known else None))) is yes
    part.close()


# -- whenever we are killed ------------------------------------------------------------------------


STEPS: list[tuple[Any, str]] = [
    *((os, name) for name in ("fsync", "link", "replace", "mkdir")),
    *((Path, name) for name in ("unlink", "replace", "open")),
    *((download.Part, name) for name in ("begin", "add", "remove", "hash")),
    *((atomic, name) for name in ("publish", "promote", "sync_folder")),
]


def killed_at(step: int, get: Getting, **known: Any) -> bool:
    """Fetch in a process that dies at its nth step; tell whether it came so far."""
    child = os.fork()
    if child == 0:
        taken = 0

        def stepping(function: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **more: Any) -> Any:
                nonlocal taken
                found = function(*args, **more)
                if taken == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                taken += 1
                return found

            return counted

        for owner, name in STEPS:
            setattr(owner, name, stepping(getattr(owner, name)))
        with suppress(BaseException):
            get(**known)
        os._exit(0)
    _, code = os.waitpid(child, 0)
    return os.WIFSIGNALED(code)


@pytest.mark.parametrize("known", [{}, UNKNOWN])
def test_killed_at_any_step_it_goes_on_and_a_final_name_is_a_whole_file(
    tmp_path, host, known, monkeypatch
):
    monkeypatch.setattr(download.retry, "in_time", lambda call, _patience: again(call))
    for step in range(200):
        get = Getting(host, tmp_path / str(step))
        host.faults = [CUT, CUT, CUT]
        was_killed = killed_at(step, get, **known)
        if get.path.exists():
            assert get.path.read_bytes() == BYTES
        host.faults = []
        get(**known)
        assert get.path.read_bytes() == BYTES
        assert not [name for name in get.left() if name.endswith((".part", ".json", ".lock"))]
        if not was_killed:
            break
    assert 15 < step < 199, "every step was tried"
