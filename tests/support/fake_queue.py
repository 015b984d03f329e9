"""A queue in memory that keeps to QueueLike (tests/queue/test_jobs.py holds both to one suite)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imagen.queue.jobs import LEASE_S, MOST_CLAIMS, POISONOUS, Claimed, Stored


@dataclass
class FakeJob:
    """A row of imagen.jobs; times are seconds."""

    id: str
    order: int
    owner_user_id: str
    prompt: str
    created: float
    run_after: float
    status: str = "pending"
    priority: int = 0
    backend: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0
    max_attempts: int = 5
    claims: int = 0
    fence: int = 0
    worker: str | None = None
    lease: float | None = None
    request: dict[str, Any] | None = None
    intended: float | None = None
    released: float | None = None
    image_id: str | None = None
    error: str | None = None
    error_detail: Mapping[str, Any] | None = None
    record: Mapping[str, Any] | None = None


class FakeQueue:
    """Jobs in memory. `faults` are raised by the next calls, `skip` moves the clock on."""

    def __init__(self) -> None:
        self.jobs: dict[str, FakeJob] = {}
        self.faults: list[Exception] = []
        self.calls: list[str] = []
        self.names: set[str] = set()
        self._skipped = 0.0

    def add(self, prompt: str = "a cat", **columns: Any) -> str:
        """Insert a job; give its id."""
        name = str(columns.pop("id", None) or uuid.uuid4())
        owner = columns.pop("owner_user_id", str(uuid.UUID(int=10)))
        job = FakeJob(name, len(self.jobs), owner, prompt, self._now(), self._now(), **columns)
        self.jobs[name] = job
        return name

    def skip(self, seconds: float) -> None:
        """Let time pass."""
        self._skipped += seconds

    def cancel(self, job_id: str) -> bool:
        """Cancel as imagen.cancel_job does."""
        job = self.jobs[job_id]
        if job.status not in ("pending", "running"):
            return False
        job.status, job.lease = "cancelled", None
        return True

    def _now(self) -> float:
        return time.monotonic() + self._skipped

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.faults:
            raise self.faults.pop(0)

    def _held(self, job_id: str, fence: int) -> FakeJob | None:
        job = self.jobs.get(job_id)
        return job if job and (job.status, job.fence) == ("running", fence) else None

    def _claimable(self, backends: Sequence[str] | None, default: str) -> list[FakeJob]:
        return [
            job
            for job in list(self.jobs.values())
            if job.status == "pending"
            and (backends is None or (job.backend or default) in backends)
        ]

    def claim(
        self, worker: str, backends: Sequence[str] | None, default_backend: str
    ) -> Claimed | None:
        self._called("claim")
        due = [
            one
            for one in self._claimable(backends, default_backend)
            if one.run_after <= self._now()
        ]
        if not due:
            return None
        job = min(due, key=lambda one: (-one.priority, one.run_after, one.order))
        job.status, job.worker, job.lease = "running", worker, self._now() + LEASE_S
        job.claims += 1
        job.fence += 1
        return Claimed(
            *(job.id, job.fence, job.attempts, job.max_attempts, job.claims),
            *(job.owner_user_id, job.prompt, job.backend, dict(job.params), job.request),
            *(None if at is None else self._now() - at for at in (job.intended, job.released)),
        )

    def intend(self, job_id: str, fence: int, request: Mapping[str, Any]) -> bool:
        self._called("intend")
        job = self._held(job_id, fence)
        if job and job.request is None:
            job.request, job.intended = dict(request), self._now()
        return job is not None

    def renew(self, worker: str, held: Mapping[str, int]) -> set[str]:
        self._called("renew")
        ours = [self._held(name, fence) for name, fence in held.items()]
        kept = [job for job in ours if job and job.worker == worker]
        for job in kept:
            job.lease = self._now() + LEASE_S
        return {job.id for job in kept}

    def cancelled(self, held: Mapping[str, int]) -> set[str]:
        self._called("cancelled")
        return {
            name
            for name, fence in held.items()
            if (job := self.jobs.get(name)) and (job.status, job.fence) == ("cancelled", fence)
        }

    def _leave(self, job_id: str, fence: int, status: str, after_s: float = 0) -> FakeJob | None:
        job = self._held(job_id, fence)
        if job:
            job.status, job.lease = status, None
            job.attempts += 1
            job.claims = 0
            if status == "pending":
                job.released = None
            if after_s > 0:
                job.run_after = self._now() + after_s
        return job

    def _is(self, job_id: str, fence: int, *statuses: str) -> bool:
        job = self.jobs.get(job_id)
        return job is not None and job.fence == fence and job.status in statuses

    def done(self, job_id: str, fence: int, image_id: str | None, record: Stored = None) -> bool:
        self._called("done")
        if job := self._leave(job_id, fence, "done"):
            job.image_id, job.error, job.error_detail = image_id, None, None
            job.record = record
        return self._is(job_id, fence, "done")

    def done_and_next(
        self, job_id: str, fence: int, image_id: str | None, record: Stored, *who: Any
    ) -> tuple[bool, Claimed | None]:
        self.calls.append("done_and_next")
        return self.done(job_id, fence, image_id, record), self.claim(*who)

    def failed(
        self, job_id: str, fence: int, error: str, detail: Stored, record: Stored = None
    ) -> bool:
        self._called("failed")
        if job := self._leave(job_id, fence, "failed"):
            job.error, job.error_detail, job.record = error, detail, record
        return self._is(job_id, fence, "failed")

    def retry(
        self,
        job_id: str,
        fence: int,
        after_s: float,
        error: str,
        detail: Mapping[str, Any] | None,
        under_way: bool = False,
    ) -> bool:
        self._called("retry")
        if job := self._leave(job_id, fence, "pending", after_s):
            job.error, job.error_detail = error, detail
            if under_way:
                self._stay_under_way(job)
        return self._is(job_id, fence, "pending")

    def put_back(
        self,
        job_id: str,
        fence: int,
        after_s: float = 0,
        answered: bool = False,
        error: str | None = None,
        detail: Mapping[str, Any] | None = None,
        under_way: bool = False,
    ) -> bool:
        self._called("put_back")
        job = self._held(job_id, fence)
        if job:
            claims = job.claims
            self._leave(job_id, fence, "pending", after_s)
            job.attempts -= 1
            if not answered:
                job.claims = claims
                self._release(job)
                _give_up_if_poisonous(job)
            elif error:
                job.error, job.error_detail = error, detail
            if under_way:
                self._stay_under_way(job)
        return self._is(job_id, fence, "pending", *([] if answered else ["failed"]))

    def rescue(self, grace_s: float = 0) -> list[str]:
        self._called("rescue")
        end = self._now() - grace_s
        return self._freed(lambda job: job.lease is not None and job.lease < end)

    def take_back(self, worker: str) -> list[str]:
        self._called("take_back")
        return self._freed(lambda job: job.worker == worker)

    def _freed(self, meant: Any) -> list[str]:
        freed = [job for job in list(self.jobs.values()) if job.status == "running" and meant(job)]
        for job in freed:
            job.status, job.lease = "pending", None
            self._release(job)
            _give_up_if_poisonous(job)
        return [job.id for job in freed]

    def _release(self, job: FakeJob) -> None:
        job.released = None if job.intended is None else self._now()

    def _stay_under_way(self, job: FakeJob) -> None:
        job.claims = 1
        self._release(job)

    def name_lock(self, worker: str) -> bool:
        self._called("name_lock")
        return worker not in self.names

    def waiting(
        self, backends: Sequence[str] | None = None, default_backend: str = ""
    ) -> float | None:
        self._called("waiting")
        found = self._claimable(backends, default_backend)
        return max(0.0, min(job.run_after for job in found) - self._now()) if found else None

    def counts(self) -> dict[str, int]:
        self._called("counts")
        pending = [job for job in list(self.jobs.values()) if job.status == "pending"]
        running = [job for job in list(self.jobs.values()) if job.status == "running"]
        return {
            "pending": len(pending),
            "due": sum(job.run_after <= self._now() for job in pending),
            "running": len(running),
            "stuck": sum((job.lease or 0) < self._now() for job in running),
        }


def _give_up_if_poisonous(job: FakeJob) -> None:
    if job.claims >= MOST_CLAIMS:
        job.status, job.error, job.error_detail = "failed", POISONOUS["message"], POISONOUS
