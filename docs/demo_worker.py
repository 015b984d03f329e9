"""The worker for real: an embedded PostgreSQL, the migrations, imagen-listen, three jobs by SQL.

`make demo-worker` runs it, with the folder for what it makes. No server is needed, none is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from servers import postgres

TOP = Path(__file__).parents[1]
OUT = Path(sys.argv[1]).absolute() if sys.argv[1:] else TOP / "demo-output" / "worker"
OURS = ("IMAGEN_", "SUPABASE_", "PG")  # of the environment: what would lead elsewhere
LONGEST_S = 60
INSERT = """\
insert into imagen.jobs (owner_user_id, prompt, params)
select '00000000-0000-0000-0000-00000000000a', prompt, '{"width": 768, "height": 512}'
from unnest(array['a lighthouse at dusk', 'a paper boat', 'a cat in a fishbowl']) as prompt;"""
SHOW = """\
select status, attempts, round(1000 * extract(epoch from finished_at - created_at)) as ms, prompt
from imagen.jobs order by finished_at;"""


def main() -> None:
    """Show the whole way of a job, with the commands that it takes."""
    try:
        cluster = postgres.started()
    except postgres.NoPostgres as none:
        sys.exit(f"demo-worker: {none}")
    try:
        postgres.prepare(cluster)
        with cluster.database(postgres.BARE) as place:
            show(place, environment(place))
    finally:
        cluster.let_go()


def environment(place: postgres.Place) -> dict[str, str]:
    """Give the tools a configuration and a ledger of the demo's own, and psql on their PATH."""
    OUT.mkdir(parents=True, exist_ok=True)
    config = OUT / "config.yaml"
    config.write_text(f'default_backend: mock\noutput: {{dir: "{OUT}", cloud_sync: "off"}}\n')
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return clean | {
        "PATH": f"{Path(sys.executable).parent}:{next(iter(postgres.find()))}:{os.environ['PATH']}",
        "IMAGEN_CONFIG": str(config),
        "IMAGEN_LEDGER": str(OUT / "ledger.sqlite3"),
        "IMAGEN_DATABASE_URL": place.dsn("migrator"),
    }


def show(place: postgres.Place, env: dict[str, str]) -> None:
    """Migrate, start a worker, queue three jobs, show what became of them, stop the worker."""
    run("imagen-migrate", env)
    say("imagen-listen &")
    with (OUT / "worker.log").open("w+b") as log:
        worker = subprocess.Popen(["imagen-listen"], env=env, cwd=TOP, stderr=log)
        try:
            wait(lambda: "waiting for jobs" in Path(log.name).read_text(), worker)
            run(sql(INSERT), env)
            wait(lambda: is_over(place), worker)
            run(sql(SHOW), env)
            run("imagen-jobs --status done | jq -c '[.status, .prompt]'", env, "jq")
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(30)
        say("kill -TERM %1    # the worker says:")
        print(Path(log.name).read_text(), end="", flush=True)
    print("\nThe images, with their sidecars:")
    for image in sorted(OUT.glob("*/*.png"), key=lambda path: path.stat().st_mtime)[-3:]:
        print(image)


def sql(statement: str) -> str:
    """Give the command that a person would type for a statement."""
    return f"psql -X \"$IMAGEN_DATABASE_URL\" <<'SQL'\n{statement}\nSQL"


def is_over(place: postgres.Place) -> bool:
    """Whether all three jobs are at their end."""
    with place.cursor() as cursor:
        cursor.execute("select count(*) from imagen.jobs where finished_at is not null")
        return bool(cursor.fetchone()[0] == 3)


def run(command: str, env: dict[str, str], needs: str = "sh") -> None:
    """Show a command and run it, where the program that it needs is there."""
    if any((Path(one) / needs).exists() for one in env["PATH"].split(":")):
        say(command)
        subprocess.run(["sh", "-c", command], env=env, cwd=TOP, check=True)


def say(command: str) -> None:
    """Show a command as at a prompt."""
    print(f"\n$ {command}", flush=True)


def wait(what: Callable[[], bool], worker: subprocess.Popen[bytes]) -> None:
    """Wait until `what()` is true, as long as the worker lives."""
    end = time.monotonic() + LONGEST_S
    while not what():
        if worker.poll() is not None or time.monotonic() > end:
            sys.exit(f"demo-worker: it did not come to an end; see {OUT / 'worker.log'}")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
