"""The worker's loop over a queue in memory, with trivial pipelines."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import threading
import time
from contextlib import suppress

import pytest

from fake_queue import FakeQueue
from imagen.db import DatabaseFault
from imagen.errors import AnswerLost, ConfigFault, Refused
from imagen.queue import pool, worker
from imagen.queue.jobs import as_json
from imagen.queue.verdict import Rules

DONE = """jq -c --unbuffered '.file="/dev/null"'"""
RULES = Rules(["mock"], [], "mock")


class Ear:
    """Notices come by a pipe."""

    def __init__(self):
        self.out, self.say = os.pipe()

    def fileno(self):
        return self.out

    def poll(self):
        return [os.read(self.out, 4096)]


class Running:
    """A worker in a thread, and what it says."""

    def __init__(self, pipeline, **said):
        self.queue, self.ear = FakeQueue(), Ear()
        self.says, self.connects, self.stopped = [], [], 0
        self.refuse = []
        self.hears = 0.001
        about = {"name": "w", "rules": RULES, "backends": ["mock"], **said}
        self.worker = worker.Worker(
            worker.Said(pipeline=pipeline, **about), self.connect, self.says.append
        )
        self.out, self.wake = os.pipe()
        self.status = None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        try:
            self.status = self.worker.run(lambda: self.stopped, self.out)
        except Exception as fault:  # noqa: BLE001 - it is what the test looks at
            self.status = fault

    def connect(self):
        self.connects.append(time.monotonic())
        if self.refuse:
            raise self.refuse.pop(0)
        return worker.Connected(self.queue, self.ear, lambda: self.hears, lambda: None)

    def notice(self):
        os.write(self.ear.say, b"x")

    def stop(self):
        self.stopped += 1
        os.write(self.wake, b"x")

    def ended(self, seconds=15):
        self.thread.join(seconds)
        assert not self.thread.is_alive(), self.says
        return self.status

    def heard(self, text):
        return [one for one in self.says if text in one]


@pytest.fixture
def work(needs):
    needs("jq", "jq")
    made = []

    def start(pipeline=DONE, begin=True, **said):
        made.append(Running(pipeline, **said))
        if begin:
            made[-1].thread.start()
        return made[-1]

    yield start
    for one in made:
        one.stop()
        one.stop()
        if one.thread.ident:
            one.thread.join(30)
        for descriptor in (one.out, one.wake, one.ear.out, one.ear.say):
            with suppress(OSError):
                os.close(descriptor)


def status(running, name):
    return running.queue.jobs[name].status


def test_a_notice_wakes_it_and_the_whole_backlog_is_drained(work, until):
    one = work(poll_s=60)
    until(lambda: one.heard("waiting for jobs"))
    names = [one.queue.add() for _ in range(5)]
    one.notice()
    until(lambda: all(status(one, name) == "done" for name in names))
    assert one.queue.jobs[names[0]].request["slug"] == f"a-cat-{names[0][:8]}"


def test_the_end_of_a_job_and_the_next_claim_are_one_question(work):
    one = work(begin=False, drain=True)
    names = [one.queue.add() for _ in range(3)]
    one.thread.start()
    assert one.ended() == 0
    ended = [index for index, call in enumerate(one.queue.calls) if call == "done_and_next"]
    assert len(ended) == 3
    assert all(one.queue.calls[index + 3] == "intend" for index in ended[:2]), one.queue.calls
    assert [one.queue.jobs[name].claims for name in names] == [0, 0, 0]


def test_drain_ends_when_nothing_is_due(work):
    one = work(begin=False, drain=True)
    names = [one.queue.add() for _ in range(3)]
    one.thread.start()
    assert one.ended() == 0
    assert {status(one, name) for name in names} == {"done"}


@pytest.mark.parametrize(
    ("answer", "became", "attempts"),
    [
        ('.error={message:"no",retry:"never"}', "failed", 1),
        ('.error={message:"no",retry:"safe"}', "pending", 1),
        ('.pending={backend:"b"}', "pending", 0),
        (".", "failed", 1),
    ],
)
def test_the_record_closes_the_job(work, answer, became, attempts):
    one = work(f"jq -c --unbuffered '{answer}'", begin=False, drain=True)
    name = one.queue.add()
    one.thread.start()
    assert one.ended() == 0
    assert (status(one, name), one.queue.jobs[name].attempts) == (became, attempts)


def test_why_jobs_go_back_is_said_once_a_minute(work, until, tmp_path, monkeypatch):
    busy = '.error={code:"ledger_busy",message:"held",retry:"safe"}'
    heal = f"while read -r l; do [ -e {tmp_path}/healed ] && f='.file=\"f\"' || f='{busy}';"
    one = work(f"""{heal} echo "$l" | jq -c "$f"; done""")
    first, second = one.queue.add(), one.queue.add()
    for _ in range(3):
        one.queue.calls.clear()
        one.notice()
        until(lambda: one.queue.calls.count("put_back") == 2)
        one.queue.skip(61)
    assert len(one.heard("put back: held")) == 1
    assert (one.queue.jobs[first].error, one.queue.jobs[first].attempts) == ("held", 0)
    monkeypatch.setattr(worker, "REPEAT_S", 0.0)  # the minute is over
    one.notice()
    until(lambda: len(one.heard("put back: held")) == 3)
    one.queue.skip(61)
    (tmp_path / "healed").touch()
    one.notice()
    until(lambda: {status(one, first), status(one, second)} == {"done"})


def test_a_record_of_another_id_and_noise_are_no_answer(work, until):
    one = work("""jq -c --unbuffered '(.id="x"), "noise", [1], (.file="f")'""")
    name = one.queue.add()
    one.notice()
    until(lambda: status(one, name) == "done")


@pytest.mark.parametrize("value", ["NaN", "1e999", "[" * 800 + "]" * 800, '"\\ud800"'])
def test_an_error_that_no_row_can_hold_fails_that_job_alone(work, value):
    """A filter of somebody's own writes what it likes."""
    error = '{"message":"no","retry":"never","status":404,"x":' + value + "}"
    one = work(f"sed -u 's/^{{/{{\"error\":{error},/'", begin=False, drain=True)
    names = [one.queue.add() for _ in range(2)]
    one.thread.start()
    assert one.ended() == 0
    assert {status(one, name) for name in names} == {"failed"}
    detail = one.queue.jobs[names[0]].error_detail
    assert (detail["message"], detail["status"]) == ("no", 404)
    assert as_json(detail)


def test_the_first_line_has_no_intended_at_and_the_next_ones_have_the_databases_age(work, until):
    one = work("""jq -c --unbuffered '.error={message:(.job|tojson),retry:"safe"}'""")
    name = one.queue.add()
    one.notice()
    until(lambda: one.queue.jobs[name].attempts == 1)
    assert "intended_at" not in one.queue.jobs[name].error
    one.queue.skip(1000)
    began = time.time()
    one.notice()
    until(lambda: one.queue.jobs[name].attempts == 2)
    said = json.loads(one.queue.jobs[name].error)
    since = worker.datetime.fromisoformat(said["intended_at"]).timestamp()
    assert began - 1010 < since < began - 995


@pytest.mark.parametrize("call", ["claim", "intend", "done", "done_and_next", "renew"])
def test_the_connection_may_be_lost_at_any_call(work, until, call, monkeypatch):
    """Also when the call took hold and only its answer was lost."""
    one = work(poll_s=0.2)
    real, failed = getattr(one.queue, call), []
    monkeypatch.setattr(worker, "RENEW_S", 0.1)

    def broken(*args, **more):
        found = real(*args, **more)
        if not failed and (call != "claim" or found):
            failed.append(call)
            raise AnswerLost("the connection went away")
        return found

    monkeypatch.setattr(one.queue, call, broken)
    until(lambda: one.heard("waiting for jobs"))
    name = one.queue.add()
    one.notice()
    if call == "claim":  # nobody knows of that claim: its lease must end
        until(lambda: failed)
        one.queue.skip(11)
    until(lambda: status(one, name) == "done")
    assert one.queue.jobs[name].attempts == 1


def test_what_the_database_refuses_of_one_job_stops_no_other(work, until, monkeypatch):
    one = work()
    real = one.queue.intend

    def refuse(job_id, fence, request):
        if "bad" in request["prompt"]:
            raise DatabaseFault("no such value", sqlstate="22P05")
        return real(job_id, fence, request)

    monkeypatch.setattr(one.queue, "intend", refuse)
    bad, good = one.queue.add("bad"), one.queue.add("good")
    one.notice()
    until(lambda: status(one, good) == "done")
    assert status(one, bad) == "failed"


@pytest.mark.parametrize("state", ["23514", "22P05"])
def test_a_record_that_the_database_refuses_costs_the_record_and_not_the_job(
    work, until, monkeypatch, state
):
    one = work()
    real = one.queue.done

    def refuse(job_id, fence, image_id, record=None):
        if record:
            raise DatabaseFault("no such value", sqlstate=state)
        return real(job_id, fence, image_id, record)

    monkeypatch.setattr(one.queue, "done", refuse)
    name = one.queue.add()
    one.notice()
    until(lambda: status(one, name) == "done")
    assert one.queue.jobs[name].record is None
    assert one.queue.jobs[name].attempts == 1


def test_the_record_of_a_job_goes_into_its_row(work, until):
    one = work("""jq -c --unbuffered '.file="f" | .cloud={signed_url:"secret",path:"p"}'""")
    name = one.queue.add("a cat")
    one.notice()
    until(lambda: status(one, name) == "done")
    kept = one.queue.jobs[name].record
    assert (kept["prompt"], kept["file"], kept["cloud"]) == ("a cat", "f", {"path": "p"})


def test_the_record_of_a_job_that_failed_goes_into_its_row(work, until):
    one = work("""jq -c --unbuffered '.cost_usd=1 | .error={message:"no",retry:"never"}'""")
    name = one.queue.add()
    one.notice()
    until(lambda: status(one, name) == "failed")
    assert one.queue.jobs[name].record["cost_usd"] == 1


def test_any_number_of_jobs_that_fail_at_once_keep_it_from_nothing_else(work, until, monkeypatch):
    """A web user may queue a million of them: leases are renewed and signals heard all the same."""
    monkeypatch.setattr(worker, "RENEW_S", 0.1)
    one = work("cat > /dev/null", jobs=2)
    held = one.queue.add()
    one.notice()
    until(lambda: status(one, held) == "running")
    bad = [one.queue.add(params={"file": "/etc/passwd"}) for _ in range(3000)]
    one.notice()
    until(lambda: status(one, bad[0]) == "failed")
    one.queue.calls.clear()
    until(lambda: "renew" in one.queue.calls)
    assert status(one, bad[-1]) == "pending"
    one.stop()
    one.stop()
    assert one.ended(5) == 0
    assert status(one, bad[-1]) == "pending"


def test_rights_that_are_missing_at_the_start_are_waited_for(work, until):
    one = work(begin=False, poll_s=60)
    one.refuse = [Refused("permission denied for table jobs", code="not_permitted")] * 2
    one.thread.start()
    until(lambda: one.heard("waiting for jobs"))
    assert len(one.heard("not there yet: permission denied for table jobs")) == 1


@pytest.mark.parametrize("sqlstate", ["42P01", "42703", "3F000", "42883"])
def test_a_database_without_the_queue_or_with_an_old_one_ends_it_at_once_with_the_way_out(
    work, sqlstate
):
    one = work(begin=False)
    one.refuse = [DatabaseFault("relation imagen.jobs does not exist", sqlstate=sqlstate)]
    one.thread.start()
    fault = one.ended()
    assert isinstance(fault, ConfigFault)
    assert "imagen-migrate" in fault.hint


def test_once_it_has_worked_no_fault_of_the_database_ends_it(work, until):
    """A migration may drop and create what is asked for meanwhile."""
    one = work(poll_s=60)
    until(lambda: one.heard("waiting for jobs"))
    one.queue.faults = [DatabaseFault("no such function", sqlstate="42883"), ConfigFault("odd")]
    one.notice()
    until(lambda: len(one.connects) == 2)
    name = one.queue.add()
    one.notice()
    until(lambda: status(one, name) == "done")
    assert one.heard("the queue is lost: ")


def test_nobody_elses_job_is_rescued_sooner_than_5_seconds_after_a_reconnection(work, until):
    one = work(poll_s=0.1)
    until(lambda: one.heard("waiting for jobs"))
    one.queue.faults.append(AnswerLost("gone"))
    until(lambda: len(one.connects) == 2)
    one.queue.calls.clear()
    until(lambda: "rescue" in one.queue.calls)
    assert time.monotonic() - one.connects[1] > 4.9


def test_a_lease_that_may_be_over_kills_the_pipeline_and_the_line_comes_again(
    work, until, monkeypatch, tmp_path
):
    monkeypatch.setattr(pool, "LOST_S", 1.0)
    seen = tmp_path / "seen"
    one = work(f"tee -a {seen} | sleep 1000", poll_s=0.2)
    name = one.queue.add()
    one.notice()
    until(lambda: seen.exists() and seen.read_bytes().endswith(b"\n"))
    one.queue.faults += [AnswerLost("gone")]
    one.refuse = [AnswerLost("still gone")] * 4
    pipeline = one.worker._slots[0].pipeline
    until(lambda: one.worker._slots[0].pipeline is not pipeline)
    assert status(one, name) == "running", "it is still ours"
    until(lambda: seen.read_bytes().count(b"\n") == 2)
    first, second = map(json.loads, seen.read_bytes().splitlines())
    assert one.queue.jobs[name].claims == 1
    assert second["id"] == first["id"] == name
    assert second["seed"] == first["seed"]
    assert "intended_at" not in first["job"]
    released = worker.datetime.fromisoformat(second["job"]["released_at"]).timestamp()
    assert time.time() - 30 < released, "what the killed pipeline sent may be accepted yet"


def test_a_lease_that_ends_while_a_pipeline_is_told_to_end_frees_its_place(
    work, until, monkeypatch, tmp_path
):
    monkeypatch.setattr(pool, "LOST_S", 1.0)
    deaf = f"touch {tmp_path}/first; trap '' INT; while :; do sleep 0.05; done"
    one = work(f"[ -e {tmp_path}/first ] && exec cat > /dev/null; {deaf}", poll_s=0.2)
    name = one.queue.add()
    one.notice()
    until(lambda: one.worker._slots[0].sent)
    one.queue.cancel(name)
    one.notice()
    until(lambda: one.worker._slots[0].told)
    one.refuse = [AnswerLost("still gone")] * 4
    one.queue.faults = [AnswerLost("gone")]
    until(lambda: one.worker._slots[0].is_free, 7)  # sooner than its patience is over
    until(lambda: not one.refuse)
    other = one.queue.add()
    until(lambda: status(one, other) == "running")
    assert (status(one, name), one.queue.jobs[name].attempts) == ("cancelled", 0)


def test_a_guard_that_ended_a_pipeline_first_counts_as_the_lease(work, until, monkeypatch):
    """As after the worker stood still: it says so by no crash, and the job is sent again."""
    monkeypatch.setattr(pool, "LOST_S", 1.0)
    one = work("cat > /dev/null", poll_s=0.2)
    monkeypatch.setattr(one.worker._lease, "watch", lambda: None)
    name = one.queue.add()
    one.notice()
    until(lambda: one.worker._slots[0].sent)
    pipeline = one.worker._slots[0].pipeline
    one.refuse = [AnswerLost("still gone")] * 4
    one.queue.faults = [AnswerLost("gone")]
    until(lambda: one.worker._slots[0].pipeline is not pipeline)
    until(lambda: one.worker._slots[0].sent)
    assert not one.heard("a pipeline has ended")
    assert (status(one, name), one.queue.jobs[name].claims) == ("running", 1)


def test_what_lives_on_is_not_called_ended(work, until, tmp_path):
    """Only what cleared its environment, and lost its guard, cannot be found any more."""
    pid = tmp_path / "pid"
    leaves = (
        f"[ -e {pid} ] || (env -i setsid sh -c 'echo $$ > {pid}; exec sleep 100' > /dev/null &)"
    )
    one = work(f"{leaves}; cat > /dev/null", job_timeout_s=60)
    name = one.queue.add()
    one.notice()
    until(lambda: one.worker._slots[0].sent and pid.exists() and pid.read_text())
    survivor = int(pid.read_text())
    os.kill(one.worker._slots[0].pipeline.tree.group, signal.SIGKILL)
    until(lambda: one.heard("has left a process behind that cannot be found"))
    os.kill(survivor, signal.SIGKILL)
    assert not one.heard("killed")
    assert one.queue.jobs[name].attempts == 0


def test_a_job_that_was_taken_over_is_killed_and_not_answered_for(work, until):
    one = work("cat > /dev/null", poll_s=0.2)
    name = one.queue.add()
    one.notice()
    until(lambda: status(one, name) == "running")
    job = one.queue.jobs[name]
    job.fence, job.worker = job.fence + 1, "another"
    job.lease += 1000
    until(lambda: one.heard("another worker has it"))
    other = one.queue.add()
    one.notice()
    until(lambda: status(one, other) == "running")
    assert (job.status, job.worker) == ("running", "another")


def test_cancelling_a_running_job_interrupts_its_pipeline(work, until, tmp_path):
    said, ready = tmp_path / "said", tmp_path / "ready"
    ends = f"[ -e {said} ] && exec cat > /dev/null"  # the next one ends with its input
    loops = f"trap 'echo INT >> {said}; exit' INT; : > {ready}; while :; do sleep 0.05; done"
    one = work(f"{ends}; {loops}", poll_s=60)
    name = one.queue.add()
    one.notice()
    until(lambda: one.worker._slots[0].sent and ready.exists())
    one.queue.cancel(name)
    one.notice()
    until(said.exists)
    until(lambda: one.worker._slots[0].is_free)
    assert said.read_text() == "INT\n"
    assert status(one, name) == "cancelled"


def test_after_a_job_that_failed_at_once_the_next_is_claimed_at_once(work, until, monkeypatch):
    """Not only when something else is due."""
    monkeypatch.setattr(worker, "RESCUE_S", 600)
    monkeypatch.setattr(worker, "HEAR_S", 600)
    one = work(poll_s=600)
    until(lambda: one.heard("waiting for jobs"))
    bad = [one.queue.add(params={"output": "/etc/passwd"}) for _ in range(3)]
    good = one.queue.add()
    one.notice()
    until(lambda: status(one, good) == "done")
    assert {status(one, name) for name in bad} == {"failed"}


def test_answers_that_no_json_reader_takes_are_passed_over(work, until):
    deep = "head -c 300000 /dev/zero | tr '\\0' '['; echo"
    one = work(f"read -r line; {deep}; echo '[1]'; echo nonsense; echo \"$line\" | {DONE}; {DONE}")
    name = one.queue.add()
    one.notice()
    until(lambda: status(one, name) == "done")
    later = one.queue.add()
    one.notice()
    until(lambda: status(one, later) == "done")


def test_a_job_whose_pipeline_died_does_not_wait_for_all_that_came_after_it(work, tmp_path):
    seen, died = tmp_path / "seen", tmp_path / "died"
    dies = f"[ -e {died} ] || {{ touch {died}; read -r line; kill -KILL $$; }}"
    one = work(f"{dies}; tee -a {seen} | {DONE}", begin=False, drain=True)
    names = [one.queue.add() for _ in range(4)]
    one.thread.start()
    assert one.ended() == 0
    assert [json.loads(line)["id"] for line in seen.read_bytes().splitlines()] == names


def test_what_stopped_waiting_because_we_said_so_is_gone_on_with_at_once(work, tmp_path):
    """The shell has died; the render was told to end, and hands out that it is unfinished."""
    pending = """echo "$line" | jq -c ".pending={}"; exit"""
    render = f"trap '{pending}' TERM; while :; do sleep 0.05; done"
    dies = f"touch {tmp_path}/died; read -r line; ({render}) & kill -KILL $$"
    one = work(f"[ -e {tmp_path}/died ] || {{ {dies}; }}; {DONE}", begin=False, drain=True)
    name = one.queue.add()
    one.thread.start()
    assert one.ended() == 0
    assert status(one, name) == "done"


def test_a_pipeline_that_cannot_be_started_is_tried_later_each_time(work, until, monkeypatch):
    def refused(_command):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    real = pool.Pipeline
    monkeypatch.setattr(pool, "Pipeline", refused)
    one = work(poll_s=0.05)
    name = one.queue.add()
    until(lambda: one.heard("cannot be started"))
    time.sleep(1.3)
    assert len(one.heard("cannot be started")) <= 2
    monkeypatch.setattr(pool, "Pipeline", real)
    until(lambda: status(one, name) == "done")


def test_a_pipeline_may_end_any_number_of_times(work, until, tmp_path):
    """One that cannot work ends a thousand times over a night, and works when it is mended."""
    (tmp_path / "broken").touch()
    one = work(f"rm {tmp_path}/broken && exit 1; {DONE}", begin=False, drain=True)
    name = one.queue.add()
    one.worker._slots[0].crashes = 5000
    one.thread.start()
    until(lambda: one.heard("in 30 s") or one.status)
    assert one.status is None
    one.worker._slots[0].restart = 0.0
    one.notice()
    until(lambda: status(one, name) == "done")


def test_a_job_that_takes_too_long_has_used_an_attempt(work, until):
    one = work("cat > /dev/null", job_timeout_s=0.3)
    name = one.queue.add()
    one.notice()
    until(lambda: one.queue.jobs[name].attempts == 1)
    assert one.queue.jobs[name].error_detail["code"] == "job_timeout"


def test_a_job_whose_pipeline_was_killed_for_the_lease_is_not_late(work, until, monkeypatch):
    """It is sent again with all its time; meanwhile nothing turns in circles."""
    monkeypatch.setattr(pool, "LOST_S", 1.0)
    one = work("cat > /dev/null", poll_s=60, job_timeout_s=1.5)
    name = one.queue.add()
    one.notice()
    until(lambda: one.worker._slots[0].sent)
    one.refuse = [AnswerLost("still gone")] * 4
    one.queue.faults += [AnswerLost("gone")]
    one.notice()
    turns = []
    monkeypatch.setattr(one.worker, "_stop_well", turns.append)
    until(lambda: one.worker._slots[0].pipeline is None)
    until(lambda: not one.refuse)
    assert len(turns) < 50
    until(lambda: one.worker._slots[0].sent)
    assert not one.worker._slots[0].late
    assert (status(one, name), one.queue.jobs[name].attempts) == ("running", 0)
    monkeypatch.undo()


def test_the_first_signal_lets_it_finish_and_a_second_puts_it_back(work, until):
    one = work('while read -r l; do sleep 0.5; echo "$l" | ' + DONE + "; done")
    name, later = one.queue.add(), None
    one.notice()
    until(lambda: status(one, name) == "running")
    one.stop()
    later = one.queue.add()
    assert one.ended() == 0
    assert (status(one, name), status(one, later)) == ("done", "pending")
    two = work("cat > /dev/null")
    name = two.queue.add()
    two.notice()
    until(lambda: status(two, name) == "running")
    two.stop()
    time.sleep(0.2)
    two.stop()
    assert two.ended() == 0
    job = two.queue.jobs[name]
    assert (job.status, job.attempts, job.claims) == ("pending", 0, 1)


def test_behind_a_pooler_it_says_so_once_and_looks_every_second(work, until):
    one = work(begin=False, poll_s=60)
    one.hears = None
    one.thread.start()
    until(lambda: one.heard("5432"))
    name = one.queue.add()
    until(lambda: status(one, name) == "done")
    assert len(one.heard("5432")) == 1


def test_a_queue_that_is_not_there_yet_is_said_once(work, until):
    one = work(begin=False, poll_s=60)
    one.refuse = [AnswerLost("no such host")] * 4
    one.thread.start()
    until(lambda: one.heard("waiting for jobs"))
    assert len(one.heard("the queue is not there yet: no such host")) == 1
    assert not one.heard("lost")


def test_what_an_earlier_worker_of_the_name_left_is_taken_back_once(work, until):
    one = work(begin=False, poll_s=60)
    name = one.queue.add()
    one.queue.claim("w", None, "mock")
    one.thread.start()
    until(lambda: status(one, name) == "done")
    one.queue.faults = [AnswerLost("cut")]
    one.notice()
    until(lambda: len(one.connects) == 2)
    until(lambda: one.queue.calls.count("name_lock") == 2)
    assert one.queue.calls.count("take_back") == 1


def test_a_name_that_another_has_is_said_and_its_jobs_are_left_alone(work, until):
    one = work(begin=False, poll_s=60)
    name = one.queue.add()
    one.queue.claim("w", None, "mock")
    one.queue.names = {"w"}
    one.thread.start()
    until(lambda: one.heard("another worker is called w"))
    until(lambda: one.heard("waiting for jobs"))
    assert status(one, name) == "running"


def test_behind_a_pooler_nobody_holds_a_name_so_nothing_is_taken_back(work, until):
    one = work(begin=False, poll_s=60)
    name = one.queue.add()
    one.queue.claim("w", None, "mock")
    one.hears = None
    one.thread.start()
    until(lambda: one.heard("waiting for jobs"))
    assert status(one, name) == "running"
    assert "name_lock" not in one.queue.calls


def test_systemd_hears_ready_after_the_proof_and_watchdog_from_every_turn_of_the_loop(
    work, until, monkeypatch, tmp_path
):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(3)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "600000")
        one = work(begin=False, poll_s=60)
        one.refuse = [AnswerLost("not yet")]
        one.thread.start()
        first = systemd.recv(4096).decode().splitlines()
        assert len(one.connects) == 2
        assert first[0] == "READY=1"
        assert "WATCHDOG=1" in first
        heard = ""
        while "STATUS=0 running here, 0 waiting; 0 done" not in heard:
            heard = systemd.recv(4096).decode()
            assert heard.startswith("WATCHDOG=1")
        one.refuse = [AnswerLost("down")] * 100
        one.queue.faults = [AnswerLost("down")]
        until(lambda: one.heard("the queue is lost: down"))
        while "away" not in heard:
            heard = systemd.recv(4096).decode()
        for _ in range(4):  # as long as it is away
            assert heard == "WATCHDOG=1\nSTATUS=database away; 0 running here"
            heard = systemd.recv(4096).decode()
        assert one.refuse, "the database was away all the time"


CLOUD = '.file="f" | .cloud={image_id:"00000000-0000-4000-8000-000000000001"}'


@pytest.mark.parametrize(
    ("answer", "call", "status_then", "error_then"),
    [
        (CLOUD, "done", "done", None),
        ('.error={message:"bad",code:"c"}', "failed", "failed", "its error cannot be kept"),
        ('.error={message:"bad",retry:"safe"}', "retry", "failed", "no such value"),
    ],
)
def test_an_end_of_which_the_database_refuses_a_part_is_kept_without_it(
    work, monkeypatch, answer, call, status_then, error_then
):
    one = work(f"jq -c --unbuffered '{answer}'", begin=False, drain=True)
    real = getattr(one.queue, call)

    def refuse(job_id, fence, image_id, *values):
        if image_id:
            raise DatabaseFault("no such value", sqlstate="23503")
        return real(job_id, fence, image_id, *values)

    def refuse_text(job_id, fence, *values):
        if "bad" in values:
            raise DatabaseFault("no such value", sqlstate="22P05")
        return real(job_id, fence, *values)

    monkeypatch.setattr(one.queue, call, refuse if call == "done" else refuse_text)
    names = [one.queue.add() for _ in range(2)]
    one.thread.start()
    assert one.ended() == 0
    for job in map(one.queue.jobs.get, names):
        assert (job.status, job.image_id, job.error) == (status_then, None, error_then)
    assert len(one.heard("no such value")) >= len(names)


def test_a_failure_that_no_row_takes_is_left_to_its_lease_and_stops_no_other(
    work, until, monkeypatch
):
    one = work("""jq -c --unbuffered 'if .prompt=="bad" then .error={} else .file="f" end'""")

    def refuse(*_values):
        raise DatabaseFault("check jobs_error", sqlstate="23514")

    monkeypatch.setattr(one.queue, "failed", refuse)
    bad, good = one.queue.add("bad"), one.queue.add("good")
    one.notice()
    until(lambda: status(one, good) == "done")
    assert status(one, bad) == "running"
    assert len(one.heard(f"{bad}: check jobs_error")) == 3, "whole, without record, without error"


def test_a_job_that_was_cancelled_before_it_was_sent_never_reaches_the_pipeline(
    work, until, monkeypatch, tmp_path
):
    one = work(f"tee -a {tmp_path}/seen | {DONE}", begin=False, drain=True)
    real, names = one.queue.intend, [one.queue.add() for _ in range(2)]

    def cancelled_first(job_id, fence, request):
        if job_id == names[0]:
            one.queue.cancel(job_id)
        return real(job_id, fence, request)

    monkeypatch.setattr(one.queue, "intend", cancelled_first)
    one.thread.start()
    assert one.ended() == 0
    sent = [json.loads(line)["id"] for line in (tmp_path / "seen").read_bytes().splitlines()]
    assert sent == names[1:]
    assert [status(one, name) for name in names] == ["cancelled", "done"]
    assert one.heard(f"{names[0]}: another worker has it now, or it was cancelled")


def answers_when_told_to_end(answer, started):
    """Give a pipeline that works until a signal comes, and then answers so and ends."""
    ends = f"""echo "$line" | jq -c '{answer}'; exit"""
    trap = "trap 'eval \"$ends\"' INT TERM"
    loop = f"while :; do touch {started}; sleep 0.05; done"
    return f"ends={shlex.quote(ends)}; {trap}; read -r line || exit; {loop}"


ENDINGS = {
    "an error": '.error={message:"interrupted",retry:"safe"}',
    "a refusal": '.error={message:"stopped",retry:"never"}',
    "an image": '.file="f"',
    "unfinished": ".pending={}",
}


@pytest.mark.parametrize(
    ("ending", "status_then", "attempts", "wait_s", "code"),
    [
        ("an error", "pending", 1, 2.5, "job_timeout"),
        ("a refusal", "pending", 1, 2.5, "job_timeout"),
        ("an image", "done", 1, 0, None),
        ("unfinished", "pending", 0, 10, None),
    ],
)
def test_a_late_job_is_judged_by_the_answer_that_it_gives_when_told_to_end(
    work, until, tmp_path, ending, status_then, attempts, wait_s, code
):
    started = tmp_path / "started"
    one = work(answers_when_told_to_end(ENDINGS[ending], started), job_timeout_s=1)
    name = one.queue.add()
    one.notice()
    until(lambda: status(one, name) == "running")
    until(lambda: status(one, name) != "running")
    job = one.queue.jobs[name]
    assert (job.status, job.attempts) == (status_then, attempts)
    assert (job.error_detail or {}).get("code") == code
    assert job.run_after - job.created >= wait_s


def test_an_answer_that_came_just_before_a_pipeline_ended_is_read(
    work, until, tmp_path, monkeypatch
):
    """Written after our last look, and before we saw that the pipeline is gone."""
    one = work(answers_when_told_to_end(ENDINGS["an image"], tmp_path / "started"), job_timeout_s=1)
    real, unread = pool.Pipeline.lines, []

    def lines(pipeline):
        if not one.worker._slots[0].told or unread:
            return real(pipeline)
        until(pipeline.is_gone)
        unread.append(pipeline)
        return []

    monkeypatch.setattr(pool.Pipeline, "lines", lines)
    name = one.queue.add()
    one.notice()
    until(lambda: unread)
    until(lambda: status(one, name) == "done")
    assert "retry" not in one.queue.calls


@pytest.mark.parametrize(
    ("ending", "status_then", "attempts"),
    [
        ("an error", "pending", 0),
        ("a refusal", "pending", 0),
        ("an image", "done", 1),
        ("unfinished", "pending", 0),
    ],
)
def test_what_ends_because_the_worker_ends_has_used_no_attempt_and_waits_for_nothing(
    work, until, tmp_path, ending, status_then, attempts
):
    started = tmp_path / "started"
    one = work(answers_when_told_to_end(ENDINGS[ending], started))
    name = one.queue.add()
    one.notice()
    until(started.exists)
    one.stop()
    one.stop()
    assert one.ended() == 0
    job = one.queue.jobs[name]
    assert (job.status, job.attempts, job.error) == (status_then, attempts, None)
    assert job.run_after - job.created < 1


def test_a_pipeline_that_does_not_end_when_told_to_is_killed_and_started_again(
    work, until, monkeypatch, tmp_path
):
    monkeypatch.setattr(pool, "BROKEN_S", 0.5)
    broken = tmp_path / "broken"
    deaf = "trap '' TERM INT; (while :; do sleep 0.05; done)"
    breaks = f"touch {broken}; read -r line; {deaf} & kill -KILL $$"
    one = work(f"[ -e {broken} ] || {{ {breaks}; }}; {DONE}")
    name = one.queue.add()
    one.notice()
    until(lambda: status(one, name) == "done", 20)
    assert one.heard("a pipeline did not end when told to: killing it")
    assert not one.heard("could not be ended")
    assert (one.queue.jobs[name].attempts, one.queue.jobs[name].claims) == (1, 0)


def test_a_pipeline_ends_with_its_input_when_nothing_is_left_to_do(work, tmp_path):
    """No signal: what it has to write at its end is written."""
    ended = tmp_path / "ended"
    one = work(f"{DONE}; sleep 1.3; touch {ended}", begin=False, drain=True)
    one.queue.add()
    one.thread.start()
    assert one.ended() == 0
    assert ended.exists()


def test_a_row_that_cannot_be_read_fails_alone(work, monkeypatch):
    one = work(begin=False, drain=True)
    names, real = [one.queue.add() for _ in range(3)], one.queue.claim

    def broken_first(*who):
        job = real(*who)
        return job._replace(broken="params nest too deep") if job and job.id == names[1] else job

    monkeypatch.setattr(one.queue, "claim", broken_first)
    one.thread.start()
    assert one.ended() == 0
    assert [status(one, name) for name in names] == ["done", "failed", "done"]
    assert one.queue.jobs[names[1]].error == "params nest too deep"
    assert one.queue.jobs[names[1]].request is None, "nothing was sent"


def test_a_claim_does_not_prolong_the_lease_of_what_is_held_already(work, until, monkeypatch):
    monkeypatch.setattr(worker, "RENEW_S", 600)
    one = work("cat > /dev/null", jobs=2, poll_s=60)
    began = worker.boottime()
    first = one.queue.add()
    one.notice()
    until(lambda: status(one, first) == "running")
    renewed = one.worker._lease.renewed
    assert renewed > began, "where nothing is held, the claim itself is as good as a renewal"
    second = one.queue.add()
    one.notice()
    until(lambda: status(one, second) == "running")
    until(lambda: all(slot.sent for slot in one.worker._slots))
    assert one.worker._lease.renewed == renewed


def slow_intend(one, monkeypatch, seconds):
    """Let the database answer late, between a claim and the line that is sent for it."""
    real = one.queue.intend

    def intend(*values):
        time.sleep(seconds)
        return real(*values)

    monkeypatch.setattr(one.queue, "intend", intend)


def test_no_line_is_sent_after_the_lease_though_the_claim_was_in_time(work, monkeypatch):
    monkeypatch.setattr(pool, "LOST_S", 1.0)
    monkeypatch.setattr(worker, "RENEW_S", 0.3)
    one = work(begin=False, drain=True)
    slow_intend(one, monkeypatch, 1.2)
    real, ages_s = pool.Pipeline.send, []

    def send(pipeline, line):
        ages_s.append(worker.boottime() - one.worker._lease.renewed)
        real(pipeline, line)

    monkeypatch.setattr(pool.Pipeline, "send", send)
    name = one.queue.add()
    one.thread.start()
    assert one.ended() == 0
    assert status(one, name) == "done"
    assert len(ages_s) == 1
    assert ages_s[0] < 1.0
    assert "renew" in one.queue.calls[one.queue.calls.index("intend") :]


@pytest.mark.parametrize(("delay_s", "is_doubtful"), [(0, False), (2.5, True)])
def test_a_first_line_says_since_when_unless_it_goes_out_at_once(
    work, until, monkeypatch, delay_s, is_doubtful
):
    """So late another worker may have had the job, and sent it."""
    monkeypatch.setattr(pool, "FRESH_S", 2.0)
    one = work("""jq -c --unbuffered '.error={message:(.job|tojson),retry:"never"}'""")
    until(lambda: one.heard("waiting for jobs"))
    slow_intend(one, monkeypatch, delay_s)
    name = one.queue.add()
    one.notice()
    until(lambda: status(one, name) == "failed")
    assert ("intended_at" in one.queue.jobs[name].error) is is_doubtful


def test_a_line_that_no_pipe_takes_at_once_is_sent_part_by_part(work, until):
    one = work(f"sleep 0.3; {DONE}")
    name = one.queue.add("x" * 99_000)
    one.notice()
    until(lambda: status(one, name) == "done")
    assert one.queue.jobs[name].request["prompt"] == "x" * 99_000


def test_a_pipeline_that_closes_its_output_is_ended_and_its_job_goes_through_the_next(
    work, until, tmp_path
):
    closed = tmp_path / "closed"
    closes = f"touch {closed}; read -r line; exec >&-; sleep 1000"
    one = work(f"[ -e {closed} ] || {{ {closes}; }}; {DONE}")
    name = one.queue.add()
    one.notice()
    until(lambda: status(one, name) == "done")
    assert len(one.heard("a pipeline has ended; it is started again at once")) == 1
    assert (one.queue.jobs[name].attempts, one.worker._slots[0].crashes) == (1, 0)


def test_told_to_stop_without_a_queue_it_ends_soon_and_names_what_it_held(work, until, monkeypatch):
    monkeypatch.setattr(worker, "GONE_S", 0.5)
    one = work("trap '' TERM INT; cat > /dev/null; sleep 1000", poll_s=0.2)
    name = one.queue.add()
    one.notice()
    until(lambda: one.worker._slots[0].sent)
    one.refuse = [AnswerLost("gone for good")] * 1000
    one.queue.faults = [AnswerLost("gone")]
    one.notice()
    until(lambda: one.heard("the queue is lost"))
    began = time.monotonic()
    one.stop()
    assert one.ended() == 0
    assert time.monotonic() - began < pool.END_S, "no pipeline is waited for as long as usual"
    text = "the queue cannot be reached; these leases expire by themselves: "
    assert one.says[-2:] == [text + name, "ended"]
    assert status(one, name) == "running"


def test_the_first_answer_to_a_job_counts_and_no_later_one(work):
    answers = '(.file="f"), (.error={message:"no",retry:"never"}), (.pending={})'
    one = work(f"jq -c --unbuffered '{answers}'", begin=False, drain=True)
    names = [one.queue.add() for _ in range(3)]
    one.thread.start()
    assert one.ended() == 0
    assert {status(one, name) for name in names} == {"done"}
