"""What one machine sent and lost, another one finds: two ledgers, one paid submit."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

ID = "5c1f0d2e-1111-4222-8333-0123456789ab"


def line(attempt, intended_at=None):
    job = {"id": ID, "attempt": attempt}
    if intended_at is not None:
        job["intended_at"] = datetime.fromtimestamp(intended_at, UTC).isoformat()
    request = {"id": ID, "prompt": "a cat", "seed": 7, "date": "2026-05-04", "slug": "a-cat"}
    return [{**request, "backend": "rep", "job": job}]


def machine(paid, name):
    folder = paid.tool.folder / name
    return {"XDG_STATE_HOME": str(folder), "IMAGEN_OUT_DIR": str(folder)}


def test_a_second_machine_attaches_to_what_the_first_one_sent(paid):
    began = time.time()
    first = paid(stdin=line(1), env=machine(paid, "a"))
    second = paid(stdin=line(1, began), env=machine(paid, "b"))
    assert second.status == 0
    assert second.record["submit"] == first.record["submit"]
    assert paid.creates == 1


def test_what_nobody_sent_is_sent_after_the_look(paid):
    made = paid(stdin=line(2, time.time() - 1), env=machine(paid, "b"))
    assert made.status == 0
    assert paid.creates == 1
    assert json.loads(made.out)["job"]["attempt"] == 2
