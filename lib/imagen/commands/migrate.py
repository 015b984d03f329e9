"""imagen-migrate: the SQL migrations, each applied once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..cli.tool import Common, tool
from ..errors import DONE, UsageFault

if TYPE_CHECKING:
    from ..db import Database
    from ..db.migrations import Migration

EXAMPLES = """
Examples:
  imagen-migrate --status
  imagen-migrate --dry-run
  imagen-migrate --bootstrap --database-url 'postgresql:///imagen?host=/run/postgresql'
"""


@tool("migrate", epilog=EXAMPLES)
@click.option("--database-url", metavar="URL", help="Database address, over $IMAGEN_DATABASE_URL.")
@click.option("--bootstrap", is_flag=True, help="First make what a plain PostgreSQL lacks.")
@click.option("--dry-run", is_flag=True, help="Say what would be applied; write nothing.")
@click.option("--status", is_flag=True, help="List all migrations and where they stand.")
def main(
    common: Common, database_url: str | None, bootstrap: bool, dry_run: bool, status: bool
) -> int:
    """Each is applied in a transaction, in order, once. A password belongs into the variable or
    ~/.pgpass, never on the command line.
    """
    from .. import db
    from ..config import loader
    from ..db import migrations

    if status and (bootstrap or dry_run):
        raise UsageFault("--status goes with no other option")
    files = migrations.read()
    loader.load(common.config_file)
    where = db.chosen(database_url, loader.secret(db.VARIABLE))
    database = db.Database(where, "imagen-migrate")
    try:
        done = 0
        for line in _lines(database, files, bootstrap, dry_run, status):
            for level, said in database.notices():
                (common.report.note if level == "WARNING" else common.report.detail)(said)
            _write(common, line)
            done += 1
    finally:
        database.close()
    if not done:
        common.report.note("nothing to do: every migration is applied")
    return DONE


def _lines(
    database: Database, files: list[Migration], bootstrap: bool, dry_run: bool, status: bool
) -> Iterator[dict[str, Any]]:
    """Do what was asked, and yield a line for each thing done or found."""
    from ..db import migrations

    if not dry_run and not status:
        if bootstrap:
            yield from migrations.bootstrap(database)
        yield from migrations.apply(database, files)
        return
    if bootstrap:
        with database.transaction() as step:
            migrations.check_bootstrap(step)
        yield {"migration": migrations.BOOTSTRAP, "status": "pending"}
    found = migrations.look(database, files)
    if dry_run:
        migrations.check(found)
    for one in found:
        if status or one.status == "pending":
            line = {"migration": one.name, "status": one.status, "applied_at": one.applied_at}
            yield {key: value for key, value in line.items() if value is not None}


def _write(common: Common, line: dict[str, Any]) -> None:
    from ..cli.pipe import write_out

    if sys.stdout is not None and sys.stdout.isatty():
        more = line.get("applied_at", f"{line['ms']} ms" if "ms" in line else "")
        write_out(f"{line['status']:8} {line['migration']:28} {more}".rstrip().encode() + b"\n")
    else:
        common.pipe.write(line)


if __name__ == "__main__":
    main()
