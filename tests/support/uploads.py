"""What the tests of uploads share: images with their records, and what came to the cloud."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from servers.gateway import JSON, Answer, Request
from servers.supabase import Cloud

DAY = "2026-11-23"


def _refusal(status: int, **body: str) -> Answer:
    return Answer(status, dict(JSON), json.dumps(body).encode())


NOT_SET_UP = [  # what is asked for, and what a project that is not set up answers
    ("PUT /storage/v1/object", _refusal(400, statusCode="404", code="NoSuchBucket")),
    ("PUT /storage/v1/object", _refusal(402, message="the project is over its quota")),
    ("POST /rest/v1/images", _refusal(406, code="PGRST106", message="Invalid schema")),
    ("POST /rest/v1/images", _refusal(400, code="PGRST204", message="no such column")),
    ("POST /rest/v1/images", _refusal(404, code="PGRST205", message="no such table")),
    ("POST /rest/v1/images", _refusal(403, code="42501", message="permission denied")),
    ("POST /rest/v1/images", Answer(301, {"Location": "https://elsewhere"}, b"")),
]


def made(folder: Path, seed: int = 7, slug: str = "a-cat", **more: Any) -> dict[str, Any]:
    """Make an image with its sidecar, as imagen-render leaves them; give its record."""
    data = more.pop("data", f"\x89PNG of {slug} {seed}".encode("latin-1"))
    file = folder / DAY / f"{slug}-{seed}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    record = {
        **{"prompt": "a cat", "id": f"{slug}-{seed}", "backend": "mock", "model": "mock"},
        **{"width": 64, "height": 48, "seed": seed, "render_id": str(uuid.uuid4())},
        **{"date": DAY, "slug": slug, "started_at": f"{DAY}T12:00:00.250Z", "latency_ms": 40},
        **{"cost_usd": 0.003, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)},
        **{"format": "png", "file": str(file), "sidecar": str(file.with_suffix(".json")), **more},
    }
    file.with_suffix(".json").write_text(json.dumps(record))
    return record


def rows(cloud: Cloud, columns: str = "storage_path, sha256") -> list[tuple[Any, ...]]:
    """Give the rows of imagen.images, by path."""
    with cloud.database.cursor() as cursor:
        cursor.execute(f"select {columns} from imagen.images order by storage_path")
        found: list[tuple[Any, ...]] = cursor.fetchall()
    return found


def belongs(cloud: Cloud) -> bool:
    """Whether every object has its row, with its very bytes, and every row its object."""
    found = {
        path: hashlib.sha256(data).hexdigest() for path, data in cloud.storage.objects().items()
    }
    return found == dict(rows(cloud))


def emptied(cloud: Cloud) -> None:
    """Take away what an earlier test left."""
    with cloud.database.cursor() as cursor:
        cursor.execute("set session_replication_role = replica")
        cursor.execute("delete from storage.objects")
        cursor.execute("delete from imagen.images")
        cursor.execute("set session_replication_role = origin")
    cloud.storage.skew_s = 0
    cloud.gateway.forget()


@contextmanager
def before(cloud: Cloud, start: str, act: Any) -> Iterator[None]:
    """Call `act` once, just before the first request that starts so is obeyed."""
    real, acted = cloud.gateway.respond, []

    def respond(request: Request) -> Answer:
        if not acted and f"{request.method} {request.target}".startswith(start):
            acted.append(True)
            act()
        return real(request)

    cloud.gateway.respond = respond
    try:
        yield
    finally:
        cloud.gateway.respond = real
    assert acted
