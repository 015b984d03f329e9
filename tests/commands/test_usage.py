"""imagen-usage: sums and rows of the cost log, and what Replicate says it ran."""

from __future__ import annotations

import csv
import os
import pty
from pathlib import Path

import pytest

from imagen.ledger import Ledger
from servers.replicate import TOKEN, Replicate

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
    return child.wait(10), said.decode().replace("\r\n", "\n")


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
    assert tool("usage", "--raw").record == {**ROW, "usage_id": "u0", "submit": "h0"}


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
    assert (sums["renders"], sums["cost_usd"], sums["unpriced"]) == (1, None, 1)


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
    from servers.replicate import said

    provider.fail("GET /v1/predictions", said(200, answer), times=9)
    ran = tool("usage", "--reconcile")
    assert ran.status == 75
    assert "round in a circle" in ran.err
