"""One render, step by step: plan, reserve, submit, collect, verify, write.

What a line asks for was judged before, in request.py. Nothing here prints or reads the environment:
what people should see goes through `tell`.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import backends, files, image, outcome, prompt, record, retry, signals
from .backends import Ask, Backend, Collected, Lost, Plan, Sought, Wait
from .config import Config
from .errors import (
    AnswerLost,
    ImagenError,
    Interrupted,
    NotFaithful,
    Refused,
    RenderLost,
    Stopped,
    TimedOut,
    TooFewImages,
    Unreachable,
    from_os,
)
from .ledger import Ledger
from .outcome import Job
from .record import Record
from .request import GIVEN, Told, check_names

_MOST_OF_ID = 190  # the images of one submit are id, id.2, id.3, …, and still ids


class Renderer:
    """Renders requests: the configuration, the ledger, and the backends opened so far."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        told: Told,
        *,
        state: Path,
        before_submit: Callable[[], None] = lambda: None,
        tell: Callable[[float, str], None] = lambda elapsed, text: None,
        image_out: Callable[[bytes], None] | None = None,
    ) -> None:
        """Take what is shared by all renders of a run.

        `before_submit` may raise to stop before money is spent; `tell` gets seconds and a text for
        people; `image_out` takes the bytes instead of a file (`--output -`).
        """
        self._config = config
        self._ledger = ledger
        self._told = told
        self._state = state
        self._before_submit = before_submit
        self._tell = tell
        self._image_out = image_out
        self._backends: dict[str, Backend] = {}

    def dry(self, asked: Record) -> Record:
        """Give what would be sent for one request; nothing is."""
        job = self._planned(asked)
        plan = job.plan or Plan({}, {}, None)
        return {
            "id": asked["id"],
            "backend": asked["backend"],
            "payload": plan.payload,
            "fidelity": plan.fidelity,
            "cost_usd": plan.cost_usd,
        }

    def render(self, asked: Record) -> Iterator[Record]:
        """Make one request's images; yields their records, or a pending one if it stops waiting."""
        job = self._planned(asked)
        with ExitStack() as stack, _naming(job):
            stack.enter_context(self._ledger.lock(job.render_id))
            self._reserve(job)
            stack.callback(_release, job)
            yield from self._waited(job, lambda: self._submit(job))

    def collect(self, line: Record) -> Iterator[Record]:
        """Collect what a pending line names; yields its records, or the line if not done."""
        pending = outcome.checked_pending(line.get("pending"))
        kept = (*GIVEN, "attempts", "started_at", "render_id", "fidelity", "model", "workflow")
        asked = record.checked({**record.asked(line, kept), "backend": pending["backend"]})
        check_names(asked)
        if "seed" not in asked or "id" not in asked:
            raise Refused("a pending line needs its id and its seed")
        job = self._job(asked, outcome.prompts_sent(line))
        job.handle, job.attempts = pending["handle"], outcome.attempts(line)
        job.record |= {"render_id": job.render_id, "pending": pending}
        try:
            self._plan(job, max(job.attempts, 1))
        except Refused:
            job.plan = None  # the workflow has changed: what was submitted can still be fetched
        with ExitStack() as stack, _naming(job):
            stack.enter_context(self._ledger.lock(job.render_id))
            self._reserve(job)
            stack.callback(_release, job)
            yield from self._waited(job, lambda: job.handle)

    # -- the steps, in order ---------------------------------------------------------------------

    def _job(self, asked: Record, sent: prompt.Prompts | None = None) -> Job:
        asked = outcome.sound(asked)
        name = asked["backend"]
        if name not in self._backends:
            self._backends[name] = backends.open_backend(name, self._config, self._state)
        prompts = sent or prompt.styled(asked, self._config.styles)
        said = str(asked.get("render_id") or "")  # of a line that another ledger began
        render_id = record.canonical_uuid(said) or self._ledger.render_id(asked["id"])
        return Job(asked, dict(asked), self._backends[name], render_id, prompts)

    def _planned(self, asked: Record) -> Job:
        """Plan: what would be sent, with what it approximates and drops."""
        asked = {**asked}
        failed = asked.pop("error", None)
        asked.setdefault("backend", self._config["default_backend"])
        job = self._job(asked)
        with _naming(job):
            job.attempts = outcome.attempts(asked) if failed else 0
            job.may_have_arrived = job.attempts > 0
            self._plan(job, max(job.attempts, 1))
            plan = _known(job.plan)
            if self._told.strict and plan.fidelity:
                raise NotFaithful(f"not met as asked: {outcome.changes(plan.fidelity)}")
            if plan.images > 1 and len(job.asked["id"]) > _MOST_OF_ID:
                raise Refused(
                    f"an id for {plan.images} images has at most {_MOST_OF_ID} characters"
                )
            if self._told.output and plan.images > 1:
                raise Refused(f"--output takes one image; this request makes {plan.images}")
        return job

    def _plan(self, job: Job, number: int) -> None:
        submit_id = str(uuid.uuid5(uuid.UUID(job.render_id), str(number)))
        job.plan = job.backend.plan(Ask(job.asked, *job.prompts, submit_id))
        for stale in ("sent_prompt", "sent_negative_prompt"):
            job.record.pop(stale, None)
        job.record |= {
            "render_id": job.render_id,
            **job.plan.resolved,
            **outcome.told_before(job.asked),
        }
        if job.prompts.prompt != job.asked["prompt"]:
            job.record["sent_prompt"] = job.prompts.prompt
        if job.prompts.negative != job.asked.get("negative_prompt"):
            job.record["sent_negative_prompt"] = job.prompts.negative
        if job.plan.fidelity and "fidelity" not in job.asked:
            job.record["fidelity"] = job.plan.fidelity

    def _reserve(self, job: Job) -> None:
        """Reserve the names of image and sidecar, before anything is sent."""
        job.record.setdefault("date", datetime.now(UTC).date().isoformat())
        job.record.setdefault("slug", files.slug(job.asked["prompt"]))
        if self._image_out is None:
            job.place = self._place(job)

    def _place(self, job: Job, named: bool = True) -> files.Place:
        def take_over(owner: str) -> Any:
            return self._ledger.lock(owner, wait=False)

        told = self._told
        try:
            if told.output and named:
                path = Path(told.output).absolute()
                return files.reserve_exactly(path, job.render_id, told.force, take_over)
            folder = told.out_dir / job.record["date"]
            stem = f"{job.record['slug']}-{job.record['seed']}"
            return files.reserve(folder, stem, job.render_id, take_over)
        except OSError as fault:
            raise from_os(fault, "cannot write the image") from None

    def _waited(self, job: Job, submit: Callable[[], str | None]) -> Iterator[Record]:
        """Submit, collect, verify, write; INT cancels, TERM hands out what is pending."""
        try:
            job.handle = submit()
            yield from self._finish(job)
        except Stopped as stopped:
            if job.finished:
                raise
            chosen = job.plan.handle if job.plan and job.attempts else None
            handle = job.handle or chosen
            if handle is not None and (stopped.status == 143 or job.backend.paid):
                yield outcome.pending(job, handle)
                raise
            became = f"interrupted; {self._cancel(job, handle)}"
            sent = job.backend.paid and job.attempts > 0  # and what became of it nobody knows
            money = {"billed": "unknown", "retry": "reconcile"} if sent else {}
            raise Interrupted(became, record=job.record, stopped=stopped, **money) from None

    def _cancel(self, job: Job, handle: str | None) -> str:
        """Cancel what is free; gives what became of that, for people."""
        if handle is None or job.backend.paid:
            return "nothing was cancelled"
        try:
            job.backend.cancel(handle)
            return "the render was cancelled"
        except ImagenError as fault:
            return f"the render goes on, it could not be cancelled ({fault.message})"

    def _submit(self, job: Job) -> str:
        """Send it; after a fault, look for it before sending it once more."""
        self._before_submit()
        job.began = time.monotonic()
        job.record["started_at"] = (
            datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        )
        return retry.once_more(lambda: self._look_then_send(job), job.backend.retry_s)

    def _look_then_send(self, job: Job) -> str:
        if job.may_have_arrived:
            found = job.backend.find(_known(job.plan), Lost(job.sent_at, lambda handle: False))
            if isinstance(found, str):
                return found
            if found is Sought.UNKNOWN:
                raise AnswerLost(
                    "whether the render arrived cannot be told", retry="reconcile", billed="unknown"
                )
        before = job.record.copy()
        job.sent_at = time.time()
        job.attempts += 1
        self._plan(job, job.attempts)
        job.record["attempts"] = job.attempts
        job.may_have_arrived = True
        try:
            return job.backend.submit(_known(job.plan))
        except AnswerLost as fault:
            fault.billed = "unknown" if job.backend.paid else "no"
            raise
        except Unreachable:  # it never left, so it was no attempt
            job.may_have_arrived = False
            job.attempts -= 1
            job.record = before
            raise

    def _finish(self, job: Job) -> Iterator[Record]:
        """Collect; what the backend has lost is submitted once more under a new number."""
        try:
            collected = self._collected(job)
        except RenderLost as fault:
            if job.plan is None:
                raise
            job.may_have_arrived = not fault.finished
            job.handle = self._submit(job)
            collected = self._collected(job)
        if collected is None:
            yield outcome.pending(job, str(job.handle))
            return
        with signals.held():  # until the records are out: what is made and written is not lost
            yield from self._written(job, collected)
            job.finished = True

    def _collected(self, job: Job) -> Collected | None:
        """Wait until the time-out, or `--wait`; a free render that times out is cancelled."""
        told, began = self._told, time.monotonic()
        limit = job.backend.timeout_s if told.timeout_s is None else told.timeout_s
        patience = limit if told.wait_s is None else min(told.wait_s, limit)
        wait = Wait(began + patience, lambda text: self._tell(time.monotonic() - job.began, text))
        collected = job.backend.collect(str(job.handle), wait, job.plan)
        if collected is None and patience == limit and not job.backend.paid:
            raise TimedOut(f"no image after {limit:g} s; {self._cancel(job, job.handle)}")
        return collected

    def _written(self, job: Job, collected: Collected) -> Iterator[Record]:
        """Verify each image, then write it: sidecar first, so that no image is without one."""
        total = round((time.monotonic() - job.began) * 1000)
        for number, data in enumerate(collected.images, 1):
            made = outcome.made(job, collected, number, total)
            made["render_id"] = job.render_id if number == 1 else self._ledger.render_id(made["id"])
            picture = image.probe(data, outcome.most_pixels(job.plan))
            outcome.compare(made, picture, job.plan)
            made |= {
                "sha256": hashlib.sha256(data).hexdigest(),
                "bytes": len(data),
                "format": picture.format,
            }
            if self._image_out is not None and number == 1:
                self._image_out(data)
                yield made
            else:
                yield self._stored(job, made, data, named=number == 1)
        expected = job.plan.images if job.plan else 1
        if len(collected.images) < expected:
            came = len(collected.images)
            rest = {**job.record, "id": outcome.name(job, came + 1)} if came else job.record
            billed = "yes" if job.backend.paid else "no"
            raise TooFewImages(
                f"the backend returned {came} of {expected} images", record=rest, billed=billed
            )

    def _stored(self, job: Job, made: Record, data: bytes, named: bool) -> Record:
        """Write one image; those that nobody asked for get a dated name, whatever --output says."""
        try:
            while True:
                place = job.place or self._place(job, named)
                try:
                    return files.store(place, made, data)
                except FileExistsError:  # a stranger has taken the name meanwhile: the next one
                    if place.asked_for:
                        raise
                finally:
                    place.release()
                    job.place = None
        except OSError as fault:
            raise from_os(fault, "cannot write the image") from None


@contextmanager
def _naming(job: Job) -> Iterator[None]:
    """Let a fault inside carry the request as resolved: the line it becomes can be run again."""
    try:
        yield
    except ImagenError as fault:
        if fault.record is None:
            fault.record = dict(job.record)
        raise


def _release(job: Job) -> None:
    if job.place:
        job.place.release()


def _known(plan: Plan | None) -> Plan:
    if plan is None:
        raise RenderLost("the render cannot be planned again")
    return plan
