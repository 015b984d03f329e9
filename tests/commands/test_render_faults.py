"""imagen-render when things go wrong: the mock's faults, waits, time-outs and signals."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

TINY = {"width": 64, "height": 64}
SMALL = ("--size", "64x64")


def asking(*faults: Any, **also: Any) -> dict[str, Any]:
    """A request whose options tell the mock to fail."""
    options = {"faults": [*faults], **also.pop("options", {})}
    return {"prompt": "a cat", "seed": 1, **TINY, "options": options, **also}


def images(folder: Path) -> list[str]:
    """Every file with an image's or sidecar's name below a folder, dot-files too."""
    ends = (".png", ".jpg", ".webp", ".json")
    return sorted(path.name for path in folder.rglob("*") if path.name.endswith(ends))


# -- each fault: what the record says, whether to run it again, the exit status --------------------

FAILING = [
    # fault, error code, billed, retry, exit status
    ("refused", "unreachable", "no", "safe", 75),
    ("server_error", "server_fault", "no", "safe", 75),
    ("throttled", "rate_limited", "no", "after", 75),
    ("out_of_credit", "out_of_credit", "no", "never", 1),
    ("wrong_magic", "bad_image", "no", "safe", 75),
    ("truncated", "bad_image", "no", "safe", 75),
    ("fewer_images", "too_few_images", "no", "never", 1),
]


@pytest.mark.parametrize(("fault", "code", "billed", "retry", "status"), FAILING)
def test_a_fault_has_its_code_its_advice_and_its_status(
    tool, out_dir, fault, code, billed, retry, status
):
    ran = tool("render", stdin=[asking(fault)])
    error = ran.record["error"]
    assert (error["code"], error["billed"], error["retry"]) == (code, billed, retry)
    assert (error["tool"], ran.status) == ("imagen-render", status)
    assert error["message"] in ran.err
    assert len(ran.err.splitlines()) == 1
    assert images(out_dir) == [], "nothing stands under a final name"
    kept = [*out_dir.rglob(".*.reserved")]
    can_go_on = code in ("server_fault", "bad_image")  # the server may have it, or give it better
    assert bool(kept) == can_go_on, "a name stays reserved as long as the render can go on"


@pytest.mark.parametrize(("fault", "code", "billed", "retry", "status"), FAILING)
def test_the_instances_yaml_file_fails_it_the_same_way(
    tool, configure, fault, code, billed, retry, status
):
    path = configure("backends: {flaky: {type: mock, faults: faults.yaml}}\n")
    (path.parent / "faults.yaml").write_text(f"- {fault}\n")
    ran = tool("render", "a cat", "--backend", "flaky", *SMALL)
    assert (ran.record["error"]["code"], ran.record["error"]["retry"]) == (code, retry)
    assert ran.status == status


def test_a_throttled_record_says_how_long_to_wait(tool):
    ran = tool("render", stdin=[asking({"fault": "throttled", "wait_s": 7.5})])
    assert ran.record["error"]["retry_after_s"] == 7.5


@pytest.mark.parametrize(("fault", "attempts"), [("refused", 1), ("server_error", 2)])
def test_a_fault_that_passes_is_met_with_one_retry(tool, fault, attempts):
    ran = tool("render", stdin=[asking({"fault": fault, "times": 1})])
    assert (ran.status, ran.err) == (0, "")
    assert ran.record["attempts"] == attempts, "what never left is no attempt"


@pytest.mark.parametrize("fault", ["refused", "server_error"])
def test_two_faults_in_a_row_end_the_try(tool, fault):
    twice = asking({"fault": fault, "times": 2})
    first, second = (tool("render", stdin=[twice]) for _ in range(2))
    assert (first.status, second.status) == (75, 0)


@pytest.mark.parametrize("fault", ["throttled", "out_of_credit"])
def test_no_4xx_is_tried_twice(tool, fault):
    ran = tool("render", stdin=[asking({"fault": fault, "times": 1})])
    assert (ran.status != 0, "attempts" in ran.record) == (True, False), "it was no submit"


@pytest.mark.parametrize("times", [{}, {"times": 1}])
def test_a_lost_answer_is_looked_for_and_never_submitted_twice(tool, times):
    ran = tool("render", stdin=[asking({"fault": "lost_answer", **times})])
    assert (ran.status, ran.record["attempts"]) == (0, 1)
    assert len([*tool.folder.glob("state/imagen/mock/*.json")]) == 1


def test_fewer_images_than_asked_gives_those_that_came_and_a_failed_record(tool):
    ran = tool("render", stdin=[asking("fewer_images", id="k", options={"images": 3})])
    first, second, failed = ran.records
    assert (first["id"], second["id"], failed["id"]) == ("k", "k.2", "k.3")
    assert Path(first["file"]).is_file()
    assert Path(second["file"]).is_file()
    assert "file" not in failed
    assert "2 of 3" in failed["error"]["message"]
    assert ran.status == 1


def test_a_flat_image_is_kept_and_flagged(tool):
    ran = tool("render", stdin=[asking("flat")])
    assert (ran.status, ran.record["warnings"]) == (0, ["flat"])
    assert json.loads(Path(ran.record["sidecar"]).read_bytes())["warnings"] == ["flat"]


def test_a_slow_image_is_waited_for(tool):
    ran = tool("render", stdin=[asking({"fault": "slow", "wait_s": 0.3})])
    assert ran.status == 0
    assert ran.record["latency_ms"] >= 250


def test_a_fault_strikes_only_prompts_that_match(tool, configure):
    path = configure("backends: {flaky: {type: mock, faults: faults.yaml}}\n")
    (path.parent / "faults.yaml").write_text("- {fault: out_of_credit, match: cat}\n")
    ran = tool("render", "--backend=flaky", "a dog", "a cat", *SMALL)
    assert ["error" in one for one in ran.records] == [False, True]


def test_a_fault_of_the_instance_strikes_as_often_as_told_over_all_processes(tool, configure):
    configure("backends: {flaky: {type: mock, faults: [{fault: out_of_credit, times: 2}]}}\n")
    statuses = [tool("render", "--backend=flaky", "a", *SMALL).status for _ in range(3)]
    assert statuses == [1, 1, 0]


def test_a_fault_may_stand_alone(tool):
    ran = tool("render", "a", *SMALL, "--option", "faults=flat")
    assert ran.record["warnings"] == ["flat"]


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ("serverror", "server_error"),
        (5, "5"),
        (True, "True"),
        ([["flat"]], "flat"),
        ([{"times": 1}], "times"),
        ([{"fault": "flat", "often": 1}], "often"),
        ([{"fault": "flat", "times": "x"}], "times"),
        ([{"fault": "flat", "times": -1}], "times"),
        ([{"fault": "throttled", "wait_s": -3}], "wait_s"),
    ],
)
def test_a_fault_that_is_none_is_refused_and_named(tool, out_dir, faults, says):
    line = {"prompt": "a", **TINY, "options": {"faults": faults}}
    ran = tool("render", stdin=[line, {"prompt": "b", **TINY}])
    assert ran.status == 2
    assert says in ran.err
    assert "fault in imagen-render itself" not in ran.err
    assert ["error" in one for one in ran.records] == [True, False]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "faults.yaml"),
        ("- nonsense\n", "nonsense"),
        ("[: not yaml", "faults.yaml"),
        ("7\n", "7"),
    ],
)
def test_a_bad_file_of_faults_is_refused_and_named(tool, configure, text, says):
    path = configure("backends: {flaky: {type: mock, faults: faults.yaml}}\n")
    if text is not None:
        (path.parent / "faults.yaml").write_text(text)
    ran = tool("render", "--backend=flaky", "a", *SMALL)
    assert ran.status == 2
    assert says in ran.err
    assert "fault in imagen-render itself" not in ran.err
    assert "Traceback" not in ran.err


# -- --wait and --timeout --------------------------------------------------------------------------

HANG = asking("hang", id="k")


PENDING = (
    "imagen-render: k: not done yet at mock"
    " (hint: run the same command again, or imagen-render --resume)\n"
)


def test_wait_hands_out_the_unfinished_record(tool, out_dir):
    ran = tool("render", "--wait", 0.1, stdin=[HANG])
    assert (ran.status, ran.err) == (75, PENDING)
    assert [*ran.record["pending"]] == ["backend", "handle", "since"]
    assert ran.record["pending"]["backend"] == "mock"
    assert ran.record["pending"]["since"] == ran.record["started_at"]
    assert (ran.record["id"], ran.record["attempts"]) == ("k", 1)
    assert not {"error", "file", "sidecar", "sha256"} & {*ran.record}
    assert images(out_dir) == []
    assert [one.name for one in out_dir.rglob(".*")] == [".a-cat-1.reserved"]


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["-q"], "run the same command again, or imagen-render --resume"),
        (["--new"], "imagen-render --resume"),
        (["--no-ledger"], "pipe its record back into imagen-render"),
    ],
)
def test_what_is_pending_is_named_with_the_command_that_collects_it(tool, args, hint):
    ran = tool("render", "--wait", 0, *args, stdin=[HANG])
    assert ran.status == 75
    assert f"imagen-render: k: not done yet at mock (hint: {hint})\n" in ran.err


def test_of_many_pending_lines_a_few_are_named_and_the_rest_counted(tool):
    ran = tool("render", "--wait", 0, stdin=[asking("hang", id=f"k{n}") for n in range(8)])
    assert (ran.status, len(ran.records)) == (75, 8)
    *few, last = ran.err.splitlines()
    assert [line.split(":")[1] for line in few] == [" k0", " k1", " k2"]
    hint = "run the same command again, or imagen-render --resume"
    assert last == f"imagen-render: 5 more not done yet (hint: {hint})"


def test_a_fault_that_may_pass_says_to_run_the_same_command_again(tool, configure):
    configure("backends: {gpu: {type: comfyui, url: 'http://127.0.0.1:9'}}\n")
    ran = tool("render", "a cat", "--backend", "gpu")
    assert ran.status == 75
    assert "run the same command again" in ran.err
    assert "--resume" not in ran.err, "nothing was submitted"


def test_another_process_collects_what_is_pending_and_renders_nothing(tool, out_dir):
    slow = asking({"fault": "slow", "wait_s": 0.4}, id="k", mine=[1])
    pending = tool("render", "--wait", 0.05, stdin=[slow])
    assert pending.status == 75
    accepted = [*tool.folder.glob("state/imagen/mock/*.json")]
    ran = tool("render", stdin=pending.out)
    assert ran.status == 0
    made = ran.record
    assert (made["id"], made["seed"], made["mine"], made["attempts"]) == ("k", 1, [1], 1)
    assert made["submit"] == pending.record["pending"]["handle"]
    assert made["started_at"] == pending.record["started_at"]
    assert not {"pending", "error"} & {*made}
    assert json.loads(Path(made["sidecar"]).read_bytes()) == made
    assert [*tool.folder.glob("state/imagen/mock/*.json")] == accepted
    assert images(out_dir) == ["a-cat-1.json", "a-cat-1.png"]


def test_a_pending_line_that_is_still_not_done_stays_pending(tool):
    pending = tool("render", "--wait", 0, stdin=[HANG])
    again = tool("render", "--wait", 0, stdin=pending.out)
    assert (again.status, again.record) == (75, pending.record)


def test_an_old_error_does_not_hide_that_a_line_is_pending(tool):
    pending = tool("render", "--wait", 0, stdin=[HANG]).record
    error = {"tool": "imagen-render", "code": "x", "message": "m", "billed": "no", "retry": "safe"}
    ran = tool("render", "--wait", 0, stdin=[{**pending, "error": error}])
    assert (ran.status, ran.record) == (75, pending)


@pytest.mark.parametrize("options", [["--count", 3], ["--seed", 8], ["--set", "seed=8"]])
def test_a_pending_line_is_collected_whatever_the_options(tool, options):
    slow = asking({"fault": "slow", "wait_s": 0.2}, id="k")
    pending = tool("render", "--wait", 0, stdin=[slow])
    made = tool("render", *options, stdin=pending.out).record
    assert (made["id"], made["seed"]) == ("k", 1)


def test_again_makes_a_pending_line_anew(tool):
    pending = tool("render", "--wait", 0, stdin=[HANG])
    made = tool("render", "--again", "--set", "options={}", stdin=pending.out).record
    assert (made["request"], "pending" in made) == ("k", False)
    assert made["submit"] != pending.record["pending"]["handle"]


@pytest.mark.parametrize(
    "pending",
    [5, {}, {"handle": 5}, {"backend": "mock", "handle": [], "since": "x"}],
)
def test_a_pending_line_without_its_handle_is_refused(tool, pending):
    ran = tool("render", stdin=[{"prompt": "a", "id": "k", "seed": 1, "pending": pending}])
    assert (ran.status, ran.record["error"]["retry"]) == (2, "never")


def test_a_pending_line_of_a_mock_that_never_took_it_is_lost(tool):
    pending = tool("render", "--wait", 0, stdin=[HANG]).record
    for memory in tool.folder.glob("state/imagen/mock/*.json"):
        memory.unlink()
    ran = tool("render", "--wait", 0, stdin=[pending])
    assert ran.status == 75
    assert ran.record["attempts"] == 2, "it is submitted once more, under a new number"
    assert ran.record["pending"]["handle"] != pending["pending"]["handle"]


def test_the_wait_ends_only_its_own_record(tool):
    ran = tool("render", "--wait", 0.1, stdin=[HANG, asking(prompt="b")])
    assert ["pending" in one for one in ran.records] == [True, False]
    assert ran.status == 75


def test_a_time_out_cancels_a_free_render(tool, out_dir):
    ran = tool("render", "--timeout", 0.2, stdin=[HANG])
    error = ran.record["error"]
    assert (ran.status, error["code"], error["retry"]) == (75, "timeout", "safe")
    assert (error["billed"], "pending" in ran.record) == ("no", False)
    assert not [*tool.folder.glob("state/imagen/mock/*.json")], "the mock has forgotten it"
    assert images(out_dir) == []


def test_a_time_out_of_the_instance_holds_when_no_flag_says_otherwise(tool, configure):
    configure("backends: {hasty: {type: mock, timeout_s: 0.2}}\n")
    ran = tool("render", "--backend=hasty", stdin=[HANG])
    assert ran.record["error"]["code"] == "timeout"


def test_of_wait_and_time_out_the_shorter_one_comes_first(tool):
    handed_out = tool("render", "--wait", 0.1, "--timeout", 9, stdin=[HANG])
    cancelled = tool("render", "--wait", 9, "--timeout", 0.1, stdin=[HANG])
    assert "pending" in handed_out.record
    assert cancelled.record["error"]["code"] == "timeout"


# -- signals ---------------------------------------------------------------------------------------


@pytest.fixture
def waiting(tool, until):
    """A render that waits for the mock; its first line is done, its second hangs."""

    def start(**popen: Any):
        child = tool.start("render", **popen)
        child.stdin.write(json.dumps({"prompt": "first", **TINY}).encode() + b"\n")
        child.stdin.write(json.dumps(HANG).encode() + b"\n")
        child.stdin.write(json.dumps({"prompt": "third", **TINY}).encode() + b"\n")
        child.stdin.close()
        until(lambda: any("hang" in one for one in memories(tool)))
        return child

    return start


def memories(tool) -> list[str]:
    """What the mock remembers; a render that is done is forgotten while we look."""
    found = []
    for path in tool.folder.glob("state/imagen/mock/*.json"):
        with suppress(FileNotFoundError):
            found.append(path.read_text())
    return found


def ended(child) -> tuple[int, list[dict[str, Any]], str]:
    status = child.wait(60)  # what it says fits into its pipes
    out, err = child.stdout.read(), child.stderr.read().decode()
    return status, [json.loads(line) for line in out.splitlines()], err


def test_an_interrupt_cancels_our_own_render_and_ends_with_130(tool, waiting, out_dir):
    child = waiting()
    child.send_signal(signal.SIGINT)
    status, records, err = ended(child)
    assert status == 130
    assert [one["prompt"] for one in records] == ["first", "a cat"]
    assert records[1]["error"]["code"] == "interrupted"
    assert records[1]["error"]["retry"] == "safe"
    assert "Traceback" not in err
    assert not [*tool.folder.glob("state/imagen/mock/*.json")], "the mock has forgotten it"
    assert images(out_dir) == [Path(records[0]["sidecar"]).name, Path(records[0]["file"]).name]
    assert not [*out_dir.rglob(".*")]


def test_a_termination_leaves_it_running_and_hands_out_the_pending_line(tool, waiting, out_dir):
    child = waiting()
    child.send_signal(signal.SIGTERM)
    status, records, err = ended(child)
    assert (status, err) == (143, PENDING)
    assert [one["prompt"] for one in records] == ["first", "a cat"]
    handle = records[1]["pending"]["handle"]
    assert "error" not in records[1]
    assert len([*tool.folder.glob("state/imagen/mock/*.json")]) == 1
    assert len([*out_dir.rglob(".*")]) == 1, "its name stays reserved"
    (memory,) = tool.folder.glob("state/imagen/mock/*.json")
    done = json.loads(memory.read_bytes())
    memory.write_text(json.dumps({**done, "faults": []}))
    made = tool("render", stdin=[records[1]])
    assert (made.status, made.record["submit"]) == (0, handle)


def test_an_ignored_interrupt_stays_ignored(waiting):
    child = waiting(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    assert ended(child)[0] == 143, "as under nohup, or in the background of a shell"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_waits_for_lines_ends_it_quietly(tool, number, status):
    child = tool.start("render")
    child.stdin.write(json.dumps({"prompt": "first", **TINY}).encode() + b"\n")
    child.stdin.flush()
    assert json.loads(child.stdout.readline())["prompt"] == "first"
    child.send_signal(number)
    assert ended(child) == (status, [], "")


def test_an_interrupt_of_the_whole_pipeline_still_lets_the_record_out(tool, until):
    child = tool.start("render", start_new_session=True)
    child.stdin.write(json.dumps(HANG).encode() + b"\n")
    child.stdin.flush()
    until(lambda: [*tool.folder.glob("state/imagen/mock/*.json")])
    os.killpg(child.pid, signal.SIGINT)
    child.stdin.close()
    status, (record,), _ = ended(child)
    assert (status, record["error"]["code"]) == (130, "interrupted")
