"""Slugs, dated names, exclusive reservation and atomic writes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagen import disk
from imagen.errors import ImagenError, OutputTaken
from imagen.files import atomic, reservations, sidecars, store
from imagen.records import naming


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder."""
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


# -- slugs and dates -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "slug"),
    [
        ("A cat, in a fish-bowl!", "a-cat-in-a-fish-bowl"),
        ("  --a--  ", "a"),
        ("../../etc/passwd", "etc-passwd"),
        ("naïve café Ⅳ", "naive-cafe-iv"),
        ("ﬁne", "fine"),
        ("a\nb\tc\0d", "a-b-c-d"),
        ("x" * 100, "x" * 60),
        ("twelve letters " * 10, "twelve-letters-twelve-letters-twelve-letters-twelve-letters"),
    ],
)
def test_a_slug_is_what_a_person_can_still_read(prompt, slug):
    assert naming.slug(prompt) == slug


@given(st.text(max_size=500))
@example("🐈")
@example("猫")
@example("../../x")
@example("-" * 500)
@example("İstanbul ß ﬀ")
@settings(max_examples=60, deadline=None)
def test_a_slug_is_always_1_to_60_of_letters_digits_and_dashes(prompt):
    slug = naming.slug(prompt)
    assert re.fullmatch(r"[a-z0-9-]{1,60}", slug)
    assert slug == naming.slug(prompt), "the same prompt, the same slug"
    assert not slug.startswith("-")
    assert not slug.endswith("-")
    assert naming.is_slug(slug)


def test_prompts_with_nothing_to_read_still_differ():
    assert len({naming.slug(prompt) for prompt in ("猫", "犬", "🐈", "…")}) == 4


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("a", True),
        ("a-1", True),
        ("x" * 100, True),
        ("x" * 101, False),
        ("", False),
        ("A", False),
        ("a.b", False),
        ("a/b", False),
        ("a\n", False),
        ("é", False),
        ("٣", False),
    ],
)
def test_what_may_stand_as_a_slug(text, good):
    assert naming.is_slug(text) == good


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("2026-01-02", True),
        ("2024-02-29", True),
        ("2026-02-29", False),
        ("2026-1-2", False),
        ("20260102", False),
        ("2026-W01-1", False),
        ("2026-01-02\n", False),
        ("٢٠٢٦-٠١-٠٢", False),
        ("../../x", False),
        ("", False),
    ],
)
def test_what_may_stand_as_a_date(text, good):
    assert naming.is_date(text) == good


# -- reservations ----------------------------------------------------------------------------------


class Locks:
    """Stands in for the ledger: whose owners live."""

    def __init__(self, *living: str) -> None:
        self.living = living
        self.asked: list[str] = []

    @contextmanager
    def __call__(self, owner: str) -> Iterator[bool]:
        self.asked.append(owner)
        yield owner not in self.living


def reserve(folder: Path, owner: str = "me", locks: Locks | None = None) -> reservations.Place:
    return reservations.reserve(
        folder, "cat-1", reservations.Owner(owner, owner), locks or Locks("other")
    )


def test_a_reservation_is_a_dot_file_with_its_owners_id(folder):
    place = reserve(folder / "new" / "folder")
    assert place.image == folder / "new" / "folder" / "cat-1.png"
    assert place.sidecar == folder / "new" / "folder" / "cat-1.json"
    assert (place.folder / ".cat-1.reserved").read_text() == "me"
    assert [path.name for path in place.folder.iterdir()] == [".cat-1.reserved"]
    place.release()
    assert [*place.folder.iterdir()] == []
    place.release()


def test_a_living_owner_keeps_its_name_and_the_next_gets_a_number(folder):
    theirs = reserve(folder, "other")
    mine = reserve(folder)
    assert (theirs.stem, mine.stem) == ("cat-1", "cat-1-2")
    assert (folder / ".cat-1.reserved").read_text() == "other"


def test_a_dead_owners_name_is_taken_over(folder):
    reserve(folder, "dead")
    locks = Locks()
    assert reserve(folder, "me", locks).stem == "cat-1"
    assert (folder / ".cat-1.reserved").read_text() == "me"
    assert locks.asked == ["dead"]


def test_an_owner_finds_its_own_reservation_again(folder):
    reserve(folder)
    locks = Locks()
    assert reserve(folder, "me", locks).stem == "cat-1"
    assert locks.asked == []


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".json"])
def test_a_file_of_any_of_our_kinds_takes_the_name(folder, suffix):
    (folder / f"cat-1{suffix}").touch()
    assert reserve(folder).stem == "cat-1-2"
    assert not (folder / ".cat-1.reserved").exists()


def test_many_taken_names_are_passed_over_in_order(folder):
    for name in ("cat-1.png", "cat-1-2.json", "cat-1-3.webp"):
        (folder / name).touch()
    assert reserve(folder).stem == "cat-1-4"


def test_a_reservation_that_is_garbage_is_a_dead_ones(folder):
    (folder / ".cat-1.reserved").write_bytes(b"\xff\0" * 500)
    assert reserve(folder).stem == "cat-1"


# -- a name that was asked for ---------------------------------------------------------------------


def exactly(path: Path, *, force: bool = False, locks: Locks | None = None) -> reservations.Place:
    return reservations.reserve_exactly(path, "me", force, locks or Locks("other"))


def test_the_very_name_is_reserved(folder):
    place = exactly(folder / "cover.v2.png")
    assert place.image == folder / "cover.v2.png"
    assert place.sidecar == folder / "cover.v2.json"
    assert place.asked_for


@pytest.mark.parametrize("existing", ["cover.png", "cover.json"])
def test_an_existing_file_is_refused_unless_forced(folder, existing):
    (folder / existing).write_text(json.dumps({"sidecar": str(folder / existing)}))
    with pytest.raises(OutputTaken, match="exists"):
        exactly(folder / "cover.png")
    assert exactly(folder / "cover.png", force=True).replace


def test_what_is_no_sidecar_of_ours_is_not_replaced_even_if_forced(folder):
    (folder / "package.json").write_text('{"name": "somebody else\'s"}')
    with pytest.raises(OutputTaken, match="not a sidecar"):
        exactly(folder / "package.png", force=True)


def test_a_sidecar_whose_writer_died_before_its_image_did_is_written_over(folder):
    place = reserve(folder, "dead")
    place.sidecar.write_text("{}")
    (folder / ".cat-1.0123456789ab.tmp").write_text("half")
    again = reserve(folder, "dead")
    assert (again.stem, again.orphaned) == ("cat-1", True)
    assert not (folder / ".cat-1.0123456789ab.tmp").exists()


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_is_refused_even_if_forced(folder, force):
    (folder / "cover.png").mkdir()
    with pytest.raises(OutputTaken, match="folder"):
        exactly(folder / "cover.png", force=force)


def test_a_name_that_another_render_writes_is_refused(folder):
    (folder / ".cover.reserved").write_text("other")
    with pytest.raises(OutputTaken, match="another render"):
        exactly(folder / "cover.png")
    assert exactly(folder / "cover.png", locks=Locks()).stem == "cover"


@pytest.mark.parametrize("name", ["cover.json", "..", "."])
def test_a_name_that_cannot_be_an_images_is_refused(folder, name):
    with pytest.raises(ImagenError) as caught:
        exactly(folder / name, force=True)
    assert caught.value.exit_status == 2


# -- atomic writes ---------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_published_file_is_whole_and_alone(folder):
    atomic.publish(folder / "a.png", b"data")
    assert (folder / "a.png").read_bytes() == b"data"
    assert names(folder) == ["a.png"]


def test_publishing_never_replaces_unless_told(folder):
    atomic.publish(folder / "a.png", b"old")
    with pytest.raises(FileExistsError):
        atomic.publish(folder / "a.png", b"new")
    assert (folder / "a.png").read_bytes() == b"old"
    atomic.publish(folder / "a.png", b"new", replace=True)
    assert (folder / "a.png").read_bytes() == b"new"
    assert names(folder) == ["a.png"]


@pytest.mark.parametrize("nameless", [True, False])
def test_a_write_that_fails_leaves_nothing(folder, monkeypatch, nameless):
    def full(_descriptor: int) -> None:
        assert all(path.name.startswith(".") for path in folder.iterdir())
        assert all(path.suffix == ".tmp" for path in folder.iterdir())
        raise OSError(28, "No space left on device")

    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.publish(folder / "a.png", b"data")
    assert names(folder) == []


@pytest.mark.parametrize("error", [PermissionError(1, "no links here"), OSError(95, "not here")])
def test_a_file_system_without_hard_links_will_do(folder, monkeypatch, error):
    def no_link(*_: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr(os, "link", no_link)
    atomic.publish(folder / "a.png", b"data")
    with pytest.raises(FileExistsError):
        atomic.publish(folder / "a.png", b"new")
    assert (folder / "a.png").read_bytes() == b"data"
    assert names(folder) == ["a.png"]


def test_a_long_name_fits_with_its_temporary(folder):
    name = "x" * 240 + ".png"
    atomic.publish(folder / name, b"data")
    assert names(folder) == [name]


RECORD = {"id": "k", "format": "png", "prompt": "a 🐈"}


def test_an_image_is_stored_with_its_record_beside_it(folder):
    place = reserve(folder)
    made = store.store(place, RECORD, b"data")
    assert made == {**RECORD, "file": str(place.image), "sidecar": str(place.sidecar)}
    assert json.loads(place.sidecar.read_bytes()) == made
    assert place.image.read_bytes() == b"data"


@pytest.mark.parametrize(("form", "suffix"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")])
def test_an_image_gets_the_suffix_of_its_format(folder, form, suffix):
    made = store.store(reserve(folder), {**RECORD, "format": form}, b"data")
    assert Path(made["file"]).name == f"cat-1{suffix}"


@pytest.mark.parametrize(
    ("name", "form", "warns"),
    [
        ("a.png", "png", False),
        ("a.PNG", "png", False),
        ("a.jpeg", "jpeg", False),
        ("a.JPG", "jpeg", False),
        ("a.png", "jpeg", True),
        ("a", "png", True),
    ],
)
def test_a_name_that_says_another_format_is_kept_with_a_warning(folder, name, form, warns):
    made = store.store(exactly(folder / name), {**RECORD, "format": form}, b"data")
    assert Path(made["file"]).name == name
    assert ("extension" in made.get("warnings", [])) == warns


@pytest.mark.parametrize("taken", ["cat-1.png", "cat-1.json"])
def test_a_strangers_file_that_came_meanwhile_is_left_alone(folder, taken):
    place = reserve(folder)
    (folder / taken).write_text("theirs")
    with pytest.raises(FileExistsError):
        store.store(place, RECORD, b"data")
    assert (folder / taken).read_text() == "theirs"
    assert names(folder) == sorted([".cat-1.reserved", taken])


def test_the_sidecar_stands_before_the_image_does(folder, monkeypatch):
    order: list[str] = []
    link = os.link

    def watched(source: Path, target: Path, **more: int) -> None:
        order.append(Path(target).suffix)
        link(source, target, **more)

    place = reserve(folder)
    monkeypatch.setattr(os, "link", watched)
    store.store(place, RECORD, b"data")
    assert order == [".json", ".png"]


# -- files that others put there -------------------------------------------------------------------


@pytest.fixture
def kinds(folder) -> list[Path]:
    """Things that are no regular files: a pipe, a device, a link to one, a file of the kernel's."""
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    return [folder / "pipe", folder / "link", folder / "zero", Path("/dev/zero"), folder]


def test_only_regular_files_are_opened_and_nothing_is_waited_for(folder, kinds):
    for path in [*kinds, Path("/proc/kmsg"), Path("/proc/self/status")]:
        with pytest.raises(OSError, match=str(path)):
            disk.open_regular(path)
    (folder / "file").write_bytes(b"data")
    (folder / "to-file").symlink_to("file")
    assert disk.read_regular(folder / "to-file", most=4) == b"data"
    with pytest.raises(OSError, match="too large"):
        disk.read_regular(folder / "file", most=3)
    with pytest.raises(OSError, match="no regular file"):
        disk.open_regular(folder / "to-file", follow=False)


def test_a_reservation_that_is_no_regular_file_takes_the_name(folder, kinds):
    os.mkfifo(folder / ".cat-1.reserved")
    (folder / ".cat-1-2.reserved").symlink_to("/dev/zero")
    (folder / ".cat-1-3.reserved").symlink_to("nowhere")
    (folder / ".cat-1-4.reserved").mkdir()
    assert reserve(folder).stem == "cat-1-5"
    with pytest.raises(OutputTaken, match="not a reservation"):
        exactly(folder / "cat-1.png")
    reservations.release(folder, "cat-1", "me")
    assert not (folder / ".cat-1-5.reserved").exists()


def test_a_sidecar_or_image_that_is_no_regular_file_is_none(folder, kinds):
    (folder / "cat.png").write_bytes(b"data")
    os.mkfifo(folder / "cat.json")
    assert sidecars.record_of(folder / "cat.png") == {"id": "cat", "file": str(folder / "cat.png")}
    assert [*sidecars.sidecars(folder, "cat")] == []
    for path in kinds:
        assert not sidecars.is_intact({"file": str(path), "sha256": "0" * 64})
    os.mkfifo(folder / "b.png")
    assert sidecars.images_in(folder) == [folder / "cat.png"]
    os.mkfifo(folder / "x.raw.bin")
    assert store.keep_raw(folder, "x", b"raw", ".bin").name == "x.raw-2.bin"


@pytest.mark.parametrize("file", ["/", "..", "a\0b", ""])
def test_a_sidecar_that_names_no_file_does_no_harm(folder, file):
    record = {"file": file, "render_id": "me", "sha256": "0" * 64}
    (folder / "cat-1.json").write_text(json.dumps(record))
    assert len([*sidecars.sidecars(folder, "cat-1")]) == 1
    assert not reservations.may_replace(folder / "cat-1.json", "me")


# -- whose a sidecar is ----------------------------------------------------------------------------


def beside(folder: Path, **record: object) -> None:
    (folder / "cat.json").write_text(json.dumps({"id": "mine", "prompt": "a cat", **record}))


def test_a_sidecar_belongs_to_the_file_that_it_names(folder):
    for name, data in (("cat.png", b"png"), ("cat.webp", b"webp")):
        (folder / name).write_bytes(data)
    beside(folder, file="/elsewhere/cat.png", sha256=hashlib.sha256(b"png").hexdigest())
    assert sidecars.record_of(folder / "cat.png")["id"] == "mine"
    assert sidecars.record_of(folder / "cat.webp") == {
        "id": "cat.webp",
        "file": str(folder / "cat.webp"),
    }


def test_a_renamed_image_is_told_by_its_bytes(folder):
    (folder / "cat.png").write_bytes(b"png")
    beside(folder, file="/x/dog.png", sha256=hashlib.sha256(b"png").hexdigest())
    assert sidecars.record_of(folder / "cat.png")["id"] == "mine"
    beside(folder, file="/x/dog.png", sha256=hashlib.sha256(b"other").hexdigest())
    assert sidecars.record_of(folder / "cat.png")["id"] == "cat.png"


def test_the_sidecar_of_another_file_is_not_replaced_even_if_forced(folder):
    (folder / "cat.png").write_bytes(b"png")
    beside(folder, file=str(folder / "cat.png"), sidecar=str(folder / "cat.json"))
    with pytest.raises(OutputTaken, match=r"the sidecar of cat\.png"):
        exactly(folder / "cat.webp", force=True)
    (folder / "cat.png").unlink()
    assert exactly(folder / "cat.webp", force=True).replace


# -- replacing -------------------------------------------------------------------------------------


def pair(folder: Path, monkeypatch) -> list[tuple[object, object]]:
    """What a reader sees of cat.json and cat.png after each change of a name, as it happens."""
    seen: list[tuple[object, object]] = []

    def look(*_args: object) -> None:
        sidecar, image = folder / "cat.json", folder / "cat.png"
        record = json.loads(sidecar.read_bytes())["sha256"] if sidecar.exists() else None
        data = hashlib.sha256(image.read_bytes()).hexdigest() if image.exists() else None
        seen.append((record, data))

    for owner, name in (
        (os, "link"),
        (Path, "unlink"),
        (Path, "replace"),
    ):
        real = getattr(owner, name)

        def watched(*args, real=real, **more):
            done = real(*args, **more)
            look()
            return done

        monkeypatch.setattr(owner, name, watched)
    return seen


def record_for(data: bytes, render_id: str) -> dict[str, object]:
    sha = hashlib.sha256(data).hexdigest()
    return {**RECORD, "sha256": sha, "bytes": len(data), "render_id": render_id}


@pytest.mark.parametrize("before", ["me", "another"])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("nameless", [False, True])
def test_no_reader_sees_a_sidecar_beside_an_image_that_is_not_its_own(
    folder, monkeypatch, before, same, nameless
):
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    old, new = b"old", b"old" if same else b"new"
    store.store(exactly(folder / "cat.png"), record_for(old, before), old)
    seen = pair(folder, monkeypatch)
    store.store(exactly(folder / "cat.png", force=True), record_for(new, "me"), new)
    assert seen, "nothing was watched"
    for record, data in seen:
        assert record is None or data is None or record == data, seen
    assert seen[-1] == (hashlib.sha256(new).hexdigest(),) * 2
    if before != "me":
        assert all(data for _record, data in seen), "the image was not there for a moment"


# -- file systems without hard links ---------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["nameless", "named"])
def no_links(request, monkeypatch) -> None:
    def refused(*_: object, **_more: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    if not request.param:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)


@pytest.mark.usefixtures("no_links")
def test_without_hard_links_a_name_is_taken_by_one_only(folder):
    def publish(number: int) -> int:
        try:
            atomic.publish(folder / "a.png", str(number).encode())
        except FileExistsError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(publish, range(200))) == 1
    assert names(folder) == ["a.png"]
    atomic.publish(folder / "a.png", b"new", replace=True)
    assert (folder / "a.png").read_bytes() == b"new"


def test_without_hard_links_the_published_copy_is_synced(folder, monkeypatch, no_links):
    synced: list[bytes] = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").read_bytes()) or fsync(fd)
    )
    atomic.publish(folder / "a.png", b"data")
    nameless = hasattr(os, "O_TMPFILE")
    assert synced == [b"data"] * (2 if nameless else 1)


def test_an_empty_reservation_is_being_written_until_it_is_old(folder):
    (folder / ".cat-1.reserved").touch()
    assert reserve(folder).stem == "cat-1-2"
    os.utime(folder / ".cat-1.reserved", (1, 1))
    assert reserve(folder).stem == "cat-1"


def test_an_empty_file_that_a_killed_process_left_is_replaced(folder):
    place = reserve(folder)
    store.store(place, record_for(b"data", "me"), b"data")
    place.image.write_bytes(b"")
    again = reserve(folder)
    assert (again.stem, again.replace) == ("cat-1", True)
    store.store(again, record_for(b"data", "me"), b"data")
    assert place.image.read_bytes() == b"data"


# -- many of one name ------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [1, 8, 9, 100, 2000])
def test_a_free_name_takes_few_looks_however_many_are_taken(folder, monkeypatch, taken):
    for number in range(1, taken + 1):
        (folder / f"{reservations._numbered('cat-1', number)}.png").touch()
    looks = 0
    lexists = os.path.lexists

    def counted(path: Path) -> bool:
        nonlocal looks
        looks += 1
        return lexists(path)

    monkeypatch.setattr(os.path, "lexists", counted)
    assert reserve(folder).stem == f"cat-1-{taken + 1}"
    assert looks < 300


def test_a_render_that_is_resumed_reads_each_of_many_equal_names_once_and_reserves_none(
    folder, monkeypatch
):
    for number in range(1, 501):
        name = reservations._numbered("cat-1", number)
        (folder / f"{name}.png").write_bytes(b"data")
        record = {**record_for(b"data", f"other {number}"), "file": f"{folder}/{name}.png"}
        (folder / f"{name}.json").write_text(json.dumps(record))
    reads, published = [], []
    read, publish = disk.read_regular, atomic.publish
    monkeypatch.setattr(
        disk, "read_regular", lambda path, **more: reads.append(path) or read(path, **more)
    )
    monkeypatch.setattr(
        atomic,
        "publish",
        lambda path, *data, **more: published.append(path) or publish(path, *data, **more),
    )

    def resumed(image: str) -> reservations.Place:
        owner = reservations.Owner(image, image, again=True)
        return reservations.reserve(folder, "cat-1", owner, Locks(*living))

    living = [f"image {number}" for number in range(5)]
    mine = [resumed(image) for image in living]
    assert [place.stem for place in mine] == [f"cat-1-{number}" for number in range(501, 506)]
    assert len(reads) <= 510
    assert len(published) <= 20
    theirs = resumed("other 400")
    assert (theirs.stem, theirs.replace) == ("cat-1-400", True)


def test_folders_of_one_name_are_numbered_on(folder):
    made = [reservations.new_folder(folder, "2026-01-02", "cat").name for _ in range(20)]
    assert made == ["cat", *(f"cat-{number}" for number in range(2, 21))]


def test_new_folders_are_synced_with_those_above_them(folder, monkeypatch):
    synced: list[Path] = []
    monkeypatch.setattr(disk, "sync_folder", synced.append)
    reserve(folder / "a" / "b")
    assert synced == [folder, folder / "a"]
    reserve(folder / "a" / "b")
    assert len(synced) == 2
