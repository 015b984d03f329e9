"""Workers, and what befalls them: the blows are drawn from a seed, what they hurt is followed.

A wound is a job that was running when something of its own was killed or cut off. It has healed
when the job was claimed again, its lease was renewed, or it had an answer.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2

from imagen import db
from imagen.queue.jobs import MOST_CLAIMS
from processes import descendants
from servers.gateway import JSON, TROUBLE, Answer

if TYPE_CHECKING:
    import subprocess

    from conftest import Tools

    from servers.postgres import Place
    from servers.supabase import Cloud

# longer than imagen-upload is patient
BUSY = Answer(503, {**JSON, "Retry-After": "15"}, b'{"message":"busy"}')
KILLS = {"worker": 2, "pipeline": 4, "connections": 2, "stopped": 1}
STOPPED_S = 9.0  # longer than a pipeline may work on without its worker
FAULTS = {"slow cloud": 3, "busy cloud": 2, "restart": 1}
ASKED = (
    *("PUT /storage/v1/object", "GET /rest/v1/images", "POST /rest/v1/images"),
    *("GET /storage/v1/object", "POST /rest/v1/imagen_usage"),
)


@dataclass
class Wound:
    """A running job that was struck; `again` is when its recovery was last hindered, too."""

    what: str
    job: str
    fence: int
    attempts: int
    lease: Any
    since: float
    again: float = field(default=0.0)

    def has_healed(self, fence: int, attempts: int, lease: Any, over: bool) -> bool:
        """Whether the row says that somebody has taken it up, or had an answer."""
        held = self.what in ("connections", "restart") and lease is not None and lease > self.lease
        return over or held or (fence, attempts) != (self.fence, self.attempts)


class Chaos:
    """Workers on a database, one a machine, and the blows that are dealt to them."""

    def __init__(
        self,
        tool: Tools,
        place: Place,
        pipeline: str,
        machines: list[Mapping[str, str]],
        seed: int,
        cloud: Cloud | None = None,
    ) -> None:
        """Start a worker with each of these environments; `cloud` means a server of our own."""
        self.tool, self.place, self.pipeline, self.machines = tool, place, pipeline, machines
        self.cloud, self.began = cloud, time.monotonic()
        self.random = random.Random(seed)
        self.connection: Any = None
        self.wounds: dict[tuple[str, str, int], Wound] = {}
        self.worst: Counter[str] = Counter()  # seconds, by what was done
        self.worst_at_all = 0.0  # from the first blow, whatever else came between
        self.done: Counter[str] = Counter()
        self.hurt: Counter[str] = Counter()  # jobs that were running, and faults that came up
        self.deeds: dict[str, Callable[[], bool]] = {
            "worker": self.kill_worker,
            "pipeline": self.kill_in_pipeline,
            "connections": self.cut_connections,
            "stopped": self.stop_worker,
            "slow cloud": self.slow_cloud,
            "busy cloud": self.busy_cloud,
            "restart": self.restart,
        }
        self.goes_on_at: dict[Any, float] = {}  # when a worker that stands still goes on
        self.workers = [self.start(number) for number in range(len(machines))]

    # -- looking ---------------------------------------------------------------------------------

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the database; it may be away for a while, or cut us off."""
        end = time.monotonic() + 30
        while True:
            try:
                if self.connection is None or self.connection.closed:
                    self.connection = psycopg2.connect(self.place.dsn("migrator"))
                    self.connection.autocommit = True
                with self.connection.cursor() as cursor:
                    cursor.execute(query, values or None)
                    return cursor.fetchall() if cursor.description else []
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                assert time.monotonic() < end
                self.connection = self.connection and self.connection.close()
                time.sleep(0.05)

    def running(self, number: int | None = None) -> list[tuple[Any, ...]]:
        """Give what runs, of one worker or all: id, fence, attempts, lease, claims."""
        pid = "%" if number is None else self.workers[number].pid
        return self.sql(
            "select id::text, fence, attempts, lease, claims from imagen.jobs"
            " where status = 'running' and worker like %s",
            f"%-{pid}-%",
        )

    def look(self) -> None:
        """Note which wounds have healed, and how long that took."""
        now, names = time.monotonic(), [one.job for one in self.wounds.values()]
        rows = self.sql(
            "select id::text, fence, attempts, lease, finished_at is not null"
            " from imagen.jobs where id = any (%s::uuid[])",
            names,
        )
        about = {name: rest for name, *rest in rows}
        for key, one in [*self.wounds.items()]:
            self.worst[one.what] = max(self.worst[one.what], now - one.again)  # type: ignore[assignment]
            self.worst_at_all = max(self.worst_at_all, now - one.since)
            if one.has_healed(*about[one.job]):
                self.note(f"{one.job} after {now - one.since:.1f} s of {one.what}")
                del self.wounds[key]

    def note(self, text: str) -> None:
        """Write down what happens and when, for whoever wants to know why a test failed."""
        with (self.tool.folder / "chaos.log").open("a") as log:
            log.write(f"{time.monotonic() - self.began:.2f} {text}\n")

    def left(self) -> int:
        """Count the jobs that are not over."""
        return int(self.sql("select count(*) from imagen.jobs where finished_at is null")[0][0])

    # -- blows -----------------------------------------------------------------------------------

    def run(self, strikes: int, limit_s: float) -> None:
        """Strike at random times while jobs are made, all along; then let them be finished."""
        rest, ends = self.planned(strikes), time.monotonic() + limit_s
        what = next(rest, None)
        each = 0.8 * self.left() / strikes  # jobs between two blows, unless they take too long
        following, struck = time.monotonic() + 1, time.monotonic()
        next_left = float(self.left())
        while (left := self.left()) or self.wounds:
            now = time.monotonic()
            assert now < ends, self.sql(
                "select status, count(*), max(error) from imagen.jobs group by 1"
            )
            due = now > following and (left <= next_left or now > struck + 4)
            if due and what:
                self.note(what)
                if self.deeds[what]():  # otherwise the same blow again, a little later
                    self.done[what] += 1
                    what = next(rest, None)
                    struck, next_left = time.monotonic(), left - each
                following = time.monotonic() + self.random.uniform(0.2, 0.8)
            self.look()
            self.go_on()
            time.sleep(0.05)

    def planned(self, strikes: int) -> Iterator[str]:
        """Draw what is done: each kind at least once, the first ones so that all come early."""
        weights = KILLS | (FAULTS if self.cloud else {})
        first = self.random.sample([*weights], len(weights))
        more = max(strikes - len(first), 0)
        return iter(first + self.random.choices([*weights], [*weights.values()], k=more))

    def start(self, number: int, *args: str) -> subprocess.Popen[bytes]:
        """Start a machine's worker."""
        env = {db.VARIABLE: self.place.dsn("migrator"), **self.machines[number]}
        with (self.tool.folder / f"worker-{number}.err").open("ab") as err:
            return self.tool.start("listen", *args, "--", self.pipeline, env=env, stderr=err)

    def wounded(self, what: str, rows: list[tuple[Any, ...]]) -> bool:
        """Begin to count for what is running, if anything is."""
        now = time.monotonic()
        for name, fence, attempts, lease, _claims in rows:
            for one in self.wounds.values():
                one.again = now if (one.job, one.fence) == (name, fence) else one.again
            wound = Wound(what, name, fence, attempts, lease, now, now)
            self.wounds.setdefault((what, name, fence), wound)
        self.hurt[what] += len(rows)
        return bool(rows)

    def hindered(self) -> None:
        """Who would take over was struck as well: from now on it may take as long again."""
        for one in self.wounds.values():
            one.again = time.monotonic()

    def victim(self) -> int | None:
        """Choose a worker at work; not one whose job would then be given up as poisonous."""
        spared = {name for name, *_, claims in self.running() if claims >= MOST_CLAIMS - 1}
        free = [
            number
            for number in range(len(self.workers))
            if (jobs := {row[0] for row in self.running(number)}) and not spared & jobs
        ]
        return self.random.choice(free) if free else None

    def kill_worker(self) -> bool:
        """Kill imagen-listen itself; it is started again, as systemd does."""
        if (number := self.victim()) is None:
            return False
        self.workers[number].kill()
        self.workers[number].wait()
        hurt = self.wounded("worker", self.running(number))
        self.workers[number] = self.start(number)
        return hurt

    def stop_worker(self) -> bool:
        """Let imagen-listen stand still, as Ctrl-Z does, until somebody else has its job."""
        if self.goes_on_at or (number := self.victim()) is None:
            return False
        self.workers[number].send_signal(signal.SIGSTOP)
        self.goes_on_at[self.workers[number]] = time.monotonic() + STOPPED_S
        return self.wounded("stopped", self.running(number))

    def go_on(self, now: bool = False) -> None:
        """Let those go on that have stood still long enough, or all of them."""
        for worker, due in [*self.goes_on_at.items()]:
            if now or time.monotonic() > due:
                del self.goes_on_at[worker]
                worker.send_signal(signal.SIGCONT)  # nothing, when it has ended

    def kill_in_pipeline(self) -> bool:
        """Kill one process below a worker: a tool, the shell, or the guard."""
        if (number := self.victim()) is None:
            return False
        rows, found = self.running(number), descendants(self.workers[number].pid)
        if not rows or not found:
            return False
        victim = self.random.choice(sorted(found))
        self.note(f"of worker {number}: {command_of(victim)}, while {rows}")
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        return self.wounded("pipeline", rows)

    def cut_connections(self) -> bool:
        """Let the server end some of the workers' connections, one at least."""
        if not (rows := self.running()):
            return False
        pids = self.sql(
            "select pid from pg_stat_activity where application_name like 'imagen-listen%%'"
            " and datname = current_database() order by pid"
        )
        chosen = [pid for (pid,) in pids if self.random.random() < 0.4]
        if not (chosen := chosen or [pid for (pid,) in pids[:1]]):
            return False
        self.sql("select pg_terminate_backend(pid) from unnest(%s::int[]) as pid", chosen)
        self.hindered()
        return self.wounded("connections", rows)

    def restart(self) -> bool:
        """Restart the server, in good order or as a crash would."""
        if not (rows := self.running()):
            return False
        number = self.random.choice([signal.SIGINT, signal.SIGQUIT])
        away_s = self.random.choice([0.0, 1.0, 2.0])
        self.connection = self.connection.close()
        self.wounded("restart", rows)
        self.place.cluster.restart(number, away_s)
        self.hindered()
        return True

    def slow_cloud(self) -> bool:
        """Let some requests come to nothing, or their answers be lost: what asks asks again."""
        assert self.cloud
        answer = self.random.choice([TROUBLE, None])
        times, after = self.random.choice([1, 2, 3]), self.random.random() < 0.5
        self.cloud.gateway.fail(self.random.choice(ASKED), answer, times=times, after=after)
        self.hurt["slow cloud"] += times
        return True

    def busy_cloud(self) -> bool:
        """Let an upload fail for so long that its job has to come again."""
        assert self.cloud
        self.cloud.gateway.fail(self.random.choice(ASKED[:3]), BUSY)
        self.hurt["busy cloud"] += 1
        return True

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """End the workers in good order; what was still to be sent, the next start sends."""
        self.go_on(now=True)
        for worker in self.workers:
            worker.terminate()
        assert [worker.wait(30) for worker in self.workers] == [0] * len(self.workers)
        if self.cloud:
            for answer in self.cloud.gateway.outstanding:
                self.hurt["busy cloud" if answer is BUSY else "slow cloud"] -= 1
            self.cloud.gateway.forget()
            last = [self.start(number, "--drain") for number in range(len(self.machines))]
            assert [worker.wait(30) for worker in last] == [0] * len(last)
        self.connection.close()

    def report(self) -> str:
        """Say what was done, and what came of it."""
        struck = ", ".join(
            f"{number} {name} (hurt {self.hurt[name]})"
            for name, number in sorted(self.done.items())
        )
        worst = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in sorted(self.worst.items()))
        return f"{struck}; worst recovery: {worst}; of all {self.worst_at_all:.1f} s"


def command_of(pid: int) -> str:
    """Give the command line of a process."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[-60:]
    return ""
