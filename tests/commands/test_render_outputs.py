"""What was paid and came: pictures of every kind, files that are no picture, files that changed."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagen.images import codec
from paid import Paid
from servers.replicate import TROUBLE, Answer, problem

THREE = ("--option", "num_outputs=3")


def picture(form: str, **more: Any) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((64, 48), 90).convert("RGB").save(out, form, **more)
    return out.getvalue()


def returns(paid: Paid, output: Any) -> None:
    """Let every prediction return this."""
    paid.server._outputs = lambda _found, _filtered: output  # type: ignore[method-assign]


def answers(paid: Paid, name: str, answer: Answer) -> Callable[[], None]:
    """Let one file be answered with this; gives what makes that good again."""
    real = paid.server._file
    paid.server._file = lambda handle, asked: (  # type: ignore[method-assign]
        answer if asked.startswith(name) else real(handle, asked)
    )

    def again() -> None:
        paid.server._file = real  # type: ignore[method-assign]

    return again


def data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def ids(ran: Any) -> list[str]:
    return [one["id"] for one in ran.records]


def files_in(out_dir: Path) -> list[str]:
    return sorted(path.name for path in out_dir.rglob("*") if path.is_file())


# -- pictures of every kind ------------------------------------------------------------------------


@pytest.mark.parametrize("form", [one for one in codec.FORMATS if codec.can_decode(one)])
def test_a_picture_of_every_format_is_kept_byte_for_byte(paid, form):
    data = picture(form)
    returns(paid, {"image": data_url(data, f"image/{form}"), "caption": "a cat"})
    ran = paid("a cat", "--id", "k")
    record = ran.record
    assert (ran.status, record["format"], Path(record["file"]).read_bytes()) == (0, form, data)
    assert Path(record["file"]).suffix == f".{form}".replace("jpeg", "jpg")
    assert paid("a cat", "--id", "k").out == ran.out
    assert paid.creates == 1


def test_an_animation_is_kept_whole(paid):
    frames = [Image.effect_noise((64, 48), 90).convert("P") for _ in range(2)]
    data = picture("gif", save_all=True, append_images=frames)
    returns(paid, [data_url(data, "image/gif")])
    assert Path(paid("a cat").record["file"]).read_bytes() == data


# -- what is no picture ----------------------------------------------------------------------------

SVG = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
BROKEN = picture("png").replace(b"IDAT", b"IDAX")
NO_PICTURE = {
    "text": (["a ", "poem"], b"a poem", ".txt"),
    "values": ({"score": 0.5}, b'{"score": 0.5}', ".json"),
    "SVG": (data_url(SVG, "image/svg+xml"), SVG, ".svg"),
    "a broken picture": (data_url(BROKEN, "image/png"), BROKEN, ".png"),
}


@pytest.mark.parametrize("what", NO_PICTURE)
def test_what_is_no_picture_ends_it_and_is_kept_beside_where_one_would_be(paid, out_dir, what):
    output, data, suffix = NO_PICTURE[what]
    returns(paid, output)
    ran = paid("a cat", "--id", "k", "--seed", 7)
    failed = ran.record
    assert (failed["error"]["code"], failed["error"]["billed"]) == ("not_an_image", "yes")
    assert (failed["error"]["retry"], ran.status) == ("never", 1)
    raw = Path(failed["backend_meta"]["raw_file"])
    assert (raw.name, raw.read_bytes()) == (f"a-cat-7.raw{suffix}", data)
    assert str(raw) in ran.err
    assert not {"file", "sidecar", "sha256", "format"} & {*failed}
    assert files_in(out_dir) == [raw.name], "no reservation stays"
    requests = len(paid.server.requests)
    assert paid("a cat", "--id", "k", "--seed", 7).records == [failed]
    assert len(paid.server.requests) == requests
    assert paid.sql("select billed from submits") == [("yes",)]


def test_a_page_instead_of_the_file_ends_it_only_when_it_comes_twice(paid):
    page = Answer(200, b"<html>sorry</html>", "text/html")
    paid.server.fail("GET /files", page)
    assert paid("a cat", "--id", "once").status == 0
    paid.server.fail("GET /files", page, times=2)
    failed = paid("a cat", "--id", "twice").record
    assert failed["error"]["code"] == "not_an_image"
    assert failed["backend_meta"]["outputs"][0].startswith(paid.server.url)
    assert Path(failed["backend_meta"]["raw_file"]).read_bytes() == page.body


def test_a_picture_that_was_cut_short_is_collected_by_the_next_run(paid):
    paid.server.spoil = lambda data: data[:-30]
    cut = paid("a cat", "--id", "k")
    error = cut.record["error"]
    assert (cut.status, error["code"], error["billed"]) == (75, "bad_image", "yes")
    assert error["retry"] == "safe"
    paid.server.spoil = bytes
    assert (paid("a cat", "--id", "k").status, paid.creates) == (0, 1)


def test_what_is_no_picture_is_kept_even_when_the_image_goes_to_stdout(paid, out_dir):
    returns(paid, "a poem")
    ran = paid("a cat", "--output", "-")
    assert (ran.status, ran.out) == (1, b"")
    (raw,) = out_dir.rglob("*.raw.txt")
    assert raw.read_text() == "a poem"


def test_a_raw_file_takes_no_name_that_another_one_has(paid):
    files = set()
    for number in range(3):
        returns(paid, f"poem {number}")
        failed = paid("a cat", "--id", f"k{number}", "--seed", 7).record
        raw = Path(failed["backend_meta"]["raw_file"])
        assert raw.read_text() == f"poem {number}"
        files.add(raw)
    assert len(files) == 3


# -- several images of one submit ------------------------------------------------------------------

LATER = {
    "a server fault": TROUBLE,
    "refused for now": problem(403, "no"),
    "cut short": Answer(200, picture("png")[:-30], "image/png"),
}


@pytest.mark.parametrize("what", LATER)
def test_an_image_that_cannot_be_had_now_costs_no_other_and_comes_by_its_own_line(paid, what):
    mend = answers(paid, "out-1", LATER[what])
    first = paid("a cat", "--id", "k", *THREE)
    assert (ids(first), first.status) == (["k", "k.3", "k.2"], 75)
    assert [("file" in one) for one in first.records] == [True, True, False]
    failed = first.records[2]
    assert (failed["error"]["billed"], failed["error"]["retry"]) == ("yes", "safe")
    still = paid(stdin=first.out)
    assert ids(still) == ids(first) and still.records[2]["error"] == failed["error"]
    mend()
    ran = paid(stdin=still.out)
    assert (ids(ran), ran.status) == (ids(first), 0)
    assert ran.records[:2] == first.records[:2], "what was done passes untouched"
    assert [one["cost_usd"] for one in ran.records] == [0.009, 0, 0]
    assert len({one["file"] for one in ran.records}) == paid.server.asks("POST") * 3 == 3
    whole = paid("a cat", "--id", "k", *THREE)
    assert (ids(whole), paid.creates) == (["k", "k.2", "k.3"], 1)


def test_two_images_that_cannot_be_had_now_come_by_the_line_of_the_first(paid):
    mend = answers(paid, "out-1", TROUBLE)
    mend_both = answers(paid, "out-2", TROUBLE)
    first = paid("a cat", "--id", "k", *THREE)
    assert ids(first) == ["k", "k.2"]
    mend_both()
    mend()
    ran = paid(stdin=first.out)
    assert (ids(ran), ran.status, paid.creates) == (["k", "k.2", "k.3"], 0, 1)


def test_the_line_of_a_second_image_never_pays_at_another_ledger(paid, tmp_path):
    answers(paid, "out-1", TROUBLE)
    failed = paid("a cat", "--id", "k", *THREE).records[-1]
    ran = paid(stdin=[failed], env={"IMAGEN_LEDGER": str(tmp_path / "other.sqlite3")})
    assert (ran.status, ran.record["error"]["retry"], paid.creates) == (2, "never", 1)
    assert "k.2 is an image of the submit of k" in ran.err


def test_the_line_of_a_second_image_that_is_pending_stays_one_of_that_image(paid):
    mend = answers(paid, "out-1", TROUBLE)
    failed = paid("a cat", "--id", "k", *THREE).records[-1]
    paid.server.statuses = ["processing"] * 500
    pending = paid("--wait", 0, stdin=[failed])
    assert (ids(pending), pending.status) == (["k.2"], 75)
    paid.server.statuses = []
    mend()
    ran = paid(stdin=pending.out)
    assert (ids(ran), ran.status, paid.creates) == (["k.2"], 0, 1)


def test_images_that_were_written_are_handed_out_when_the_others_are_gone(paid):
    answers(paid, "out-1", TROUBLE)
    first = paid("a cat", "--id", "k", *THREE)
    paid.server.remove_data(first.records[0]["submit"])
    ran = paid("a cat", "--id", "k", *THREE)
    assert (ids(ran), ran.status) == (["k", "k.3", "k.2"], 1)
    assert ran.records[2]["error"]["code"] == "paid_file_gone"
    again = paid("a cat", "--id", "k", *THREE)
    assert (again.records, paid.creates) == (ran.records, 1)


def test_three_images_whose_result_was_lost_are_all_found_on_the_disk(paid):
    first = paid("a cat", "--id", "k", *THREE)
    paid.sql("update renders set state = 'open', records = '[]', delivered = 0")
    paid.sql("update submits set billed = null, cost_usd = null")
    requests = len(paid.server.requests)
    again = paid("a cat", "--id", "k", *THREE)
    assert (again.records, again.status) == (first.records, 0)
    assert len(paid.server.requests) == requests
    assert paid.sql("select billed, cost_usd from submits") == [("yes", 0.009)]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_when_the_result_was_lost_and_one_of_three_is_spoiled_all_come_whole(paid, number):
    first = paid("a cat", "--id", "k", *THREE)
    paid.sql("update renders set state = 'open', records = '[]', delivered = 0")
    spoiled = Path(first.records[number]["file"])
    spoiled.write_bytes(b"")
    again = paid("a cat", "--id", "k", *THREE)
    assert (ids(again), again.status, paid.creates) == (["k", "k.2", "k.3"], 0, 1)
    assert [one["sha256"] for one in again.records] == [one["sha256"] for one in first.records]
    assert spoiled.read_bytes() == b""


def test_reservations_that_a_killed_run_left_are_removed_by_the_next(paid, out_dir):
    first = paid("a cat", "--id", "k", "--seed", 7, *THREE)
    folder = Path(first.records[0]["file"]).parent
    for name in ("a-cat-7", "a-cat-7-3", "a-cat-7-4"):
        (folder / f".{name}.reserved").write_text(first.records[0]["render_id"])
    (folder / ".a-cat-7-5.reserved").write_text("another's")
    assert paid("a cat", "--id", "k", "--seed", 7, *THREE).out == first.out
    assert [path.name for path in out_dir.rglob(".*")] == [".a-cat-7-5.reserved"]


# -- files that changed since ----------------------------------------------------------------------


@pytest.mark.parametrize("now", [b"", b"other bytes", "cut", "one byte"])
def test_a_file_that_changed_is_fetched_again_under_the_next_name_and_left_alone(paid, now):
    first = paid("a cat", "--id", "k", "--seed", 7).record
    file = Path(first["file"])
    data = file.read_bytes()
    changed = {"cut": data[:-1], "one byte": bytes([data[0] ^ 1]) + data[1:]}.get(now, now)
    file.write_bytes(changed)
    again = paid("a cat", "--id", "k", "--seed", 7)
    record = again.record
    assert (again.status, paid.creates, Path(record["file"]).name) == (0, 1, "a-cat-7-2.png")
    assert (Path(record["file"]).read_bytes(), file.read_bytes()) == (data, changed)
    assert first["file"] in again.err and record["file"] in again.err
    third = paid("a cat", "--id", "k", "--seed", 7)
    assert (third.out, third.err) == (again.out, "")


@pytest.mark.parametrize("how", ["where it was", "by its name"])
def test_a_file_that_another_id_replaced_by_force_is_fetched_again_beside_it(paid, tmp_path, how):
    file = tmp_path / "cat.png"
    first = paid("a cat", "--id", "k", "--output", file)
    data = file.read_bytes()
    paid("a dog", "--id", "d", "--output", file, "--force")
    dog = file.read_bytes()
    again = paid("a cat", "--id", "k", *(("--output", file) if how == "by its name" else ()))
    assert (again.status, paid.creates) == (0, 2)
    made = Path(again.record["file"])
    assert (made, made.read_bytes()) == (tmp_path / "cat-2.png", data)
    assert file.read_bytes() == dog
    assert again.record["sha256"] == first.record["sha256"]
    assert paid("a dog", "--id", "d").record["file"] == str(file)


def test_a_done_id_is_brought_to_another_name_without_asking_anybody(paid, tmp_path):
    first = paid("a cat", "--id", "k").record
    asked, data = len(paid.server.requests), Path(first["file"]).read_bytes()
    again = paid("a cat", "--id", "k", "--output", tmp_path / "copy.png")
    made = again.record
    assert (again.status, made["file"]) == (0, str(tmp_path / "copy.png"))
    assert (Path(made["file"]).read_bytes(), Path(first["file"]).read_bytes()) == (data, data)
    assert (paid.creates, len(paid.server.requests)) == (1, asked)
    assert {**made, "file": first["file"], "sidecar": first["sidecar"]} == first


def test_a_done_id_is_brought_to_stdout_without_asking_anybody(paid):
    first = paid("a cat", "--id", "k").record
    asked = len(paid.server.requests)
    again = paid("a cat", "--id", "k", "--output", "-", check_records=False)
    assert (again.status, again.out) == (0, Path(first["file"]).read_bytes())
    assert (paid.creates, len(paid.server.requests)) == (1, asked)


def test_a_stranger_who_takes_the_reserved_name_meanwhile_is_left_alone(paid, until, out_dir):
    paid.server.held = True
    child = paid.tool.start("render", "a cat", "--id=k", "--seed=7", "--size=512x512")
    child.stdin.close()
    child.stdin = None
    until(lambda: paid.server.asks("GET /v1/predictions/"))
    (folder,) = out_dir.iterdir()
    (folder / "a-cat-7.png").write_bytes(b"a stranger's")
    paid.server.held = False
    ran = paid.tool.ended(child)
    assert (ran.status, paid.creates) == (0, 1)
    assert Path(ran.record["file"]) == folder / "a-cat-7-2.png"
    assert (folder / "a-cat-7.png").read_bytes() == b"a stranger's"
    assert files_in(out_dir) == ["a-cat-7-2.json", "a-cat-7-2.png", "a-cat-7.png"]


def test_a_strangers_file_where_a_copy_is_wanted_is_refused_as_ever(paid, tmp_path):
    paid("a cat", "--id", "k")
    file = tmp_path / "cat.png"
    file.write_bytes(b"a stranger's")
    ran = paid("a cat", "--id", "k", "--output", file)
    assert (ran.status, ran.record["error"]["code"]) == (2, "output_exists")


def test_a_changed_file_that_the_provider_has_no_more_is_paid_and_gone(paid):
    first = paid("a cat", "--id", "k").record
    Path(first["file"]).write_bytes(b"other")
    paid.server.remove_data(first["submit"])
    ran = paid("a cat", "--id", "k")
    assert (ran.status, ran.record["error"]["code"]) == (1, "paid_file_gone")
    assert Path(first["file"]).read_bytes() == b"other"


def test_a_changed_file_of_a_free_backend_is_rendered_again(tool):
    arguments = ("a cat", "--id", "k", "--seed", 7, "--size", "64x64")
    first = tool("render", *arguments).record
    Path(first["file"]).write_bytes(b"")
    record = tool("render", *arguments).record
    assert (record["sha256"], Path(record["file"]).name) == (first["sha256"], "a-cat-7-2.png")
    assert Path(first["file"]).read_bytes() == b""
