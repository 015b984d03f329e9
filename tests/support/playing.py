"""Plays a cell of the matrix: arms the fault, runs the real program, and runs it again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagen import db
from imagen.queue import jobs
from matrix import CLOCKS, KILLS, LISTS, PROXIES, WIRE, Cell, Observation, Run
from places import BREAKS, NAME, Limits, Place
from real import LIB, missing
from servers import wire
from servers.proxy import Proxy

if TYPE_CHECKING:
    from conftest import Tools

    from servers.postgres import Place as DatabasePlace

LIMIT_S = 30.0  # of one run
MOST_RUNS = 6
LAG_S = 0.5
PROMPT = "a lighthouse at dusk"
LONG = f"{PROMPT}, " + "waves against the rocks, " * 50  # longer than a list may show
SHORT_SILENCE = Limits(read_s=0.8)
KILLED = Limits(read_s=1.2)
KILLED_WORKER = Limits(read_s=3.0)  # another one takes longer to come to its look
CREATES = ("create", "throttled")


def limits_of(cell: Cell) -> Limits:
    """Return the limits under which a cell takes seconds: short where something stays silent."""
    if cell.fault == "list_lags":
        return Limits(settle_s=LAG_S + 0.3)
    if cell.fault in KILLS:
        return KILLED_WORKER if cell.program == "listen" else KILLED
    return SHORT_SILENCE if cell.fault in ("silence", "trickle") else Limits()


@cache
def clock_library() -> str:
    """Return the path of libfaketime, which its own program knows."""
    program = shutil.which("faketime")
    if program is None:
        missing("no faketime here (Debian: apt install faketime)")
    asks = [program, "-f", "+0", "printenv", "LD_PRELOAD"]
    return subprocess.run(asks, capture_output=True, text=True, check=True).stdout.strip()


def clock_environment(offset: str, folder: Path) -> dict[str, str]:
    """Return what sets the wall clock of a program, and leaves its other clocks alone.

    libfaketime 0.9.10 then refuses a sleep until a time of CLOCK_MONOTONIC, as Python's time.sleep
    is; so that sleeps by select, in the child processes too.
    """
    library = clock_library()
    (folder / "sitecustomize.py").write_text(
        "import select, time\n"
        "time.sleep = lambda seconds: select.select([], [], [], seconds) and None\n"
    )
    real = {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
    path = f"{folder}{os.pathsep}{LIB}"
    return {"LD_PRELOAD": library, "FAKETIME": offset, "PYTHONPATH": path, **real}


class Player:
    """One cell, in the folder of a test."""

    def __init__(
        self,
        cell: Cell,
        place: Place,
        tool: Tools,
        configure: Callable[[str], Path],
        database: DatabasePlace | None = None,
        kills: Sequence[float] = (),
    ) -> None:
        """Take the cell, and after how many seconds of further runs those are killed."""
        self.cell, self.place, self.tool, self.configure = cell, place, tool, configure
        self.kills = [*kills]
        self.folder = tool.folder / "cell"
        while self.folder.exists():
            self.folder = self.folder.with_name(f"{self.folder.name}-")
        self.folder.mkdir()
        self.prompt = LONG if cell.fault == "list_normalises" else PROMPT
        self.id = str(uuid.uuid4())
        self.machines = [self.folder / "machine"]
        self.extra: dict[str, str] = {}
        self.runs: list[Run] = []
        self.proxy: Proxy | None = None
        self.began = time.time()
        self.released: float | None = None
        self.queue = Queue(database, self.id, self.prompt) if database else None

    def play(self) -> Observation:
        """Play the cell to its end; give what was seen."""
        with ExitStack() as stack:
            if self.queue:
                stack.callback(self.queue.close)
            self._arm(stack)
            self._write_configuration()
            if self.cell.fault in KILLS:
                self.runs.append(self._killed())
                self.place.mend()
                self._write_configuration()
                self._change_world()
            self._run_until_settled()
        return self._observation()

    def _write_configuration(self) -> None:
        name = self.place.name
        self.configure(
            f"default_backend: {name}\n"
            f"backends:\n  {name}: {self.place.instance(limits_of(self.cell))}\n"
            f"worker: {{backends: [{name}]}}\n" + "budget: {per_day: 100}\n" * self.place.paid
        )

    # -- faults ----------------------------------------------------------------------------------

    def _arm(self, stack: ExitStack) -> None:
        """Let the request of the cell's stage meet its fault."""
        cell, place = self.cell, self.place
        if cell.stage == "throttled":
            forever = cell.fault in KILLS and not cell.accepted
            place.throttle(*(1, 30.0) if forever else (2, 0.2))
            if forever:
                return
        if cell.fault in WIRE:
            half = cell.fault == "cut_after" and cell.stage not in CREATES
            self._strike(wire.HALF_A_BODY if half else BREAKS[cell.fault])
        elif cell.fault in KILLS:
            late = cell.fault == "kill" and cell.accepted and cell.stage in CREATES
            self._strike(wire.SILENCE, limits_of(cell).read_s * late)
        elif cell.fault in LISTS:
            self._strike(wire.CUT)
            place.list_lags(LAG_S * (cell.fault == "list_lags"))
            if cell.fault == "list_normalises":
                place.list_normalises()
        else:
            self._arm_proxy(stack)

    def _strike(self, broken: wire.Broken, late_s: float = 0.0) -> None:
        self.place.strike(self.cell.stage, broken, self.cell.accepted, late_s)

    def _arm_proxy(self, stack: ExitStack) -> None:
        """Cut in the proxy where it can tell the request, else behind it."""
        cell = self.cell
        assert cell.fault in PROXIES
        self.extra |= self.place.behind(cell.fault, self.folder)
        cut = f"cut {'after' if cell.accepted else 'before'}" if cell.stage == "create" else None
        only = "POST" if cell.fault == "proxy_http" else None
        self.proxy = stack.enter_context(Proxy({NAME: self.place.address}, cut, times=1, only=only))
        scheme = "http" if cell.fault == "proxy_http" else "https"
        self.extra |= {f"{scheme}_proxy": self.proxy.url, "no_proxy": ""}
        if cut is None:
            self._strike(wire.CUT)

    def _change_world(self) -> None:
        """After the kill: another clock, another machine."""
        if self.cell.fault in CLOCKS:
            self.extra |= clock_environment(CLOCKS[self.cell.fault], self.folder)
        if self.cell.fault == "takeover":
            self.machines.append(self.folder / "other-machine")

    # -- runs ------------------------------------------------------------------------------------

    def _run_until_settled(self) -> None:
        doubts = 0  # that only a person can end: told again, but a comparison is over by one
        while len(self.runs) < MOST_RUNS:
            if self.kills:
                run = self._run(self.kills.pop(0))
            else:
                run = self._run(LIMIT_S)
                doubts += any(one.get("retry") == "reconcile" for one in run.errors)
            self.runs.append(run)
            if run.is_over or doubts > (self.cell.program != "compare"):
                return
            time.sleep(min(run.retry_after_s, 10) + 0.1 * (not run.killed))

    def _run(self, limit_s: float) -> Run:
        """Run it to its end, or kill it after so many seconds."""
        began, child = time.monotonic(), self._start()
        status: int | None
        try:
            out, _ = child.communicate(timeout=limit_s)
            status, killed = child.returncode, False
        except subprocess.TimeoutExpired:
            status, killed = (None, False) if limit_s == LIMIT_S else (-9, True)
            out = self._kill(child, everything=not killed)
        seconds = round(time.monotonic() - began, 2)
        if self.queue and not killed and status is not None:
            status, records = self.queue.outcome(self.place.name, self.machines[-1])
        else:
            whole = [line for line in out.splitlines(keepends=True) if line.endswith(b"\n")]
            records = [json.loads(line) for line in whole]
        return Run(status, records, self._stderr(), self.place.creates(), seconds, killed)

    def _killed(self) -> Run:
        """Start the program, and kill it alone once its request is under way."""
        cell, place, child = self.cell, self.place, self._start()
        throttled = cell.stage == "throttled"
        needed = 3 if throttled and cell.accepted else 1
        late = cell.fault == "kill" and cell.stage in CREATES
        ends = time.monotonic() + LIMIT_S
        while place.arrived(cell.stage) < needed or (
            cell.stage in CREATES and cell.accepted and not late and not place.creates()
        ):
            assert child.poll() is None and time.monotonic() < ends, self._stderr()
            time.sleep(0.005)
        if throttled and not cell.accepted:
            time.sleep(0.2)  # it waits as it was told
        out = self._kill(child)
        assert not out, out
        self.released = time.time()
        return Run(-9, [], self._stderr(), place.creates(), killed=True)

    def _kill(self, child: subprocess.Popen[bytes], everything: bool = False) -> bytes:
        """Kill the program alone, or with its children; give what it had written by then."""
        child.kill()
        if everything:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        out = b""
        with suppress(subprocess.TimeoutExpired):
            out = child.communicate(timeout=3)[0]
        if self.queue:
            time.sleep(0.3)  # its guard ends the pipeline; a lease is longer than that
        return out

    def _start(self) -> subprocess.Popen[bytes]:
        if self.queue:
            self.queue.release()
        name, *arguments = self._command()
        folder = self.machines[-1]
        folder.mkdir(exist_ok=True)
        env = {"XDG_STATE_HOME": str(folder), "IMAGEN_OUT_DIR": str(folder / "out")}
        env |= {**self.place.environment, **self.extra}
        if self.queue:
            env[db.VARIABLE] = self.queue.dsn
        with (self.folder / "stderr").open("wb") as err, self._stdin() as stdin:
            return self.tool.start(
                name, *arguments, env=env, stdin=stdin, stderr=err, start_new_session=True
            )

    def _command(self) -> tuple[str, ...]:
        cell, size = self.cell, f"--size={self.place.size}"
        wait = ("--wait=1",) if cell.backend == "comfyui" and cell.fault == "silence" else ()
        match cell.program:
            case "render_with_id" if cell.fault == "takeover":
                return ("render",)
            case "render_with_id":
                return ("render", self.prompt, "--id=k", size, *wait)
            case "render_without_id":
                return ("render", self.prompt, size, *wait)
            case "generate":
                return ("generate", self.prompt, "--no-preview", size, *wait)
            case "compare":
                return ("compare", self.prompt, f"--backends={self.place.name}", size)
        pipeline = f"{sys.executable} -P -m imagen render"
        return ("listen", "--drain", "--", pipeline)

    def _stdin(self) -> Any:
        """Open the job's line where another ledger takes it over, else nothing."""
        path = self.folder / "stdin"
        path.write_text("")
        if self.cell.fault == "takeover" and not self.queue:
            job: dict[str, Any] = {"id": self.id, "attempt": len(self.machines)}
            if self.released is not None:
                job |= {"intended_at": _iso(self.began), "released_at": _iso(self.released)}
            request = {"id": self.id, "prompt": self.prompt, "seed": 7, "width": 512, "height": 512}
            day = {"date": "2026-05-04", "slug": "a-lighthouse"}
            path.write_text(json.dumps({**request, **day, "job": job}) + "\n")
        return path.open("rb")

    def _stderr(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    # -- what was seen ---------------------------------------------------------------------------

    def _observation(self) -> Observation:
        pictures = [
            {"file": one["file"], "submit": one.get("submit"), "size": _size(one["file"])}
            for one in self.runs[-1].records
            if one.get("backend") == self.place.name and isinstance(one.get("file"), str)
        ]
        images = (path for folder in self.machines for path in folder.rglob("out/**/*"))
        return Observation(
            cell=self.cell,
            runs=self.runs,
            creates=self.place.creates(),
            handles=self.place.handles(),
            submits=[row for folder in self.machines for row in submits_in(folder)],
            pictures=pictures,
            paid=self.place.paid,
            ledgers=len(self.machines),
            proxied=self.proxy.forwarded if self.proxy else None,
            files={str(path): path.stat().st_size for path in images if path.is_file()},
        )


def submits_in(state: Path) -> list[dict[str, Any]]:
    """Return the submits in a machine's ledger."""
    path = state / "imagen" / "ledger.sqlite3"
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as ledger:
        ledger.row_factory = sqlite3.Row
        query = "select backend, number, handle, billed, estimate_usd, cost_usd from submits"
        return [dict(row) for row in ledger.execute(query)]


def _size(path: str) -> int:
    with suppress(OSError):
        return Path(path).stat().st_size
    return 0


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat()


class Queue:
    """A queue with one job, on a database of the test's own."""

    def __init__(self, database: DatabasePlace, job: str, prompt: str) -> None:
        self.dsn = database.dsn("migrator")
        self.job = job
        self._database = db.Database(db.chosen(None, self.dsn), "the matrix")
        self._queue = jobs.Queue(self._database)
        size = {"width": 512, "height": 512}
        self._sql(
            "insert into imagen.jobs (id, owner_user_id, prompt, params) values (%s, %s, %s, %s)",
            *(job, str(uuid.uuid4()), prompt, json.dumps(size)),
        )

    def release(self) -> None:
        """Let the job be due now; what a dead worker holds is anybody's, as after its lease."""
        self._sql("update imagen.jobs set lease = now() where status = 'running'")
        self._queue.rescue()
        self._sql("update imagen.jobs set run_after = now() where status = 'pending'")

    def outcome(self, backend: str, machine: Path) -> tuple[int, list[dict[str, Any]]]:
        """Return the job as an exit status and a record; its sidecar is the record when done."""
        (row,) = self._sql("select status, error_detail from imagen.jobs where id = %s", self.job)
        status, detail = row
        if status != "done":
            error = detail or {"code": "none", "retry": "safe", "billed": "unknown"}
            return (1 if status == "failed" else 75), [{"error": error}]
        sidecars = [json.loads(one.read_text()) for one in machine.rglob("out/**/*.json")]
        files = list(machine.rglob("out/**/*.png"))
        return 0, [{"backend": backend, **one, "file": str(files[0])} for one in sidecars if files]

    def _sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        import psycopg2

        with (
            closing(psycopg2.connect(self.dsn)) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(query, values or None)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """Close the connection."""
        self._database.close()
