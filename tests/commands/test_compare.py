"""imagen-compare: one request to several backends, one after the other, side by side."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from imagen.records import record
from paid import QUICK, SCHNELL
from processes import children_of, kill_alone, kill_tree
from servers.comfyui import ComfyUI
from servers.ports import refusing_port

FAST = "poll_min_s: 0.001, poll_max_s: 0.02, retry_s: 0.01, patience_s: 0.2"
SMALL = ("--size", "64x64")
schema = Draft202012Validator(record.schema("record"))


@pytest.fixture
def server() -> Iterator[ComfyUI]:
    with ComfyUI() as running:
        yield running
    assert None not in running.interrupts, "a global interrupt stops other people's renders"


@pytest.fixture
def down() -> Iterator[str]:
    """The address of a server that is down."""
    with refusing_port() as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def backends(configure, server, down) -> None:
    """Mocks, a look-alike of ComfyUI, one that is down, and one that cannot render yet."""
    configure(
        f"""
backends:
  other: {{type: mock}}
  poor: {{type: mock, faults: [out_of_credit]}}
  stuck: {{type: mock, faults: [hang]}}
  comfy: {{type: comfyui, url: "{server.url}", workflow: flux1-schnell, {FAST}}}
  down: {{type: comfyui, url: "{down}", workflow: flux1-schnell, {FAST}}}
  paid: {{type: replicate, model: black-forest-labs/flux-schnell}}
"""
    )


pytestmark = pytest.mark.usefixtures("backends")


def only_folder(out_dir: Path) -> Path:
    (folder,) = out_dir.glob("*/*-compare")
    return folder


def report(folder: Path) -> dict:
    return json.loads((folder / "compare.json").read_bytes())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- what comes of it ------------------------------------------------------------------------------


def test_mock_and_comfyui_side_by_side(tool, out_dir, server):
    ran = tool("compare", "a cat", "--backends", "mock,comfy", "--size", "768x768", "--seed", 7)
    assert (ran.status, ran.err) == (0, "")
    mock, comfy, sheet = ran.records
    folder = only_folder(out_dir)
    assert folder.name == "a-cat-7-compare"
    images = {"mock-7.png", "comfy-7.png", "sheet.png"}
    sidecars = {name.replace("png", "json") for name in images}
    assert names(folder) == {*images, *sidecars, "compare.json", "compare.html"}
    for one in (mock, comfy):
        assert one["file"] == str(folder / f"{one['backend']}-7.png")
        assert (one["seed"], one["width"], one["height"]) == (7, 768, 768)
        with Image.open(one["file"]) as picture:
            assert (picture.format, picture.size) == ("PNG", (768, 768))
    found = report(folder)
    assert found["members"] == [mock, comfy]
    assert comfy["workflow"] == "flux1-schnell"
    needed = {"model", "steps", "cfg", "sampler", "scheduler", "latency_ms", "queue_ms", "sha256"}
    assert needed | {"cost_usd", "submit", "started_at", "backend_meta", "attempts"} <= {*comfy}
    assert comfy["backend_meta"]["prompt_id"] == server.submits[0]["prompt_id"]
    base = found["id"]
    assert [mock["id"], comfy["id"]] == [f"{base}-mock-7", f"{base}-comfy-7"]
    assert found["request"] == {
        "prompt": "a cat",
        "width": 768,
        "height": 768,
        "seed": 7,
        "id": base,
    }
    assert sheet["file"] == str(folder / "sheet.png")
    assert sheet["members"] == [mock["id"], comfy["id"]]
    assert sheet["title"] == "a cat"
    picked = tool("sheet", "--pick", "A2", sheet["file"]).record
    assert picked == {name: one for name, one in comfy.items() if name != "caller"}


def test_totals_add_up(tool, out_dir):
    ran = tool("compare", "a cat", "--backends", "mock,other,comfy", *SMALL)
    *made, _sheet = ran.records
    totals = report(only_folder(out_dir))["totals"]
    assert totals["latency_ms"] == sum(one["latency_ms"] for one in made)
    assert totals["queue_ms"] == sum(one.get("queue_ms", 0) for one in made)
    known = (totals["asked"], totals["done"], totals["failed"], totals["cost_usd"])
    assert (*known, totals["unpriced"]) == (3, 3, 0, 0, 0)


def test_backends_are_asked_one_after_the_other_with_one_seed(tool, out_dir, server, until):
    server.held = True
    child = tool.start("compare", "a cat", "--backends", "comfy,other", *SMALL)
    until(lambda: server.queue()[0])
    assert not [*out_dir.rglob("other-*")]
    assert len(server.submits) == 1
    server.release()
    first, second, _sheet = map(json.loads, child.stdout.read().splitlines())
    assert child.wait(20) == 0
    assert [first["backend"], second["backend"]] == ["comfy", "other"]
    assert first["seed"] == second["seed"]
    assert first["started_at"] < second["started_at"]


def test_a_record_comes_out_as_soon_as_it_is_done(tool, server, until):
    server.held = True
    child = tool.start("compare", "a cat", "--backends", "mock,comfy", *SMALL)
    assert json.loads(child.stdout.readline())["backend"] == "mock"
    until(lambda: server.queue()[0])
    server.release()
    assert len(child.stdout.read().splitlines()) == 2


def test_rows_are_backends_and_columns_are_seeds(tool):
    args = ("--backends", "mock,other", "--seeds", "3,1,2", *SMALL, "--id", "x")
    *made, sheet = tool("compare", "a cat", *args).records
    ids = ["x-mock-3", "x-mock-1", "x-mock-2", "x-other-3", "x-other-1", "x-other-2"]
    assert [one["id"] for one in made] == sheet["members"] == ids
    assert [cell["address"] for cell in sheet["cells"]] == ["A1", "B1", "C1", "A2", "B2", "C2"]
    assert [cell["id"] for cell in sheet["cells"]] == ids
    for one in made:
        assert one["id"] == f"x-{one['backend']}-{one['seed']}"
    lefts, tops = ([cell["box"][n] for cell in sheet["cells"]] for n in (0, 1))
    assert lefts[:3] == lefts[3:] == sorted(set(lefts))
    assert tops == [tops[0]] * 3 + [tops[3]] * 3


def test_one_seed_gives_one_column(tool):
    *_, sheet = tool("compare", "a", "--backends", "mock,other,poor", *SMALL).records
    assert [cell["address"] for cell in sheet["cells"]] == ["A1", "A2", "A3"]


def test_a_failed_member_keeps_the_others_in_their_cells(tool, server):
    server.error = "out of memory"
    args = ("--backends", "comfy,mock", "--seeds", "1,2", *SMALL, "--id", "x")
    sheet = tool("compare", "a", *args).records[-1]
    at = {cell["address"]: cell["id"] for cell in sheet["cells"]}
    assert at == {"A1": "x-comfy-1", "B1": "x-comfy-2", "A2": "x-mock-1", "B2": "x-mock-2"}


def test_a_taken_folder_is_not_used_again(tool, out_dir):
    for _ in range(3):
        assert tool("compare", "a cat", "--backends", "mock", "--seed", 7, *SMALL).status == 0
    found = {path.name for path in out_dir.glob("*/*")}
    assert found == {"a-cat-7-compare", "a-cat-7-compare-2", "a-cat-7-compare-3"}


def test_renders_options_reach_every_backend(tool, configure):
    path = tool.folder / "own.yaml"
    path.write_text('backends: {one: {type: mock}}\nstyles: {ink: {template: "ink {prompt}"}}\n')
    options = ("--config", path, "--style", "ink", "--negative=a, b", "--steps=3", "--cfg=2.5")
    more = ("--option", "x=1", "--out-dir", "some where", *SMALL)
    ran = tool("compare", "-v", "a cat", "--backends", "mock,one", *options, *more)
    assert ran.status == 0
    for one in ran.records[:-1]:
        assert (one["sent_prompt"], one["negative_prompt"]) == ("ink a cat", "a, b")
        assert (one["steps"], one["cfg"], one["options"]) == (3, 2.5, {"x": 1})
        assert Path(one["file"]).is_relative_to(tool.folder / "some where")


@pytest.mark.parametrize("prompt", ["--seed", 'it\'s "$(id)" `id`; *\na 🐈', "é" * 9999])
def test_a_prompt_reaches_every_backend_as_it_is(tool, prompt):
    ran = tool("compare", "--backends", "mock,other", *SMALL, "--", prompt)
    assert (ran.status, ran.err) == (0, "")
    assert [one["prompt"] for one in ran.records[:-1]] == [prompt] * 2
    assert ran.records[-1]["title"] == prompt


# -- backends that fail ----------------------------------------------------------------------------


def test_one_that_is_down_does_not_stop_the_others(tool, out_dir):
    ran = tool("compare", "a cat", "--backends", "down,mock", *SMALL)
    assert ran.status == 75
    down, mock, sheet = ran.records
    assert (down["backend"], down["error"]["code"]) == ("down", "unreachable")
    assert "file" in mock
    assert "connection refused" in ran.err
    folder = only_folder(out_dir)
    found = report(folder)
    assert found["members"] == [down, mock]
    assert (found["totals"]["done"], found["totals"]["failed"]) == (1, 1)
    assert "file" not in sheet["cells"][0]
    picked = tool("sheet", "--pick", "A1", sheet["file"]).record
    assert picked == {name: one for name, one in down.items() if name != "caller"}
    with Image.open(sheet["file"]) as picture:
        left, top, width, height = sheet["cells"][0]["box"]
        cell = picture.crop((left, top, left + width, top + height))
    assert cell.getpixel((1, 1)) == (0x5C, 0x2B, 0x29)
    assert cell.getextrema()[1][1] > 200, "its error is written there"


def test_all_of_them_down(tool, out_dir):
    ran = tool("compare", "a cat", "--backends", "down,poor", *SMALL)
    assert ran.status == 1
    *made, sheet = ran.records
    codes = [one["error"]["code"] for one in made]
    assert codes == ["unreachable", "out_of_credit"]
    assert len(sheet["cells"]) == 2
    folder = only_folder(out_dir)
    assert names(folder) == {"sheet.png", "sheet.json", "compare.json", "compare.html"}
    assert report(folder)["totals"]["failed"] == 2


def test_one_that_must_be_changed_gives_2_and_does_not_stop_the_others(tool):
    ran = tool("compare", "a cat", "--backends", "paid,mock", *SMALL)
    assert ran.status == 2
    error = ran.records[0]["error"]
    assert (error["code"], error["billed"]) == ("config", "no")
    assert "REPLICATE_API_TOKEN is not set" in error["message"]
    assert "file" in ran.records[1]


def test_a_request_that_one_refuses_is_a_failure_of_that_one(tool):
    ran = tool("compare", "a", "--backends", "mock,comfy", "--negative", "x", "--strict", *SMALL)
    assert ran.status == 2
    assert [one["error"]["code"] for one in ran.records[:-1]] == ["not_faithful"] * 2


def test_a_render_that_is_killed_leaves_its_cell(tool, out_dir, until):
    child = tool.start("compare", "a", "--backends", "stuck,mock", *SMALL, "--id", "x")
    until(lambda: [*tool.folder.glob("state/imagen/mock/*.json")])
    os.kill(children_of(child.pid)[0], signal.SIGKILL)
    stuck, mock, sheet = map(json.loads, child.stdout.read().splitlines())
    assert child.wait(20) == 1
    assert stuck["id"] == "x-stuck-" + str(stuck["seed"])
    assert "137" in stuck["error"]["message"]
    assert (mock["backend"], sheet["members"]) == ("mock", [stuck["id"], mock["id"]])
    assert report(only_folder(out_dir))["members"] == [stuck, mock]


# -- interrupted -----------------------------------------------------------------------------------


def test_an_interrupt_keeps_what_was_made_and_cancels_the_rest(tool, out_dir, server, until):
    server.held = True
    args = ("--backends", "mock,comfy,other", *SMALL)
    child = tool.start("compare", "a cat", *args)
    until(lambda: server.queue()[0])
    child.send_signal(signal.SIGINT)
    mock, comfy = map(json.loads, child.stdout.read().splitlines())
    assert child.wait(20) == 130
    assert b"Traceback" not in child.stderr.read()
    assert (mock["backend"], comfy["error"]["code"]) == ("mock", "interrupted")
    prompt_id = server.submits[0]["prompt_id"]
    assert server.queue() == (None, [])
    assert server.interrupts == [prompt_id]
    assert server.ending(prompt_id) == "execution_interrupted"
    folder = only_folder(out_dir)
    found = report(folder)
    assert found["members"] == [mock, comfy]
    totals = found["totals"]
    assert (totals["asked"], totals["done"], totals["failed"]) == (3, 1, 1)
    assert Path(mock["file"]).is_file()
    assert "sheet.png" not in names(folder)
    assert not [name for name in names(folder) if name.startswith(".")]


# -- a dry run -------------------------------------------------------------------------------------


def test_a_dry_run_shows_every_plan_and_sends_nothing(tool, out_dir, server):
    ran = tool("compare", "a cat", "--backends", "mock,comfy", "--seeds", "1,2", "--dry-run")
    assert (ran.status, ran.err) == (0, "")
    *plans, total = ran.records
    assert [(one["backend"], one["id"][-2:]) for one in plans] == [
        ("mock", "-1"),
        ("mock", "-2"),
        ("comfy", "-1"),
        ("comfy", "-2"),
    ]
    assert plans[2]["payload"]["prompt"]["31"]["inputs"]["seed"] == 1
    assert total == {"plans": 4, "cost_usd": 0, "unpriced": 0}
    assert server.requests == []
    assert not out_dir.exists()


# -- what is refused before anything is sent -------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--backends", "comfy,mok"), "did you mean mock?"),
        (("--backends", "comfy,comfy"), "each once"),
        (("--backends", ","), "each once"),
        ((), "--backends"),
        (("--backends", "comfy", "--seeds", "1,x"), "seed must be a whole number"),
        (("--backends", "comfy", "--seeds", "1,1"), "each once"),
        (("--backends", "comfy", "--seeds", "-1"), "seed must be from 0"),
        (("--backends", "comfy", "--size", "big"), "--size takes WxH"),
        (("--backends", "comfy", "--style", "nonesuch"), "nonesuch"),
        (("--backends", "comfy", "--config", "/no/such"), "/no/such"),
        (("--backends", "comfy", "--count", "2"), "No such option '--count'"),
        (("--backends", "comfy", "--again"), "No such option '--again'"),
        (("--backends", "comfy", "--output", "x.png"), "No such option '--output'"),
        (("--backends", "comfy", "--force"), "No such option '--force'"),
        (("--backends", "comfy", "--backend", "mock"), "No such option '--backend'"),
        (("--backends", "comfy", "--set", "seed=3"), "No such option '--set'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(tool, out_dir, server, args, says):
    ran = tool("compare", "a cat", *SMALL[: 0 if "--size" in args else 2], *args)
    assert (ran.status, ran.out) == (2, b"")
    assert says in ran.err
    assert "itself" not in ran.err
    assert server.requests == []
    assert not out_dir.exists()


@pytest.mark.parametrize("prompt", ["-", "", "  ", b"a\xff"])
def test_a_prompt_that_is_none_is_refused(tool, out_dir, prompt):
    ran = tool("compare", "--backends", "mock", *SMALL, "--", prompt)
    assert (ran.status, ran.out) == (2, b"")
    assert "itself" not in ran.err
    assert not out_dir.exists()


def test_no_prompt_is_a_usage_fault(tool):
    assert tool("compare", "--backends", "mock").status == 2


def test_a_place_that_cannot_be_written_is_said(tool):
    (tool.folder / "file").write_text("")
    ran = tool("compare", "a", "--backends", "mock", *SMALL, "--out-dir", "file/x")
    assert ran.status == 2
    assert "cannot write the comparison" in ran.err


def test_stdin_is_not_read(tool):
    child = tool.start("compare", "a", "--backends", "mock", *SMALL)  # its stdin never ends
    assert child.wait(20) == 0


def test_every_line_is_valid_against_the_schema(tool):
    ran = tool("compare", "a", "--backends", "mock,down,comfy", "--seeds", "1,2", *SMALL)
    for one in ran.records:
        schema.validate(one)
    assert "cells" in ran.records[-1]


# -- the page, in a real browser -------------------------------------------------------------------

HOSTILE = (
    '</script><script>alert(1)</script> <img src=x onerror=alert(2)> "it\'s" &amp; & <!-- \u2028'
)
QUIET = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-default-apps --virtual-time-budget=30000"
)
WATCH = """<script>
  window.alarms = [];
  for (const name of ["alert", "confirm", "prompt"]) window[name] = (text) => alarms.push(text);
</script>
"""
LOOK = """<script>
  addEventListener("load", async () => {
    const seen = [];
    const look = async () => {
      const images = [...document.images];
      const loaded = (one) => new Promise((done) => {
        if (one.complete) done();
        else one.onload = one.onerror = done;
      });
      await Promise.all(images.map(loaded));
      seen.push({
        prompt: document.getElementById("prompt").textContent,
        about: document.getElementById("about").textContent,
        files: images.map((one) => decodeURIComponent(one.getAttribute("src"))),
        widths: images.map((one) => one.naturalWidth),
        chosen: [...main.children].findIndex((one) => one.ariaCurrent === "true"),
        faults: [...document.querySelectorAll(".fault")].map((one) => one.textContent),
        text: document.getElementById("members").textContent,
        full: document.body.className,
      });
    };
    await look();
    for (const key of KEYS) {
      document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
      await look();
    }
    const scripts = document.scripts.length;
    const found = document.createElement("pre");
    found.id = "found";
    found.textContent = JSON.stringify({seen, alarms, scripts, title: document.title});
    document.body.append(found);
  });
</script>
"""


@pytest.fixture
def browse(needs, tmp_path) -> Callable[..., dict]:
    """Open a page in Chromium, press keys, and give what was shown after each."""
    chromium = needs("chromium", "chromium")

    def shown(page: Path, *keys: str) -> dict:
        copy = page.with_name("watched.html")  # beside the page, so that its images are found
        text = page.read_text().replace("<header>", WATCH + "<header>", 1)
        copy.write_text(text.replace("</html>", LOOK.replace("KEYS", json.dumps(keys)) + "</html>"))
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        done = subprocess.run(
            [chromium, *QUIET.split(), profile, "--dump-dom", copy.as_uri()],
            capture_output=True,
            timeout=60,
            check=True,
        )
        found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout.decode(), re.DOTALL)
        assert found, done.stderr.decode()[-2000:]
        return json.loads(html.unescape(found[1]))

    return shown


def test_a_hostile_prompt_is_text_and_every_image_loads(tool, out_dir, browse):
    ran = tool("compare", HOSTILE, "--backends", "mock,other,down", "--size", "80x64")
    assert ran.status == 75
    found = browse(only_folder(out_dir) / "compare.html")
    (first,) = found["seen"]
    assert first["prompt"] == HOSTILE
    assert found["title"].endswith(HOSTILE[:80].strip())
    assert found["alarms"] == []
    assert found["scripts"] == 4, "the page's two and the test's two"
    assert first["widths"] == [80, 80]
    seed = ran.records[0]["seed"]
    assert first["files"] == [f"mock-{seed}.png", f"other-{seed}.png"]
    assert "unreachable: " in first["faults"][0]
    assert "2 of 3 made" in first["about"]
    assert "80 × 64" in first["text"]


def test_arrows_choose_the_backend_and_change_the_seed(tool, out_dir, browse):
    args = ("--backends", "mock,other", "--seeds", "5,18446744073709551615", *SMALL)
    tool("compare", "a cat", *args)
    keys = [
        "ArrowRight",
        "ArrowRight",
        "ArrowLeft",
        "ArrowDown",
        "ArrowDown",
        "ArrowUp",
        "Enter",
        "x",
    ]
    seen = browse(only_folder(out_dir) / "compare.html", *keys)["seen"]
    large = "18446744073709551615"
    assert [one["chosen"] for one in seen] == [0, 1, 0, 1, 1, 1, 1, 1, 1]
    seeds = [re.match(r"seed (\d+)", one["about"])[1] for one in seen]
    assert seeds == ["5", "5", "5", "5", large, "5", large, large, large]
    for one, seed in zip(seen, seeds, strict=True):
        assert one["files"] == [f"mock-{seed}.png", f"other-{seed}.png"]
        assert one["widths"] == [64, 64]
    assert [one["full"] for one in seen[-3:]] == ["", "full", "full"]


def test_the_page_of_an_interrupted_comparison_works(tool, out_dir, server, until, browse):
    server.held = True
    child = tool.start("compare", "a", "--backends", "mock,comfy", "--seeds", "1,2,3", *SMALL)
    until(lambda: server.queue()[0])
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == 130
    seen = browse(only_folder(out_dir) / "compare.html", "ArrowDown", "ArrowRight", "ArrowUp")[
        "seen"
    ]
    assert [len(one["files"]) for one in seen] == [1, 1, 1, 1]
    assert [len(one["faults"]) for one in seen] == [1, 0, 0, 1]


def test_the_page_refers_to_no_network(tool, out_dir):
    tool("compare", "a cat", "--backends", "mock,comfy", *SMALL)
    page = (only_folder(out_dir) / "compare.html").read_text()
    assert not re.search(r"(?:https?|wss?|ftp):|\bsrc=|\bhref=|@import|url\(|fetch\(", page)
    assert "default-src 'none'" in page


# -- an unfinished comparison is gone on with ------------------------------------------------------

TWO = "  second: {type: replicate, model: '%s', base_url: '%s', %s}"


@pytest.fixture
def both(paid):
    """A machine with two paid backends, `rep` and `second`, that run imagen-compare."""
    paid.configure(more=TWO % (SCHNELL, paid.server.url, QUICK))

    def run(*args, **more):
        return paid.tool("compare", "a cat", "--backends", "rep,second", *args, **more)

    run.paid = paid
    return run


def compare_with(both, *args, **more):
    """Start imagen-compare and leave it running."""
    return both.paid.tool.start("compare", "a cat", "--backends", "rep,second", *args, **more)


@pytest.mark.parametrize("kill", [kill_alone, kill_tree])
def test_killed_after_some_creates_and_run_again_each_member_is_paid_once(
    both, out_dir, until, kill
):
    server = both.paid.server
    child = compare_with(both, "--seeds", "1,2")
    until(lambda: server.creates == 2, 60)
    server.held = True
    until(lambda: server.creates == 3, 60)
    kill(child)
    server.held = False
    ran = both("--seeds", "1,2", timeout=60)
    assert ran.status == 0, ran.err
    assert "taken up where an earlier run left it (--new declines)" in ran.err
    assert server.creates == 4
    *members, sheet = ran.records
    assert [one["id"] for one in members] == sheet["members"]
    folder = only_folder(out_dir)
    assert {Path(one["file"]).parent for one in members} == {folder}
    assert report(folder)["totals"]["done"] == 4
    assert both.paid("--resume", "--dry-run").out == b""


def test_wait_bounds_the_wait_for_another_run_of_the_comparison(both, until):
    server = both.paid.server
    server.held = True
    child = compare_with(both, "--id=c", "--seed=7")
    until(lambda: server.asks("GET /v1/predictions/"), 60)
    child.send_signal(signal.SIGSTOP)
    asked = server.asks("POST")
    ran = both("--id", "c", "--seed", 7, "--wait", 1, timeout=30)
    assert (ran.status, ran.out, server.asks("POST")) == (75, b"", asked), ran.err
    assert f"process {child.pid}, which is stopped" in ran.err
    assert f"kill -CONT {child.pid}" in ran.err
    child.send_signal(signal.SIGCONT)
    server.held = False
    assert both.paid.tool.ended(child).status == 0
    assert server.creates == 2


def test_a_member_in_doubt_is_told_again_and_nothing_is_paid_a_second_time(both):
    server = both.paid.server
    server.add({"prompt": "x"}, data_removed=True, input={})
    server.fail("POST", None)
    first = both()
    again = both()
    for ran in (first, again):
        retries = [one.get("error", {}).get("retry") for one in ran.records]
        assert (ran.status, retries.count("reconcile")) == (1, 1)
    assert server.asks("POST") == 2


def test_a_comparison_that_was_handed_out_is_a_new_one_the_next_time(both, out_dir):
    assert both().status == 0
    assert both().status == 0
    assert both.paid.server.creates == 4
    assert len([*out_dir.glob("*/*-compare*")]) == 2


def test_what_is_unfinished_comes_out_pending_and_the_same_command_finishes_it(both, out_dir):
    server = both.paid.server
    server.held = True
    first = both("--wait", 0)
    assert first.status == 75
    *members, _sheet = first.records
    assert ["pending" in one for one in members] == [True, True]
    assert report(only_folder(out_dir))["members"] == members
    server.held = False
    done = both()
    assert (done.status, server.creates) == (0, 2), done.err
    assert [one["id"] for one in done.records[:-1]] == [one["id"] for one in members]
    assert all(Path(one["file"]).is_file() for one in done.records)
    assert report(only_folder(out_dir))["totals"]["done"] == 2


@pytest.mark.parametrize("other", [["--new"], ["--seed", 5], ["--size", "512x512"]])
def test_new_and_another_request_take_up_nothing(both, other):
    both.paid.server.held = True
    first = both("--wait", 0)
    both.paid.server.held = False
    anew = both(*other)
    assert (anew.status, both.paid.server.creates) == (0, 4), anew.err
    assert anew.records[0]["id"] != first.records[0]["id"]


def test_the_same_id_again_is_the_same_comparison_with_its_seed_and_its_folder(both, out_dir):
    both.paid.server.held = True
    first = both("--id", "x", "--wait", 0)
    both.paid.server.held = False
    done = both("--id", "x")
    assert [one["id"] for one in done.records[:-1]] == [one["id"] for one in first.records[:-1]]
    assert done.records[0]["file"].startswith(str(only_folder(out_dir)))
    again = both("--id", "x")
    assert [one["sha256"] for one in again.records[:-1]] == [
        one["sha256"] for one in done.records[:-1]
    ]
    assert both.paid.server.creates == 2


def test_after_term_a_submitted_member_comes_out_pending(both, out_dir, until):
    server = both.paid.server
    server.held = True
    child = compare_with(both)
    until(lambda: server.asks("GET /v1/predictions/"), 60)
    child.send_signal(signal.SIGTERM)
    ran = both.paid.tool.ended(child)
    assert (ran.status, "pending" in ran.record) == (143, True)
    assert report(only_folder(out_dir))["members"] == [ran.record]
    server.held = False
    done = both()
    assert (done.status, server.creates) == (0, 2), done.err
    assert done.records[0]["id"] == ran.record["id"]


def test_a_member_that_failed_for_now_is_tried_again_by_the_same_command(tool, out_dir):
    args = ("a cat", "--backends", "mock,down", *SMALL)
    first = tool("compare", *args)
    again = tool("compare", *args)
    assert (first.status, again.status) == (75, 75)
    assert first.records[0] == again.records[0], "what was made is handed out again"
    assert len([*out_dir.glob("*/*-compare")]) == 1
