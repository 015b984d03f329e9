"""imagen-usage: sums and rows of the cost log, and what Replicate says it ran."""

from __future__ import annotations

import csv
import itertools
import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from imagen.ledger import Ledger
from servers.replicate import NO_CREDIT, TOKEN, Replicate, said

ROW = {
    "usage_id": "",
    "created_at": "2026-11-22T10:00:00.000Z",
    "backend": "paid",
    "model": "m",
    "seed": 7,
    "prompt_hash": "0" * 64,
    "latency_ms": 1000,
    "cost_usd_estimate": 0.003,
    "caller": "me",
    "render_id": None,
    "submit": "h",
}


@pytest.fixture
def log(tool):
    """Write rows into the ledger of the tools."""

    def write(*changes):
        ledger = Ledger(tool.folder / "state" / "imagen" / "ledger.sqlite3")
        for number, change in enumerate(changes):
            ledger.usage.add({**ROW, "usage_id": f"u{number}", "submit": f"h{number}", **change})
        ledger.close()

    return write


def on_a_terminal(tool, *args, env=None):
    terminal, side = pty.openpty()
    child = tool.start("usage", *args, stdout=side, env=env)
    os.close(side)
    said = b""
    while True:
        try:
            said += os.read(terminal, 65536)
        except OSError:
            break
    os.close(terminal)
    return child.wait(60), said.decode().replace("\r\n", "\n")


# -- sums ------------------------------------------------------------------------------------------


def test_sums_are_json_lines_in_a_pipe(tool, log):
    log({}, {}, {"model": "other", "cost_usd_estimate": None})
    ran = tool("usage")
    assert (ran.status, ran.err) == (0, "")
    assert ran.records == [
        {
            **{"backend": "paid", "model": "m", "renders": 2},
            **{"cost_usd": 0.006, "unpriced": 0, "latency_p50_ms": 1000},
        },
        {
            **{"backend": "paid", "model": "other", "renders": 1},
            **{"cost_usd": None, "unpriced": 1, "latency_p50_ms": 1000},
        },
    ]


def test_a_table_with_totals_is_on_a_terminal_and_nothing_there_is_obeyed(tool, log):
    log({}, {"caller": "\x1b[2Jevil\n", "cost_usd_estimate": None})
    status, said = on_a_terminal(tool, "--by", "caller")
    assert status == 0
    assert said.splitlines() == [
        "caller         renders  cost_usd  unpriced  latency_p50_ms",
        r"\x1b[2Jevil\n        1         -         1            1000",
        "me                   1     0.003         0            1000",
        "total                2     0.003         1            1000",
    ]


@pytest.mark.parametrize("form", ["json", "csv", "table"])
def test_an_empty_log_is_no_fault(tool, form):
    ran = tool("usage", "--format", form)
    assert (ran.status, ran.err) == (0, "")


def test_no_key_is_the_sum_of_all(tool, log):
    log({}, {})
    assert tool("usage", "--by", "").record["renders"] == 2


def test_csv_is_read_by_others(tool, log):
    log({"caller": '=cmd|"x", \x1b[2J'}, {"seed": 2**64 - 1})
    ran = tool("usage", "--raw", "--format", "csv")
    rows = [*csv.DictReader(ran.out.decode().splitlines())]
    assert rows[0]["caller"] == r"""'=cmd|"x", \x1b[2J"""
    assert rows[1]["seed"] == str(2**64 - 1)
    assert rows[1]["cost_usd_estimate"] == "0.003"


def test_raw_rows_have_all_columns(tool, log):
    log({})
    assert tool("usage", "--raw").record == {
        **{**ROW, "usage_id": "u0", "submit": "h0"},
        "billed": None,
    }


@pytest.mark.parametrize(
    ("args", "submits"),
    [
        (["--since", "2026-11-22"], ["h1", "h2"]),
        (["--until", "2026-11-22"], ["h0"]),
        (["--since", "2026-11-22", "--until", "2026-11-23"], ["h1"]),
        (["--since", "2026-11-22T01:00+01:00"], ["h1", "h2"]),
        (["--since", "1h"], []),
    ],
)
def test_a_span_has_its_first_moment_and_not_its_last(tool, log, args, submits):
    days = ("2026-11-21T23:59:59.999Z", "2026-11-22T00:00:00.000Z", "2026-11-23T00:00:00.000Z")
    log(*({"created_at": day} for day in days))
    env = {"TZ": "Asia/Tokyo"}
    assert [row["submit"] for row in tool("usage", "--raw", *args, env=env).records] == submits


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--since", "yesterday"], "--since: no time: 'yesterday'"),
        (["--until", "2026-02-30"], "--until: no time: '2026-02-30'"),
        (["--since", "2026-11-23", "--until", "2026-11-23"], "--until 2026-11-23 is not after"),
        (["--by", "colour"], "--by: no key 'colour'"),
        (["--reconcile", "--raw"], "--reconcile goes with neither"),
        (["--reconcile"], "no backend of type replicate is configured"),
        (["--source", "supabase"], "no supabase.url"),
        (["--format", "xml"], "Invalid value for '--format'"),
        (["--budget", "--raw"], "--budget goes with neither --raw nor --source"),
        (["--budget", "--since", "7d"], "--budget goes with neither --since nor --until"),
        (["--budget", "--reconcile"], "--reconcile does not go with --budget"),
        (["--settle", "k"], "--settle and --billed go together"),
        (["--billed", "no"], "--settle and --billed go together"),
        (
            ["--settle", "k", "--billed", "no"],
            "the ledger knows no submit of k (hint: imagen-render --resume --dry-run",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_status_2(tool, args, says):
    ran = tool("usage", *args)
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (2, b"", 1)
    assert says in ran.err


# -- Supabase --------------------------------------------------------------------------------------


@pytest.fixture
def cloud(rest):
    return {"SUPABASE_URL": rest.url, "SUPABASE_SERVICE_ROLE_KEY": rest.key()}


def test_all_rows_are_read_though_the_server_gives_1000_at_once(tool, cloud, database):
    with database.cursor() as cursor:
        cursor.execute(
            "insert into mai.imagen_usage (created_at, backend, submit, cost_usd_estimate)"
            " select timestamptz '2026-11-22 00:00Z' + n * interval '1 second', 'paid', 'h' || n,"
            " 0.003 from generate_series(1, 2500) n"
        )
    ran = tool("usage", "--source", "supabase", "--by", "backend,day", env=cloud)
    assert (ran.record["renders"], ran.record["cost_usd"]) == (2500, 7.5)
    since = tool("usage", "--source=supabase", "--raw", "--since=2026-11-22T00:40", env=cloud)
    assert len(since.records) == 101
    assert since.records[0].keys() == ROW.keys()


def test_the_configured_sink_is_the_source(tool, cloud, log, configure):
    log({})
    configure("usage: {sink: supabase}\n")
    assert tool("usage", env=cloud).records == []
    configure("usage: {sink: both}\n")
    assert tool("usage", env=cloud).record["renders"] == 1


def test_an_expired_key_is_one_line(tool, cloud, rest):
    env = {**cloud, "SUPABASE_SERVICE_ROLE_KEY": rest.key(lasts_s=-60)}
    ran = tool("usage", "--source", "supabase", env=env)
    assert (ran.status, len(ran.err.splitlines())) == (1, 1)
    assert "JWT expired" in ran.err


# -- compared with Replicate -----------------------------------------------------------------------


@pytest.fixture
def provider(configure, monkeypatch):
    monkeypatch.setenv("REPLICATE_API_TOKEN", TOKEN)
    with Replicate() as server:
        monkeypatch.setenv("REPLICATE_BASE_URL", server.url)
        model = "{type: replicate, model: black-forest-labs/flux-schnell}"
        configure(f"backends:\n  paid: {model}\n  again: {model}\n")
        yield server


def render(tool, name):
    return tool("render", f"a {name}", "--id", name, "--backend", "paid", "--seed", 7).record


def test_what_is_recorded_and_has_its_file_is_no_problem(tool, provider):
    render(tool, "cat")
    ran = tool("usage", "--reconcile")
    assert (ran.status, ran.out) == (0, b"")
    assert ran.err == "imagen-usage: 1 looked at, 0 differ\n"
    assert provider.asks("GET /v1/predictions?") == 0, "one account is listed once"


def test_what_ran_elsewhere_and_what_has_no_file_is_named(tool, provider):
    provider.page = 2
    kept, lost = render(tool, "cat"), render(tool, "dog")
    strange = [provider.add({"prompt": "a stranger"}, age_s=60) for _ in range(3)]
    provider.add({"prompt": "long ago"}, age_s=30 * 24 * 3600)
    Path(lost["file"]).unlink()
    ran = tool("usage", "--reconcile")
    assert ran.status == 1
    found = {one["submit"]: one for one in ran.records}
    assert found.keys() == {*strange, lost["submit"]}
    assert kept["submit"] not in found
    assert (found[lost["submit"]]["problem"], found[lost["submit"]]["id"]) == ("no_file", "dog")
    for one in strange:
        assert (found[one]["problem"], found[one]["backend"]) == ("not_recorded", "paid")
    since = tool("usage", "--reconcile", "--since", "2020-01-01")
    assert len(since.records) == 5


def test_a_lost_render_is_named_until_it_is_resumed(tool, provider):
    provider.held = True
    tool("render", "a cat", "--backend", "paid", "--wait", "0.1")
    assert tool("usage", "--reconcile").status == 0, "it still runs"
    provider.held = False
    ran = tool("usage", "--reconcile")
    assert (ran.status, ran.record["problem"]) == (1, "no_file")
    assert tool("render", "--resume").status == 0
    assert tool("usage", "--reconcile").status == 0


def test_what_was_logged_without_a_journal_is_recorded(tool, provider):
    line = tool("render", "a cat", "--backend", "paid", "--no-ledger").out
    assert tool("usage", "--reconcile").record["problem"] == "not_recorded"
    tool("log-usage", stdin=line)
    assert tool("usage", "--reconcile").status == 0


def test_what_was_paid_and_brought_no_image_is_in_the_log(tool, provider):
    provider.filtered = 1
    failed = tool("render", "a cat", "--backend", "paid")
    assert (failed.status, failed.record["error"]["billed"]) == (1, "yes")
    logged = tool("log-usage", stdin=failed.out)
    assert (logged.status, "usage_id" in logged.record) == (0, True)
    sums = tool("usage").record
    assert (sums["renders"], sums["cost_usd"], sums["unpriced"]) == (1, 0.003, 0)


def test_the_problems_are_a_table_on_a_terminal(tool, provider):
    provider.add({"prompt": "a stranger"}, age_s=60)
    status, said = on_a_terminal(tool, "--reconcile")
    assert status == 1
    assert said.startswith("problem       backend  submit")


@pytest.mark.parametrize(
    ("token", "status", "says"), [("r8_another", 1, "is refused"), (None, 2, "is not set")]
)
def test_a_token_that_is_not_taken_is_one_line(tool, provider, token, status, says):
    ran = tool("usage", "--reconcile", env={"REPLICATE_API_TOKEN": token})
    assert (ran.status, len(ran.err.splitlines())) == (status, 1)
    assert says in ran.err
    assert "r8_another" not in ran.err


def test_a_list_that_goes_round_in_a_circle_ends(tool, provider):
    answer = {"results": [], "next": f"{provider.url}/v1/predictions?cursor=1"}
    provider.fail("GET /v1/predictions", said(200, answer), times=9)
    ran = tool("usage", "--reconcile")
    assert ran.status == 75
    assert "round in a circle" in ran.err


@pytest.mark.parametrize("repeats", [True, False])
def test_a_list_that_never_advances_ends_and_what_it_held_is_compared(tool, provider, repeats):
    strange = provider.add({"prompt": "a stranger"}, age_s=60)
    read = provider._list
    numbers = itertools.count(1)

    def endless(query):
        number = next(numbers)
        results = json.loads(read({}).body)["results"] if repeats or number == 1 else []
        more = f"{provider.url}/v1/predictions?cursor={number}"
        return said(200, {"previous": None, "next": more, "results": results})

    provider._list = endless
    ran = tool("usage", "--reconcile")
    assert ran.status == 1
    assert [one["submit"] for one in ran.records] == [strange]
    assert "the list was not read to its end" in ran.err
    assert "does not advance" in ran.err
    assert next(numbers) < 20


# -- the ledger's own submits ----------------------------------------------------------------------


def usage(paid, *args):
    ran = paid.tool("usage", *args)
    assert ran.status == 0, ran.err
    return ran


def test_after_paid_renders_the_sums_are_whole_without_log_usage(paid):
    records = paid("a cat", "a dog").records
    sums = usage(paid).record
    assert (sums["backend"], sums["model"]) == ("rep", records[0]["model"])
    assert (sums["renders"], sums["cost_usd"], sums["unpriced"]) == (2, 0.006, 0)
    rows = usage(paid, "--raw").records
    assert [row["submit"] for row in rows] == [one["submit"] for one in records]
    assert {row["billed"] for row in rows} == {"yes"}


def test_logging_changes_neither_the_sums_nor_the_rows(paid):
    lines = paid("a cat", "a dog").out
    lines += paid.tool("render", "a cow", "--backend", "mock", "--size", "64x64").out
    paid.server.filtered = 1
    lines += paid("a fox").out
    paid.server.filtered, paid.server.ending = 0, "failed"
    lines += paid("an owl").out
    sums, rows = usage(paid), usage(paid, "--raw").records
    assert [one["renders"] for one in sums.records] == [1, 4]
    assert sums.records[1]["cost_usd"] == 0.012
    first, *others = lines.splitlines(keepends=True)
    for some in (first, b"".join(others)):
        assert paid.tool("log-usage", stdin=some).status == 0
        assert usage(paid).out == sums.out
        again = usage(paid, "--raw").records
        for name in ("backend", "submit", "cost_usd_estimate", "billed", "seed", "prompt_hash"):
            assert [row[name] for row in again] == [row[name] for row in rows], name


def test_a_span_takes_submits_by_the_time_of_their_intent(paid):
    assert paid("a cat").status == 0
    paid.age(3 * 86400)
    assert paid("a dog").status == 0
    assert usage(paid, "--since", "1d", "--by", "").record["renders"] == 1
    assert usage(paid, "--until", "1d", "--by", "").record["renders"] == 1
    assert len(usage(paid, "--by", "day").records) == 2


def test_what_was_never_accepted_is_no_render_and_what_is_open_is_said_to_be_reserved(paid):
    paid.server.fail("POST", NO_CREDIT)
    assert paid("a cat").status == 1
    assert usage(paid).records == []
    paid.server.held = True
    assert paid("a dog", "--id", "k", "--wait", 0).status == 75
    ran = usage(paid)
    assert ran.records == []
    assert ran.err == (
        "imagen-usage: $0.003 more is reserved by unfinished renders: 1"
        " (hint: imagen-render --resume)\n"
    )


def test_a_failure_whose_bill_is_unknown_is_counted_with_its_estimate_and_said(paid):
    paid.server.ending = "failed"
    assert paid("a cat").record["error"]["billed"] == "unknown"
    ran = usage(paid)
    assert (ran.record["renders"], ran.record["cost_usd"]) == (1, 0.003)
    assert "1 counted with their estimate" in ran.err
    assert usage(paid, "--raw").record["billed"] == "unknown"


# -- the budget ------------------------------------------------------------------------------------


def test_the_budget_says_what_is_spent_reserved_and_left(paid):
    paid.configure("budget: {per_render: 0.01, per_day: 0.02, per_month: 1, per_caller: 0.009}")
    assert paid("a cat", env={"MAI_FROM_ID": "ann"}).status == 0
    assert paid("a dog", env={"MAI_FROM_ID": "ben"}).status == 0
    paid.server.held = True
    assert paid("a fox", "--id", "k", "--wait", 0, env={"MAI_FROM_ID": "ann"}).status == 75
    ran = paid.tool("usage", "--budget", env={"MAI_FROM_ID": "ann"})
    assert (ran.status, ran.err) == (0, "")
    rows = {row["cap"]: row for row in ran.records}
    assert [*rows] == ["per_render", "per_day", "per_caller", "per_month"]
    money = ("limit_usd", "spent_usd", "reserved_usd", "left_usd")
    assert [rows["per_render"][name] for name in money] == [0.01, None, None, 0.01]
    assert [rows["per_day"][name] for name in money] == [0.02, 0.006, 0.003, 0.011]
    assert [rows["per_caller"][name] for name in money] == [0.009, 0.003, 0.003, 0.003]
    assert [rows["per_month"][name] for name in money] == [1.0, 0.006, 0.003, 0.991]
    assert (rows["per_caller"]["caller"], rows["per_day"]["caller"]) == ("ann", None)
    assert rows["per_day"]["resets_at"].endswith("T00:00:00Z")
    table = paid.tool("usage", "--budget", "--format", "table").out.decode()
    assert table.split()[:6] == ["cap", "caller", *money]
    assert paid.tool("usage", "--budget", "--format", "csv").out.startswith(b"cap,caller,limit_usd")


def test_a_render_that_is_open_for_weeks_is_named_with_its_age(paid):
    paid.configure("budget: {per_day: 0.003}")
    paid.server.held = True
    assert paid("a cat", "--id", "weeks", "--wait", 0).status == 75
    paid.age(20 * 86400)
    ran = paid.tool("usage", "--budget", "-q")
    assert ran.record["left_usd"] == 0
    assert ran.record["reserved_since"] < ran.record["resets_at"]
    assert "weeks: reserves $0.003 at rep since 20 d" in ran.err
    assert "imagen-usage --settle weeks --billed yes|no" in ran.err


def test_without_a_budget_it_says_so(tool):
    ran = tool("usage", "--budget")
    assert (ran.status, ran.out) == (0, b"")
    assert "no budget is configured" in ran.err


# -- settled by hand -------------------------------------------------------------------------------


def settle(paid, name, billed, status=0):
    ran = paid.tool("usage", "--settle", name, "--billed", billed)
    assert ran.status == status, ran.err
    return ran


def lost(paid, name="k"):
    """Leave a paid submit of which nobody knows whether it arrived."""
    paid.server.add({"prompt": "x"}, data_removed=True, input={})
    paid.server.fail("POST", None)
    ran = paid("a cat", "--id", name)
    error = ran.record["error"]
    assert (error["billed"], error["retry"]) == ("unknown", "reconcile")
    assert f"imagen-usage --settle {name} --billed yes|no" in ran.err
    paid.server.predictions.clear()


def test_a_doubt_that_was_not_billed_no_longer_counts_and_its_id_may_be_rendered_again(paid):
    paid.configure("budget: {per_day: 0.003}")
    lost(paid)
    assert paid("a dog").record["error"]["code"] == "over_budget"
    row = settle(paid, "k", "no").record
    assert (row["id"], row["backend"], row["billed"], row["cost_usd"]) == ("k", "rep", "no", 0)
    before = paid.creates
    again = paid("a cat", "--id", "k")
    assert (again.status, paid.creates) == (0, before + 1)
    assert usage(paid).record["cost_usd"] == 0.003


def test_a_doubt_that_was_billed_counts_once_on_its_day_and_its_id_is_over(paid):
    paid.configure("budget: {per_day: 0.003}")
    lost(paid)
    before = paid.creates
    assert settle(paid, "k", "yes").record["cost_usd"] == 0.003
    assert settle(paid, "k", "yes").record["billed"] == "yes", "to say it again is no fault"
    assert paid("a dog").record["error"]["code"] == "over_budget"
    again = paid("a cat", "--id", "k")
    assert (again.status, again.record["error"]["code"]) == (1, "settled")
    assert (again.record["error"]["billed"], paid.creates) == ("yes", before)
    assert usage(paid).record["cost_usd"] == 0.003
    paid.age(86400)
    assert paid("a dog").status == 0
    assert paid.tool("render", "--resume", "--dry-run").records == []


@pytest.mark.parametrize("by", ["id", "render_id", "submit"])
def test_a_failure_is_settled_by_any_of_its_names(paid, by):
    paid.server.ending = "failed"
    failed = paid("a cat", "--id", "k").record
    row = settle(paid, failed[by], "no").record
    assert (row["id"], row["render_id"]) == ("k", failed["render_id"])
    assert row["submit"] == failed["submit"]
    assert "it was not billed" in settle_error(paid)
    ran = settle(paid, failed[by], "yes", status=2)
    assert "is settled already, as billed: no" in ran.err


def settle_error(paid):
    ((text,),) = paid.sql("select error from renders")
    return json.loads(text)["message"]


def test_what_is_done_is_not_settled(paid):
    record = paid("a cat", "--id", "k").record
    for billed in ("yes", "no"):
        assert "k is done, nothing of it is in doubt" in settle(paid, "k", billed, status=2).err
    assert paid("a cat", "--id", "k").record == record


def test_what_a_process_is_at_is_not_settled(paid, until):
    paid.server.held = True
    child = paid.tool.start("render", "a cat", "--id=k", "--size=512x512", stdin=subprocess.DEVNULL)
    until(lambda: paid.creates)
    assert "another process is working on k" in settle(paid, "k", "no", status=2).err
    paid.server.held = False
    assert paid.tool.ended(child).status == 0


def test_an_open_render_of_a_free_backend_can_be_ended_too(tool):
    hangs = '[{"fault": "slow", "wait_s": 99}]'
    ran = tool("render", "a cat", "--id", "k", "--option", f"faults={hangs}", "--wait", 0)
    assert ran.status == 75
    assert tool("usage", "--settle", "k", "--billed", "no").record["cost_usd"] == 0
    assert tool("render", "--resume", "--dry-run").records == []


# -- doubts are named ------------------------------------------------------------------------------


def test_reconcile_and_resume_name_a_doubt_until_it_is_settled(paid):
    lost(paid)
    paid.server.ending = "failed"
    assert paid("a dog", "--id", "a dog").status == 1
    ran = paid.tool("usage", "--reconcile")
    doubts = {one["id"]: one for one in ran.records if one["problem"] == "in_doubt"}
    assert [*doubts] == ["k", "a dog"]
    assert (doubts["k"]["backend"], doubts["k"]["estimate_usd"]) == ("rep", 0.003)
    assert "submit" not in doubts["k"]
    assert doubts["a dog"]["hint"] == "imagen-usage --settle 'a dog' --billed yes|no"
    listed = paid.tool("render", "--resume", "--dry-run")
    assert {one["id"] for one in listed.records} == {"k", "a dog"}
    assert "whether it was billed is not known" in listed.err
    assert "imagen-usage --settle 'a dog' --billed yes|no" in listed.err
    settle(paid, "k", "no")
    settle(paid, "a dog", "no")
    ran = paid.tool("usage", "--reconcile")
    assert [one for one in ran.records if one["problem"] == "in_doubt"] == []
    assert paid.tool("render", "--resume", "--dry-run").records == []
