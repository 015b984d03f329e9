"""What a sheet is before anything is drawn: addresses, layout, labels, and the map in the file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.errors import BadImage, Refused
from imagen.sheets import layout

WHOLE = st.integers(1, 40)


def column_of(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1


def read_members(text: dict[str, str], path: Path) -> dict[str, dict]:
    return {
        place: layout.member(place, one, path) for place, one in layout.texts_of(text, path).items()
    }


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "row", "expected"),
    [
        (0, 0, "A1"),
        (1, 2, "B3"),
        (25, 0, "Z1"),
        (26, 11, "AA12"),
        (701, 0, "ZZ1"),
        (702, 0, "AAA1"),
    ],
)
def test_an_address_is_a_spreadsheets(column, row, expected):
    assert layout.address(column, row) == expected


@given(st.integers(0, 400_000), st.integers(0, 999_998))
def test_an_address_leads_back_to_its_cell(column, row):
    found = layout.address(column, row)
    letters, number = re.fullmatch(r"([A-Z]+)([0-9]+)", found).groups()
    assert (column_of(letters), int(number) - 1) == (column, row)
    assert layout.known_address(found) == found


@pytest.mark.parametrize(("said", "meant"), [("b3", "B3"), (" aa12\n", "AA12"), ("Z9", "Z9")])
def test_an_address_may_be_said_carelessly(said, meant):
    assert layout.known_address(said) == meant


@pytest.mark.parametrize(
    "said", ["", "3B", "B", "3", "B0", "B03", "B-3", "B3 C4", "É1", "B٣", "../x"]
)
def test_what_is_no_address_is_refused(said):
    with pytest.raises(Refused, match="no address of a cell"):
        layout.known_address(said)


# -- layout ----------------------------------------------------------------------------------------


@given(WHOLE, st.none() | WHOLE, st.integers(16, 600), st.integers(0, 9), st.booleans())
def test_cells_and_labels_stand_apart_and_inside(count, columns, cell, lines, titled):
    grid = layout.grid(count, columns, cell, lines, titled)
    width, height = grid.size
    boxes = [grid.box(number) for number in range(count)]
    assert grid.label >= layout.line_height(layout.text_size(cell)), "the address has its line"
    for left, top, wide, high in boxes:
        assert (wide, high) == (cell, cell)
        assert left >= grid.gap
        assert top >= grid.title + grid.gap
        assert left + wide + grid.gap <= width
        assert top + high + grid.label + grid.gap <= height
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            beside = abs(one[0] - other[0]) >= cell + grid.gap
            below = abs(one[1] - other[1]) >= cell + grid.label + grid.gap
            assert beside or below


@pytest.mark.parametrize(
    ("count", "columns", "expected"),
    [(1, None, (1, 1)), (6, None, (3, 2)), (12, None, (4, 3)), (6, 2, (2, 3)), (3, 10, (3, 1))],
)
def test_a_sheet_is_about_square_or_as_wide_as_told(count, columns, expected):
    grid = layout.grid(count, columns, 256, 2, False)
    assert (grid.columns, grid.rows) == expected


# -- labels ----------------------------------------------------------------------------------------

CAT = {"prompt": "a cat", "seed": 7, "backend": "mock", "steps": 4, "file": "/x/cat.png"}
DOG = {**CAT, "seed": 8, "steps": 20}


def test_a_label_is_prompt_and_seed():
    assert layout.labels([CAT], None, False) == [["a cat", "seed 7"]]


def test_an_image_without_a_request_is_labelled_with_its_name():
    assert layout.labels([{"id": "x", "file": "/a/x.png"}, {}], None, False) == [["x.png"], []]


def test_fields_are_labelled_in_the_order_asked_for():
    assert layout.labels([CAT], ["steps", "nothing", "file"], False) == [["steps 4", "cat.png"]]


def test_differences_label_only_what_differs():
    assert layout.labels([CAT, DOG], None, True) == [["seed 7", "steps 4"], ["seed 8", "steps 20"]]
    assert layout.labels([CAT, CAT], None, True) == [[], []]
    assert layout.labels([CAT, {"prompt": "a cat"}], ["x"], True)[1] == []


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ({"latency_ms": 4210}, "4.2 s"),
        ({"latency_ms": 4210, "queue_ms": 3000}, "4.2 s (3.0 s of it queued)"),
        ({"cost_usd": 0.003}, "$0.003"),
        ({"cost_usd": 0.0}, "$0"),
        ({"options": {"ä": [1]}}, 'options {"ä": [1]}'),
        (
            {"fidelity": {"approximated": [{"field": "width", "asked": 1000, "got": 992}]}},
            "width 992 for 1000",
        ),
        ({"fidelity": {"dropped": [{"field": "negative_prompt"}]}}, "negative_prompt dropped"),
    ],
)
def test_a_value_is_shown_as_a_person_would_write_it(member, expected):
    assert layout.labels([member], list(member)[:1], False) == [[expected]]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
LABELLED = ["prompt", "file", "latency_ms", "queue_ms", "cost_usd", "fidelity", "seed", "error"]


@given(st.dictionaries(st.sampled_from(LABELLED), JSON), st.booleans())
def test_no_value_of_a_field_breaks_a_label(member, differing):
    for line in layout.labels([member, {}], LABELLED, differing)[0]:
        assert isinstance(line, str)
    path, why = layout.shown(member)
    assert (path is None) == bool(why)


@pytest.mark.parametrize("value", [3, [3], [{}], {"x": 1}, None])
def test_a_fidelity_that_is_none_does_no_harm(value):
    found = layout.labels(
        [{"fidelity": {"approximated": value, "dropped": value}}], ["fidelity"], False
    )
    assert len(found[0]) == 1


# -- what is shown, and the map --------------------------------------------------------------------


def test_a_failed_or_pending_record_has_no_image_but_a_reason():
    failed = {"error": {"tool": "imagen-render", "code": "x", "message": "no luck"}, "file": "/x"}
    assert layout.shown(failed) == (None, "imagen-render: no luck")
    assert layout.shown({"pending": {}}) == (None, "not done yet")
    assert layout.shown({"prompt": "a"}) == (None, "this record has no file")
    assert layout.shown(CAT) == (Path("/x/cat.png"), "")


def test_the_record_names_address_id_file_and_box_of_each():
    grid = layout.grid(2, 1, 64, 1, True)
    members = [{**CAT, "id": "cat"}, {"prompt": "a dog"}]
    record = layout.record("s", members, grid, "Both")
    assert record["members"] == ["cat", "A2"]
    assert record["title"] == "Both"
    assert (record["width"], record["height"]) == grid.size
    assert record["cells"] == [
        {"address": "A1", "id": "cat", "file": "/x/cat.png", "box": list(grid.box(0))},
        {"address": "A2", "box": list(grid.box(1))},
    ]


def test_what_travels_has_nothing_private_and_relative_paths():
    member = {
        **CAT,
        "sidecar": "/x/cat.json",
        "caller": "me",
        "owner_user_id": "0",
        "cloud": {"path": "p", "signed_url": "https://secret"},
        "album": "toys",
    }
    travels = json.loads(layout.embedded(member, Path("/x/sheets")))
    assert travels["file"] == "../cat.png"
    assert travels["sidecar"] == "../cat.json"
    assert travels["cloud"] == {"path": "p"}
    assert travels["album"] == "toys"
    assert {"caller", "owner_user_id"} & {*travels} == set()
    assert member["caller"] == "me", "the member itself is left alone"


@given(st.dictionaries(st.text().filter(lambda name: name not in layout.PRIVATE), JSON))
def test_a_record_comes_back_as_it_went_in(member):
    member = {**member, "file": "/a/b c/ü.png"}
    member.pop("sidecar", None)
    if isinstance(member.get("cloud"), dict):
        member["cloud"].pop("signed_url", None)
    text = layout.embedded(member, Path("/a/d"))
    assert read_members({"imagen:A1": text}, Path("/a/d/s.png")) == {"A1": member}


def test_paths_are_read_from_where_the_sheet_is_now():
    text = {"imagen:A1": layout.embedded(CAT, Path("/x"))}
    assert read_members(text, Path("/moved/s.png"))["A1"]["file"] == "/moved/cat.png"


def test_other_text_in_the_file_is_no_member():
    with pytest.raises(BadImage, match="no sheet of imagen") as caught:
        read_members({"prompt": "{}", "Software": "x"}, Path("x.png"))
    assert caught.value.exit_status == 1


@pytest.mark.parametrize(
    "broken",
    ["", "{", "[]", "3", "null", '{"x": NaN}', '{"x": "\\ud800"}', "[" * 200_000, '{"x": 1e999}'],
)
def test_a_broken_map_is_said_to_be_broken(broken):
    with pytest.raises(BadImage, match="the record of B3 is broken"):
        read_members({"imagen:B3": broken}, Path("x.png"))


def test_a_path_with_a_nul_is_no_crash():
    found = read_members({"imagen:A1": '{"file": "a\\u0000b"}'}, Path("/x/s.png"))
    assert found["A1"]["file"] == "/x/a\0b"


# -- limits ----------------------------------------------------------------------------------------


def test_a_sheet_that_is_too_large_is_refused():
    layout.check_size(layout.grid(1000, None, 256, 2, titled=True))
    with pytest.raises(Refused, match="10000 cells has"):
        layout.check_size(layout.grid(10_000, None, 256, 2, titled=True))
    for cell in (16, 256, 4096):
        with pytest.raises(Refused):
            layout.check_size(layout.grid(layout.most_cells(cell), None, cell, 1, titled=False))


MIB = "x" * 2**20


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([json.dumps({"id": MIB * 16})], "the record of A1 is longer"),
        ([json.dumps({"id": MIB * 11})] * 3, "the records hold more than 32 MiB"),
        ([json.dumps({"id": [[]] * 250_000})], "the record of A1 holds more than"),
    ],
    ids=["one", "in sum", "values"],
)
def test_more_text_than_a_reader_takes_is_refused_by_writer_and_reader(texts, says):
    by_place = {f"A{number}": text for number, text in enumerate(texts, 1)}
    with pytest.raises(Refused, match=says):
        layout.check_texts(by_place)
    chunks = {f"imagen:{place}": text for place, text in by_place.items()}
    with pytest.raises(BadImage):
        read_members(chunks, Path("/x/s.png"))
