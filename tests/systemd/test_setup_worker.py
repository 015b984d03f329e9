"""What docs/guide/worker.md shows is tried: the role of its own, and a job by SQL."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

import docs_sync

PAGE = (docs_sync.TOP / "docs/guide/worker.md").read_text()
OWNER = "00000000-0000-0000-0000-00000000000a"


def statements(having: str) -> list[str]:
    """Give the statements of the one SQL block of the page that has this text."""
    found = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (one,) = [text for text in found if having in text]
    return [part.strip() for part in one.split(";") if part.strip()]


@pytest.fixture
def role(cluster) -> Iterator[str]:
    """Give a name for the role: roles belong to the whole server."""
    name = f"imagen_{secrets.token_hex(4)}"
    yield name
    with cluster.cursor() as cursor:
        cursor.execute(f"drop role if exists {name}")


@pytest.fixture
def database_of(role, database, monkeypatch):
    """Do as the role that migrated what the page says; the tools then come as the worker's role."""

    def prepare(*, policy: bool = True) -> Any:
        with database.cursor("migrator") as cursor:
            for statement in statements("create role imagen"):
                if policy or not statement.startswith("create policy"):
                    cursor.execute(re.sub(r"\b(role|to) imagen\b", rf"\1 {role}", statement))
            cursor.execute(f"alter role {role} password %s", [database.cluster.password])
        monkeypatch.setenv("IMAGEN_DATABASE_URL", database.dsn(role))
        return database

    return prepare


def test_a_role_of_its_own_makes_the_job_of_the_page(database_of, tool, configure):
    configure("default_backend: mock\n")
    insert, look = statements("insert into imagen.jobs")
    with database_of().cursor("migrator") as cursor:
        cursor.execute(insert)
        assert tool("listen", "--drain").status == 0
        cursor.execute(look)
        assert cursor.fetchone()[:3] == ("done", 1, None)
    (queued,) = tool("enqueue", "--owner", OWNER, stdin=[{"prompt": "a cat"}]).records
    (job,) = tool("jobs").records
    assert job["prompt"] == queued["prompt"] == "a cat"


def test_without_the_policy_it_sees_no_job(database_of, tool, configure):
    configure("default_backend: mock\n")
    with database_of(policy=False).cursor("migrator") as cursor:
        cursor.execute(statements("insert into imagen.jobs")[0])
        assert tool("listen", "--drain").status == 0
        cursor.execute("select status from imagen.jobs")
        assert cursor.fetchone() == ("pending",)


def test_it_sees_the_queue_and_nothing_else(database_of, role):
    database = database_of()
    with database.cursor(role) as cursor:
        cursor.execute("select count(*) from imagen.jobs")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("select from imagen.images")
