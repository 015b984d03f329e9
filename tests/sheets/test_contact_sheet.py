"""One contact sheet, from records to file and back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from imagen.errors import BadImage, OutputTaken, Refused
from imagen.ledger import Ledger
from imagen.sheets import contact_sheet
from imagen.sheets.contact_sheet import Wanted


@pytest.fixture
def members(tmp_path):
    """Three records with their pictures, of one colour each."""
    made = []
    for number, colour in enumerate(("red", "green", "blue")):
        path = tmp_path / f"{colour}.png"
        Image.new("RGB", (64, 48), colour).save(path)
        made.append({"id": colour, "prompt": colour, "seed": number, "file": str(path)})
    return made


def test_a_sheet_is_a_file_with_its_record_beside_it(members, tmp_path):
    made, faults = contact_sheet.make(members, Wanted(tmp_path / "out", cell=64), Ledger(None))
    file = Path(made["file"])
    assert faults == {}
    assert file.name == "sheet.png"
    assert made["members"] == ["red", "green", "blue"]
    assert made["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert json.loads(Path(made["sidecar"]).read_bytes()) == made
    with Image.open(file) as picture:
        assert picture.size == (made["width"], made["height"])


def test_what_went_in_comes_out_of_it_by_address(members, tmp_path):
    made, _ = contact_sheet.make(members, Wanted(tmp_path, columns=2, cell=64), Ledger(None))
    assert list(contact_sheet.members_of(Path(made["file"]), ["a2"])) == [members[2]]
    assert list(contact_sheet.members_of(Path(made["file"]), [])) == members


def test_a_second_sheet_of_the_day_gets_a_name_of_its_own(members, tmp_path):
    names = [
        contact_sheet.make(members, Wanted(tmp_path, cell=64), Ledger(None))[0] for _ in range(2)
    ]
    assert [Path(one["file"]).name for one in names] == ["sheet.png", "sheet-2.png"]


def test_a_member_that_cannot_be_shown_is_told_and_the_sheet_is_made(members, tmp_path):
    Path(members[1]["file"]).write_bytes(b"no picture")
    made, faults = contact_sheet.make(members, Wanted(tmp_path, cell=64), Ledger(None))
    assert list(faults) == [1]
    assert len(made["cells"]) == 3


def test_a_name_that_is_taken_is_refused_before_anything_is_drawn(members, tmp_path):
    wanted = Wanted(tmp_path, output=str(tmp_path / "red.png"))
    with pytest.raises(OutputTaken):
        contact_sheet.make(members, wanted, Ledger(None))


def test_nothing_stays_behind_but_the_sheet_and_its_record(members, tmp_path):
    contact_sheet.make(members, Wanted(tmp_path / "out", cell=64), Ledger(None))
    assert {path.name for path in (tmp_path / "out").rglob("*.*")} == {"sheet.png", "sheet.json"}


def test_an_address_that_the_sheet_does_not_have_is_refused(members, tmp_path):
    made, _ = contact_sheet.make(members, Wanted(tmp_path, cell=64), Ledger(None))
    with pytest.raises(Refused, match="no cell Z9"):
        list(contact_sheet.members_of(Path(made["file"]), ["Z9"]))


def test_a_picture_that_is_no_sheet_has_no_members(members):
    with pytest.raises(BadImage, match="no sheet"):
        list(contact_sheet.members_of(Path(members[0]["file"]), []))
