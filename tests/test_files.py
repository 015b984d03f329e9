"""Slugs, dated names, exclusive reservation and atomic writes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagen import files
from imagen.errors import ImagenError, OutputTaken


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
    assert files.slug(prompt) == slug


@given(st.text(max_size=500))
@example("🐈")
@example("猫")
@example("../../x")
@example("-" * 500)
@example("İstanbul ß ﬀ")
@settings(max_examples=60, deadline=None)
def test_a_slug_is_always_1_to_60_of_letters_digits_and_dashes(prompt):
    slug = files.slug(prompt)
    assert re.fullmatch(r"[a-z0-9-]{1,60}", slug)
    assert slug == files.slug(prompt), "the same prompt, the same slug"
    assert not slug.startswith("-")
    assert not slug.endswith("-")
    assert files.is_slug(slug)


def test_prompts_with_nothing_to_read_still_differ():
    assert len({files.slug(prompt) for prompt in ("猫", "犬", "🐈", "…")}) == 4


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
    assert files.is_slug(text) == good


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
    assert files.is_date(text) == good


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


def reserve(folder: Path, owner: str = "me", locks: Locks | None = None) -> files.Place:
    return files.reserve(folder, "cat-1", files.Owner(owner, owner), locks or Locks("other"))


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


def exactly(path: Path, *, force: bool = False, locks: Locks | None = None) -> files.Place:
    return files.reserve_exactly(path, "me", force, locks or Locks("other"))


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
    files.publish(folder / "a.png", b"data")
    assert (folder / "a.png").read_bytes() == b"data"
    assert names(folder) == ["a.png"]


def test_publishing_never_replaces_unless_told(folder):
    files.publish(folder / "a.png", b"old")
    with pytest.raises(FileExistsError):
        files.publish(folder / "a.png", b"new")
    assert (folder / "a.png").read_bytes() == b"old"
    files.publish(folder / "a.png", b"new", replace=True)
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
        files.publish(folder / "a.png", b"data")
    assert names(folder) == []


@pytest.mark.parametrize("error", [PermissionError(1, "no links here"), OSError(95, "not here")])
def test_a_file_system_without_hard_links_will_do(folder, monkeypatch, error):
    def no_link(*_: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr(os, "link", no_link)
    files.publish(folder / "a.png", b"data")
    with pytest.raises(FileExistsError):
        files.publish(folder / "a.png", b"new")
    assert (folder / "a.png").read_bytes() == b"data"
    assert names(folder) == ["a.png"]


def test_a_long_name_fits_with_its_temporary(folder):
    name = "x" * 240 + ".png"
    files.publish(folder / name, b"data")
    assert names(folder) == [name]


RECORD = {"id": "k", "format": "png", "prompt": "a 🐈"}


def test_an_image_is_stored_with_its_record_beside_it(folder):
    place = reserve(folder)
    made = files.store(place, RECORD, b"data")
    assert made == {**RECORD, "file": str(place.image), "sidecar": str(place.sidecar)}
    assert json.loads(place.sidecar.read_bytes()) == made
    assert place.image.read_bytes() == b"data"


@pytest.mark.parametrize(("form", "suffix"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")])
def test_an_image_gets_the_suffix_of_its_format(folder, form, suffix):
    made = files.store(reserve(folder), {**RECORD, "format": form}, b"data")
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
    made = files.store(exactly(folder / name), {**RECORD, "format": form}, b"data")
    assert Path(made["file"]).name == name
    assert ("extension" in made.get("warnings", [])) == warns


@pytest.mark.parametrize("taken", ["cat-1.png", "cat-1.json"])
def test_a_strangers_file_that_came_meanwhile_is_left_alone(folder, taken):
    place = reserve(folder)
    (folder / taken).write_text("theirs")
    with pytest.raises(FileExistsError):
        files.store(place, RECORD, b"data")
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
    files.store(place, RECORD, b"data")
    assert order == [".json", ".png"]
