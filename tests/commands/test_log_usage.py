"""imagen-log-usage: one row for each submit, whatever happens to the way to Supabase."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from imagen.ledger import Ledger
from imagen.records.record import MAX_SEED

MADE = {
    "prompt": "a cat",
    "id": "cat",
    "backend": "paid",
    "model": "m",
    "seed": 7,
    "submit": "h1",
    "started_at": "2026-11-22T23:59:59Z",
    "cost_usd": 0.003,
    "caller": "me",
    "file": "/a.png",
}
ERROR = {"tool": "imagen-render", "code": "x", "message": "m", "billed": "yes", "retry": "never"}


@pytest.fixture
def ledger(tool):
    """The ledger as the tools left it."""

    def opened():
        return Ledger(tool.folder / "state" / "imagen" / "ledger.sqlite3")

    return opened


@pytest.fixture
def cloud(rest, configure):
    """The environment in which rows go to Supabase too."""
    configure("usage: {sink: both}\n")
    return {"SUPABASE_URL": rest.url, "SUPABASE_SERVICE_ROLE_KEY": rest.key()}


def sent(place, column="submit"):
    with place.cursor() as cursor:
        cursor.execute(f"select {column} from mai.imagen_usage order by submit")
        return [value for (value,) in cursor.fetchall()]


def made(number, **more):
    return {**MADE, "id": f"cat-{number}", "submit": f"h{number}", **more}


# -- the line --------------------------------------------------------------------------------------


def test_a_record_gets_the_id_of_its_row_and_is_else_as_it_was(tool, ledger):
    line = {"album": {"x": [1.5, None]}, **MADE, "zzz": "ü"}
    ran = tool("log-usage", stdin=[line])
    assert (ran.status, ran.err) == (0, "")
    (row,) = ledger().usage.rows()
    assert [*ran.record.items()] == [*line.items(), ("usage_id", row["usage_id"])]
    assert row["prompt_hash"] == hashlib.sha256(b"a cat").hexdigest()
    assert (row["submit"], row["caller"], row["cost_usd_estimate"]) == ("h1", "me", 0.003)


def test_logging_again_adds_nothing_and_gives_the_same_id(tool, ledger):
    first = tool("log-usage", stdin=[MADE]).out
    assert tool("log-usage", stdin=first).out == first
    assert len(ledger().usage.rows()) == 1


def test_the_images_of_one_submit_are_one_row_with_the_cost_of_the_first(tool, ledger):
    rest = {**MADE, "id": "cat.2", "cost_usd": 0}
    ran = tool("log-usage", stdin=[MADE, rest, {**rest, "id": "cat.3"}])
    assert len({one["usage_id"] for one in ran.records}) == 1
    assert [row["cost_usd_estimate"] for row in ledger().usage.rows()] == [0.003]


@pytest.mark.parametrize(
    "line",
    [
        b'{"prompt":"a",  "x": 1e2}\n',
        b'{"file":"/a.png","members":[],"submit":"h"}\n',
        b'{"prompt":"a","submit":"h","pending":{"backend":"b","handle":"h","since":"x"}}\n',
    ],
)
def test_what_has_no_row_passes_untouched(tool, ledger, line):
    assert tool("log-usage", stdin=line) == (0, line, "")
    assert ledger().usage.rows() == []


def test_a_failed_record_is_logged_and_keeps_its_error(tool, ledger):
    failed = {name: MADE[name] for name in MADE if name not in ("file", "cost_usd")}
    ran = tool("log-usage", stdin=[{**failed, "error": ERROR}])
    assert (ran.status, ran.record["error"]) == (0, ERROR)
    assert [row["cost_usd_estimate"] for row in ledger().usage.rows()] == [None]


def test_a_record_without_a_backend_travels_on_with_an_error_and_the_others_are_logged(
    tool, ledger
):
    lines = [{name: MADE[name] for name in MADE if name != "backend"}, made(2), b"oops"]
    stdin = b"".join(x if isinstance(x, bytes) else json.dumps(x).encode() + b"\n" for x in lines)
    ran = tool("log-usage", stdin=stdin)
    first, second = ran.records
    assert ran.status == 2
    assert first.pop("error")["tool"] == "imagen-log-usage"
    assert first == lines[0]
    assert "usage_id" in second
    assert ran.err.splitlines()[0] == (
        "imagen-log-usage: cat: no backend: whose cost it is cannot be told"
    )
    assert len(ran.err.splitlines()) == 2


def test_a_failed_record_without_a_backend_keeps_its_own_error(tool):
    line = {"prompt": "a", "submit": "h", "error": ERROR}
    ran = tool("log-usage", stdin=[line])
    assert (ran.status, ran.record) == (2, line)
    assert "no backend" in ran.err


@pytest.mark.parametrize("stdin", [[{**MADE, "backend": None}], [{**MADE, "cost_usd": -1}]])
def test_with_best_effort_it_only_warns(tool, stdin):
    ran = tool("log-usage", "--best-effort", stdin=stdin)
    assert (ran.status, ran.record, len(ran.err.splitlines())) == (0, stdin[0], 1)


@pytest.mark.parametrize(("args", "status"), [([], 2), (["--best-effort"], 0)])
def test_without_a_ledger_no_line_is_lost(tool, args, status):
    (tool.folder / "broken").write_text("no ledger")
    env = {"IMAGEN_LEDGER": str(tool.folder / "broken")}
    ran = tool("log-usage", *args, stdin=[MADE, made(2)], env=env)
    assert (ran.status, [one["id"] for one in ran.records]) == (status, ["cat", "cat-2"])
    assert [one.get("error", {}).get("code") for one in ran.records] == (
        ["ledger"] * 2 if status else [None] * 2
    )


def test_who_runs_it_is_the_caller_when_the_record_names_none(tool, ledger):
    line = {name: MADE[name] for name in MADE if name != "caller"}
    tool("log-usage", stdin=[line], env={"MAI_FROM_ID": "agent-7"})
    assert ledger().usage.rows()[0]["caller"] == "agent-7"


def test_two_that_log_the_same_at_once_make_one_row_each(tool, ledger):
    stdin = b"".join(json.dumps(made(n)).encode() + b"\n" for n in range(50))
    children = [tool.start("log-usage") for _ in range(2)]
    for child in children:
        child.stdin.write(stdin)
        child.stdin.close()
    outs = [child.stdout.read() for child in children]
    assert [child.wait(20) for child in children] == [0, 0]
    assert outs[0] == outs[1]
    assert len(ledger().usage.rows()) == 50


def test_each_record_goes_out_as_soon_as_it_is_logged(tool):
    child = tool.start("log-usage")
    for number in range(3):
        child.stdin.write(json.dumps(made(number)).encode() + b"\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["id"] == f"cat-{number}"
    child.stdin.close()
    assert child.wait(60) == 0


def test_no_records_on_a_terminal_is_a_usage_fault(tool):
    terminal, side = pty.openpty()
    child = tool.start("log-usage", stdin=side)
    os.close(side)
    assert child.wait(60) == 2
    assert child.stderr.read().startswith(b"imagen-log-usage: no records (hint: ")
    os.close(terminal)


# -- Supabase --------------------------------------------------------------------------------------


def test_the_largest_seed_goes_through_render_both_sinks_and_usage(tool, cloud, database, ledger):
    drawn = tool("render", "a cat", "--size", "64x64", "--seed", MAX_SEED)
    logged = tool("log-usage", stdin=drawn.out, env=cloud)
    assert (logged.status, logged.err) == (0, "")
    assert sent(database, "seed::text") == [str(MAX_SEED)]
    rows = [
        tool("usage", "--raw", "--source", source, env=cloud).record
        for source in ("local", "supabase")
    ]
    assert rows[0].pop("billed") == "no", "which only the ledger knows"
    assert rows[0] == rows[1]
    assert (rows[0]["seed"], rows[0]["usage_id"]) == (MAX_SEED, logged.record["usage_id"])
    assert ledger().usage.unsent() == []


def test_rows_go_in_few_requests_and_twice_is_once(tool, cloud, rest, database):
    lines = [made(number) for number in range(1200)]
    ran = tool("log-usage", stdin=lines, env=cloud)
    assert (ran.status, len(ran.records)) == (0, 1200)
    assert len(rest.gateway.asked) <= 5
    assert len(sent(database)) == 1200
    assert tool("log-usage", stdin=lines, env=cloud).status == 0
    assert len(sent(database)) == 1200


@pytest.mark.parametrize(("sink", "kept"), [("local", 1), ("both", 1), ("supabase", 0)])
def test_a_sink_is_where_rows_stay(tool, cloud, database, ledger, sink, kept):
    assert tool("log-usage", "--sink", sink, stdin=[MADE], env=cloud).status == 0
    assert len(ledger().usage.rows()) == kept
    assert len(sent(database)) == (sink != "local")


def test_a_row_is_sent_while_the_next_record_is_waited_for(tool, cloud, database, until):
    child = tool.start("log-usage", env=cloud)
    child.stdin.write(json.dumps(MADE).encode() + b"\n")
    child.stdin.flush()
    until(lambda: sent(database) == ["h1"])
    child.stdin.close()
    assert child.wait(60) == 0


def test_what_could_not_be_sent_is_sent_after_the_rest_though_no_record_comes(
    tool, cloud, rest, database, until
):
    """As in a worker that has nothing more to do."""
    short = "from imagen.usage import outbox; outbox.REST_S = 0.5\n"
    start = "from imagen.commands.log_usage import main; main()"
    rest.gateway.instead += [(503, {"Retry-After": "60"}, b"{}")] * 2
    child = tool.start("log-usage", argv=[sys.executable, "-c", short + start], env=cloud)
    child.stdin.write(json.dumps(MADE).encode() + b"\n")
    child.stdin.flush()
    until(lambda: sent(database) == ["h1"])
    assert rest.gateway.asks() == 3
    child.stdin.close()
    assert child.wait(60) == 75


def test_a_server_that_is_gone_loses_nothing_and_the_next_run_sends_it(
    tool, cloud, database, ledger
):
    gone = {**cloud, "SUPABASE_URL": "http://127.0.0.1:9"}
    began = time.monotonic()
    ran = tool("log-usage", stdin=[made(1), made(2)], env=gone)
    assert time.monotonic() - began < 15
    assert ran.status == 75
    assert all("usage_id" in one and "error" not in one for one in ran.records)
    (said,) = ran.err.splitlines()
    assert said.startswith("imagen-log-usage: not sent, kept for the next run: cannot reach the")
    assert (sent(database), len(ledger().usage.unsent())) == ([], 2)
    assert tool("log-usage", stdin=[], env=cloud) == (0, b"", "")
    assert (sent(database), ledger().usage.unsent()) == (["h1", "h2"], [])


def test_a_server_that_hangs_is_left_soon_and_a_kill_meanwhile_loses_nothing(
    tool, cloud, database, ledger, until
):
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        env = {**cloud, "SUPABASE_URL": f"http://127.0.0.1:{hanging.getsockname()[1]}"}
        child = tool.start("log-usage", env=env)
        child.stdin.write(json.dumps(MADE).encode() + b"\n")
        child.stdin.flush()
        assert "usage_id" in json.loads(child.stdout.readline()), "the record does not wait"
        child.kill()
        assert len(ledger().usage.unsent()) == 1
        began = time.monotonic()
        ran = tool("log-usage", stdin=[made(2)], env=env)
        assert (ran.status, time.monotonic() - began < 15) == (75, True)
    assert tool("log-usage", env=cloud).status == 0
    assert sent(database) == ["h1", "h2"]


def test_with_best_effort_a_server_that_is_gone_is_a_warning(tool, cloud):
    gone = {**cloud, "SUPABASE_URL": "http://127.0.0.1:9"}
    ran = tool("log-usage", "--best-effort", stdin=[MADE], env=gone)
    assert (ran.status, len(ran.err.splitlines())) == (0, 1)
    assert "usage_id" in ran.record


def test_an_expired_key_is_named_and_never_shown(tool, cloud, rest, ledger):
    expired = rest.key(lasts_s=-60)
    ran = tool("log-usage", stdin=[MADE], env={**cloud, "SUPABASE_SERVICE_ROLE_KEY": expired})
    assert ran.status == 1
    assert "JWT expired" in ran.err
    assert "$SUPABASE_SERVICE_ROLE_KEY must hold" in ran.err
    assert expired not in ran.err
    assert "usage_id" in ran.record
    assert len(ledger().usage.unsent()) == 1


@pytest.mark.parametrize("name", ["SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY"])
def test_what_is_not_configured_is_said_and_the_row_is_kept(tool, cloud, ledger, name):
    ran = tool("log-usage", stdin=[MADE], env={**cloud, name: None})
    assert (ran.status, len(ran.err.splitlines())) == (2, 1)
    assert name in ran.err
    assert "usage_id" in ran.record
    assert len(ledger().usage.unsent()) == 1


def test_a_row_that_the_table_refuses_holds_no_other_back(tool, cloud, database, ledger):
    with database.cursor() as cursor:
        cursor.execute("alter table mai.imagen_usage add check (submit <> 'h3')")
    ran = tool("log-usage", stdin=[made(number) for number in range(8)], env=cloud)
    assert ran.status == 1
    assert len(ran.records) == 8
    assert sent(database) == [f"h{number}" for number in range(8) if number != 3]
    assert [row["submit"] for row in ledger().usage.unsent()] == ["h3"]
    assert "a cat" not in ran.err


def test_two_that_send_the_same_at_once_leave_one_row_each(tool, cloud, database):
    stdin = b"".join(json.dumps(made(n)).encode() + b"\n" for n in range(300))
    folders = [tool.folder / "one", tool.folder / "two"]
    ledgers = [{**cloud, "IMAGEN_LEDGER": str(folder / "l.sqlite3")} for folder in folders]
    children = [tool.start("log-usage", env=env, stdout=subprocess.DEVNULL) for env in ledgers]
    for child in children:
        child.stdin.write(stdin)
    for child in children:
        child.stdin.close()
    ended = [(child.wait(30), child.stderr.read()) for child in children]
    assert ended == [(0, b"")] * 2
    assert len(sent(database)) == 300


def test_a_row_that_another_process_puts_in_right_now_is_no_fault(tool, cloud, rest, database):
    rest.gateway.instead.append((409, {}, b'{"code":"23505"}'))
    assert tool("log-usage", stdin=[MADE], env=cloud).status == 0
    assert sent(database) == ["h1"]


def test_what_is_wrong_with_all_rows_is_not_asked_for_each(tool, cloud, rest, ledger):
    refused = (400, {}, b'{"code":"PGRST204","message":"no such column"}')
    rest.gateway.instead += [refused] * 1000
    ran = tool("log-usage", stdin=[made(number) for number in range(400)], env=cloud)
    assert (ran.status, len(ran.err.splitlines())) == (1, 1)
    assert len(rest.gateway.asked) < 30
    assert len(ledger().usage.unsent()) == 400


def test_a_cut_in_the_middle_of_a_run_is_survived(tool, cloud, rest, database, until):
    rest.gateway.instead.append((503, {"Retry-After": "1"}, b'{"code":"PGRST000"}'))
    ran = tool("log-usage", stdin=[MADE], env=cloud)
    assert (ran.status, ran.err) == (0, "")
    assert sent(database) == ["h1"]


# -- in the everyday pipeline ----------------------------------------------------------------------


def test_generate_logs_and_a_failure_is_a_warning(tool, ledger):
    ran = tool("generate", "a cat", "--size", "64x64")
    assert [row["usage_id"] for row in ledger().usage.rows()] == [ran.record["usage_id"]]
    for args in (["--dry-run"], ["--output=-"], ["--no-ledger"]):
        tool("generate", "a cat", "--size", "64x64", *args)
    assert len(ledger().usage.rows()) == 1


def test_generate_ends_with_renders_status_when_supabase_is_gone(tool, configure):
    configure("usage: {sink: both}\n")
    ran = tool("generate", "a cat", "--size", "64x64")
    assert ran.status == 0
    assert "usage_id" in ran.record
    assert "imagen-log-usage: not sent, kept for the next run: no supabase.url" in ran.err


def test_a_reader_that_leaves_ends_it_quietly(tool):
    child = tool.start("log-usage")
    child.stdout.close()
    with suppress(BrokenPipeError):
        child.stdin.write(json.dumps(MADE).encode() + b"\n")
        child.stdin.close()
    assert (child.wait(60), child.stderr.read()) == (0, b"")
