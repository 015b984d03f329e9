"""A request as a row of imagen.jobs, and such a row as a record again. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import IdTaken
from ..records import record
from ..records.record import Record
from ..records.request import Request, rounded

TOOL = "imagen-enqueue"
PARAMS = (
    *("negative_prompt", "style", "width", "height", "seed", "steps", "cfg"),
    *("sampler", "scheduler", "options"),
)
Row = dict[str, Any]


def row_of(request: Request, job_id: str, owner: str, priority: int, is_one_of_many: bool) -> Row:
    """Give a request's row. A seed that nobody said is left to the worker, but for `--count`."""
    params = {name: request[name] for name in PARAMS if name in request}
    if "seed" in request.drawn and not is_one_of_many:
        del params["seed"]
    return {
        "id": job_id,
        "owner_user_id": owner,
        "prompt": request["prompt"],
        "backend": request.get("backend"),
        "params": params,
        "priority": priority,
    }


def is_tried_again(error: Any) -> bool:
    """Whether a line's error is that it could not be queued before, and might be now."""
    ours = isinstance(error, dict) and error.get("tool") == TOOL
    return ours and error.get("retry") in ("safe", "after")


def line_of(request: Request, row: Row) -> Record:
    """Give the line that says what was queued: the request, and `job`."""
    line = {name: value for name, value in request.items() if name not in ("job", "seed")}
    seed = {"seed": row["params"]["seed"]} if "seed" in row["params"] else {}
    return {**line, **seed, "job": {"id": row["id"]}}


def check_same(row: Row, there: Mapping[str, Any], request: Request) -> None:
    """IdTaken when the job that is there already is not the one that is to be queued."""
    drawn = {"seed"} & request.drawn
    if _asked(row, drawn) == _asked(there, drawn):
        return
    seed, exact = (one["params"].get("seed") for one in (row, there))
    if record.is_rounded(seed, exact) and _asked(row, {"seed"}) == _asked(there, {"seed"}):
        raise rounded(seed, exact)
    raise IdTaken("this id belongs to another job", hint="give another id, or none for a fresh one")


def _asked(row: Mapping[str, Any], but: set[str]) -> Row:
    params = {name: value for name, value in row["params"].items() if name not in but}
    kept = {name: row[name] for name in ("owner_user_id", "prompt", "backend")}
    return {**kept, "params": params}


def record_of(line: Record, row: Mapping[str, Any]) -> Record:
    """Give the record of a job that is over: the line that asked, and what became of it.

    Its `file` is a path where the worker is. The line's own id stays.
    """
    fields = {**(row.get("request") or {}), **(row.get("record") or {})}
    fields = {name: value for name, value in fields.items() if name != "id"}
    job_line = {**line, **fields, "job": {"id": row["id"], "attempt": row.get("attempts", 0)}}
    job_line["render_id"] = row["id"]
    if row.get("image_id"):
        cloud = job_line.get("cloud")
        place = cloud if isinstance(cloud, dict) else {}
        job_line["cloud"] = {**place, "image_id": row["image_id"]}
    if row["status"] != "done":
        job_line["error"] = error_of(row)
    return job_line


def error_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give the error object of a job that failed, was cancelled, or is gone."""
    detail = row.get("error_detail")
    if row["status"] == "failed" and isinstance(detail, dict):
        needed = [detail.get(name) for name in ("tool", "code", "message", "billed", "retry")]
        if all(isinstance(one, str) and one for one in needed):
            return detail
    message = row.get("error") if row["status"] == "failed" else None
    return {
        "tool": TOOL,
        "code": f"job_{row['status']}",
        "message": message or _SAID[row["status"]],
        "billed": "unknown",
        "retry": "never",
    }


_SAID = {
    "failed": "the job failed",
    "cancelled": "the job was cancelled",
    "gone": "somebody deleted the job",
}
