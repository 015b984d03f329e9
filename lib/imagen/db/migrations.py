"""The migrations of sql/: which are to be applied, and applying them, each once."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigFault, ImagenError, Refused
from . import SQL, Database, DatabaseBusy, DatabaseFault, Row, Transaction

STATEMENT_S, LOCK_S, TURN_S = 300, 10, 30
BOOTSTRAP = "bootstrap"
NEEDS: dict[str, tuple[str, ...]] = {  # a migration that is not named here needs all before it
    "002_imagen_schema_grants": ("001_imagen_schema_init",),
    "003_imagen_storage_policies": ("001_imagen_schema_init",),
    "004_imagen_pgrst_expose": ("001_imagen_schema_init",),
    "005_mai_usage": (),
    "006_imagen_jobs": ("001_imagen_schema_init",),
    "007_imagen_storage_image_types": ("003_imagen_storage_policies",),
    "008_imagen_jobs_released": ("006_imagen_jobs",),
    "009_imagen_jobs_record": ("006_imagen_jobs",),
}
_TABLE = re.compile(r"^create table if not exists ([\w.]+) \(\n(.*?)^\)", re.MULTILINE | re.DOTALL)
_COLUMN = re.compile(
    r"^  (?!unique\b|check\b|primary\b)(\w+) ([a-z]+(?: precision)?)\b", re.MULTILINE
)

_ADDED = re.compile(
    r"^alter table ([\w.]+) add column if not exists (\w+) ([a-z]+(?: precision)?)\b", re.MULTILINE
)


class MigrationFault(ConfigFault):
    """What was applied is not what the file says now"""

    code = "migration_changed"


class Migration(NamedTuple):
    """One file of sql/."""

    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """The checksum of the file's text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


class State(NamedTuple):
    """Where one migration stands: applied, pending, changed, or unknown to this version."""

    name: str
    status: str
    applied_at: str | None = None


def read(folder: Path = SQL) -> list[Migration]:
    """Give the migrations of a folder in their order."""
    paths = sorted(folder.glob("[0-9][0-9][0-9]_*.sql"))
    return [Migration(path.stem, path.read_text(encoding="utf-8")) for path in paths]


def states(files: Sequence[Migration], applied: Mapping[str, Row]) -> list[State]:
    """Compare the files with what was applied, `applied` being (name, sha256, when) by name."""
    found = []
    for one in files:
        if one.name not in applied:
            found.append(State(one.name, "pending"))
            continue
        _, checksum, when = applied[one.name]
        status = "applied" if checksum == one.sha256 else "changed"
        found.append(State(one.name, status, when.isoformat()))
    known = {one.name for one in files}
    others = [row for name, row in applied.items() if name not in known]
    return [*found, *(State(name, "unknown", when.isoformat()) for name, _, when in others)]


def check(found: Sequence[State]) -> None:
    """MigrationFault when a file was changed after it was applied."""
    for one in found:
        if one.status == "changed":
            raise MigrationFault(
                f"{one.name}.sql was changed after it was applied",
                hint="put the file back as it was, and make the change in a new one",
            )


def look(database: Database, files: Sequence[Migration]) -> list[State]:
    """Give the state of every migration; writes nothing."""
    with database.transaction() as step:
        return states(files, _applied(step))


def _applied(step: Transaction) -> dict[str, Row]:
    if not step.named("migrations_there")[0][0]:
        return {}
    return {row[0]: row for row in step.named("migrations_applied")}


def apply(database: Database, files: Sequence[Migration]) -> Iterator[dict[str, Any]]:
    """Apply what is pending, each in a transaction of its own; yield what was done, as done.

    After one that fails those that do not need it are applied; then the first failure is raised.
    """
    with database.transaction() as step:
        check(states(files, _applied(step)))
        _check_roles(step)
        there = {*_applied(step)}
    faults: dict[str, ImagenError] = {}
    skipped: list[str] = []
    for number, one in enumerate(files):
        needs = NEEDS.get(one.name, [earlier.name for earlier in files[:number]])
        if one.name not in there and any(name in faults or name in skipped for name in needs):
            skipped.append(one.name)
            yield {"migration": one.name, "status": "skipped"}
            continue
        begun = time.monotonic()
        try:
            is_new = _apply_one(database, files, one)
        except (Refused, DatabaseFault) as fault:
            if isinstance(fault, (DatabaseBusy, MigrationFault)):
                raise
            faults[one.name] = fault
            yield {"migration": one.name, "status": "failed", "error": fault.message}
            continue
        if is_new:
            yield _line(one, begun)
    if faults:
        raise _summary(database, faults, skipped)


def _summary(
    database: Database, faults: Mapping[str, ImagenError], skipped: Sequence[str]
) -> ImagenError:
    """Return the first failure, with what else failed and what was not tried for it."""
    first = next(iter(faults.values()))
    texts = [f"{name}: {fault.message}" for name, fault in faults.items()]
    texts += [f"not tried, as it needs one that failed: {', '.join(skipped)}"] if skipped else []
    if any(fault.code == "not_permitted" for fault in faults.values()):
        with database.transaction() as step:
            lacks = [text for (text,) in step.named("missing_rights")]
        if lacks:
            first.hint = f"the role lacks the right to {'; to '.join(lacks)}"
    first.message = "; ".join(texts)
    return first


def columns_of(sql: str) -> dict[str, dict[str, str]]:
    """Return the columns of the tables that a migration makes, each with its type."""
    return {table: dict(_COLUMN.findall(body)) for table, body in _TABLE.findall(sql)}


def added_columns(sql: str) -> dict[str, dict[str, str]]:
    """Return the columns that a migration adds to tables where they lack them, by type."""
    added: dict[str, dict[str, str]] = {}
    for table, name, kind in _ADDED.findall(sql):
        added.setdefault(table, {})[name] = kind
    return added


def _check_columns(step: Transaction, one: Migration) -> None:
    """Refused where a table was there before with other columns: it would fail later, or lose."""
    added = added_columns(one.sql)
    for table, columns in [*columns_of(one.sql).items(), *added.items()]:
        there = {name: (kind, sames) for name, kind, sames in _columns_there(step, table, columns)}
        if not there:
            continue
        lacks = (
            [] if columns is added.get(table) else [name for name in columns if name not in there]
        )
        other = [
            f"{name} ({there[name][0]})" for name in columns if name in there and not there[name][1]
        ]
        wrong = [f"no column {', '.join(lacks)}"] if lacks else []
        wrong += [f"another type of {', '.join(other)}"] if other else []
        if wrong:
            raise Refused(
                f"a table {table} was there before, with {' and '.join(wrong)}",
                code="not_ours",
                hint=f"rename it, or give it the columns of sql/{one.name}.sql, and run again",
            )


def _columns_there(step: Transaction, table: str, columns: Mapping[str, str]) -> list[Row]:
    return step.named("columns_there", [*columns], [*columns.values()], table)


def _apply_one(database: Database, files: Sequence[Migration], one: Migration) -> bool:
    """Apply one unless another process was faster; it is looked at again under the lock."""
    with database.transaction(STATEMENT_S, TURN_S) as step:
        step.named("migrations_lock")
        step.rows("select set_config('lock_timeout', %s, true)", f"{LOCK_S * 1000}")
        step.named("migrations_table")
        found = states(files, _applied(step))
        check(found)
        if State(one.name, "pending") not in found:
            return False
        step.rows("select set_config('standard_conforming_strings', 'on', true)")
        _check_columns(step, one)
        step.rows(one.sql)
        step.named("migrations_record", one.name, one.sha256)
        return True


def bootstrap(database: Database) -> Iterator[dict[str, Any]]:
    """Make the stand-ins of a Supabase project's roles and schemas; Refused where they are real."""
    begun = time.monotonic()
    one = Migration(BOOTSTRAP, (SQL / "bootstrap.sql").read_text(encoding="utf-8"))
    with database.transaction(STATEMENT_S, TURN_S) as step:
        step.named("migrations_lock")
        check_bootstrap(step)
        step.rows(one.sql)
    yield _line(one, begun)


def check_bootstrap(step: Transaction) -> None:
    """Refused where a bootstrap would touch what it did not make, or may not be done."""
    foreign = [name for (name,) in step.named("foreign_schemas")]
    if foreign:
        raise Refused(
            f"there already is a schema {' and '.join(foreign)}, not made by --bootstrap",
            code="not_ours",
            hint="a Supabase project needs no --bootstrap",
        )
    who, is_superuser, version = step.named("whoami")[0]
    if not is_superuser:
        raise Refused(f"--bootstrap makes roles: {who} is no superuser", code="not_permitted")
    if version < 150000:
        raise Refused("--bootstrap needs PostgreSQL 15 or newer", code="not_permitted")


def _check_roles(step: Transaction) -> None:
    missing = [name for (name,) in step.named("missing_roles")]
    if missing:
        raise Refused(
            f"the database has no role {', '.join(missing)}",
            code="no_roles",
            hint="on a plain PostgreSQL --bootstrap makes what a Supabase project has",
        )


def _line(one: Migration, begun: float) -> dict[str, Any]:
    took = round((time.monotonic() - begun) * 1000)
    return {"migration": one.name, "status": "applied", "sha256": one.sha256, "ms": took}
