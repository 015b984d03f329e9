"""One render, step by step: claim, plan, reserve, submit, collect, write, hand out.

What a line asks for was judged before, in request.py; submit.py pays, store.py writes. Nothing here
prints or reads the environment: what people should see goes through `Around`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from .. import backends, signals
from ..backends import Ask, Backend, Collected, Plan, Wait
from ..config.loader import Config
from ..errors import (
    AnswerLost,
    GivenUp,
    ImagenError,
    Interrupted,
    NotFaithful,
    PaidFileGone,
    Refused,
    RenderLost,
    Stopped,
    TimedOut,
)
from ..ledger import Entry, Ledger, LedgerBusy, LedgerFault
from ..ledger.journal import Asker
from ..records import record
from ..records import styles as prompt_styles
from ..records.record import Record
from ..records.request import GIVEN, TOOL, Request, Told, check_names
from . import budget, result, settling
from .attach import EarlierRuns, StillRunning
from .result import Job
from .submitter import Submitter, known, plan_submit
from .writer import Store, name_files

_MOST_OF_ID = 190  # the images of one submit are id, id.2, id.3, …, and still ids
_LOOK_S = 3.0  # that the requests of a render may take, however short --wait is
_CANCEL_S = 1.2  # that a cancel may take: somebody waits for the end
_MARGIN_S = 0.1  # before its end a wait counts as over: clocks are read one after the other


class Around(NamedTuple):
    """What a renderer needs of the world around it.

    `state` is the folder of backends that remember; `caller` tells who asks; `before_submit` may
    raise to stop before money is spent; `tell` gets seconds and a text for people, `shows` says
    whether anybody sees that; `note` gets a text that stays; `image_out` takes the bytes instead of
    a file (`--output -`). `delivered_by` is the run of the program that writes our records to the
    caller; `watch` journals that a render under way was abandoned, `is_abandoned` tells whether our
    run is.
    """

    state: Path
    caller: Callable[[], str] = lambda: "unknown"
    before_submit: Callable[[], None] = lambda: None
    tell: Callable[[float, str], None] = lambda elapsed, text: None
    shows: bool = False
    note: Callable[[str], None] = lambda text: None
    image_out: Callable[[bytes], None] | None = None
    delivered_by: str | None = None
    watch: Callable[[str], AbstractContextManager[None]] = lambda render_id: nullcontext()
    is_abandoned: Callable[[], bool] = lambda: False


class Limit(NamedTuple):
    """How long a render is waited for, in times of time.monotonic(): until when, from submit on.

    Its requests may go on until `look_until`, however short the wait is. `times_out` says that it
    is the time-out that ends it, of so many `seconds`, and not --wait.
    """

    until: float
    look_until: float
    times_out: bool
    seconds: float

    def is_over(self, margin_s: float) -> bool:
        """Whether it is too late for another request."""
        return time.monotonic() + margin_s >= max(self.until, self.look_until)


class Renderer:
    """Renders requests: the configuration, the ledger, and the backends opened so far."""

    def __init__(self, config: Config, ledger: Ledger, told: Told, around: Around) -> None:
        """Take what is shared by all renders of a run."""
        self._config = config
        self._ledger = ledger
        self._journal = ledger.journal
        self._told = told
        self._around = around
        self._caps = budget.Caps.of(config.values, config.path)
        self._submitter = Submitter(ledger, self._caps, around.before_submit, around.note)
        self._store = Store(ledger, told, around.image_out)
        self._backends: dict[str, Backend] = {}
        self._seen: set[str] = set()
        self._earlier = EarlierRuns(ledger, self._seen, told.wait_s, around.note, around.tell)

    def dry(self, asked: Record) -> Record:
        """Give what would be sent for one request; nothing is."""
        job = self._planned(asked)
        plan = known(job.plan)
        return {
            "id": asked["id"],
            "backend": asked["backend"],
            "payload": plan.payload,
            "fidelity": plan.fidelity,
            "cost_usd": plan.cost_usd,
        }

    def render(self, asked: Record) -> Iterator[Record]:
        """Make one request's images; yields their records, or a pending one if it stops waiting.

        What the journal knows of it is gone on with; only what it does not know is begun.
        """
        request = asked if isinstance(asked, Request) else Request(asked)
        with ExitStack() as stack:
            self._give_up(request)
            self._earlier.waited_s = 0.0
            try:
                entry = self._attached(request, stack) or self._known(request, stack)
            except StillRunning as other:
                yield other.record
                return
            if entry:
                yield from self._continued(entry, request)
            elif "error" in request and result.part_of(request, str(request.get("request"))):
                raise Refused(
                    f"{request['id']} is an image of the submit of {request['request']},"
                    " which this ledger does not know",
                    hint="run it where that was submitted",
                )
            else:
                yield from self._made(self._planned(request))

    def collect(self, line: Record) -> Iterator[Record]:
        """Collect what a pending line names; yields its records, or the line if not done."""
        pending = result.checked_pending(line.get("pending"))
        if "seed" not in line or "id" not in line:
            raise Refused("a pending line needs its id and its seed")
        with ExitStack() as stack:
            self._earlier.waited_s = 0.0
            try:
                entry = self._claimed(self._render_id(record.checked(line)), stack, line)
            except StillRunning as other:
                yield other.record
                return
            if entry:
                yield from self._continued(entry, line)
            else:
                yield from self._made(self._adopted(line, pending))

    def resume(self, render_id: str) -> Iterator[Record]:
        """Go on with a render that the journal has open; nothing when another process is at it."""
        with ExitStack() as stack:
            self._earlier.waited_s = 0.0
            entry = self._claimed(render_id, stack)
            if entry and not self._earlier.is_in_hands(entry):
                yield from self._continued(entry, entry.request)

    # -- what the journal knows ------------------------------------------------------------------

    def _claimed(
        self, render_id: str, stack: ExitStack, line: Record | None = None
    ) -> Entry | None:
        """Hold the lock of a render until the stack ends; gives its entry in the journal.

        Another run that has it is waited for only with the line that asks for it.
        """
        if line is not None:
            self._earlier.claim(render_id, line, stack)
        elif not stack.enter_context(self._ledger.lock(render_id, wait=False)):
            return None
        self._seen.add(render_id)
        entry = self._journal.entry(render_id)
        if entry and entry.abandoned_at is not None:
            self._ledger.deliveries.take_up(render_id)
        return entry

    def _known(self, asked: Request, stack: ExitStack) -> Entry | None:
        entry = self._claimed(self._render_id(asked), stack, asked)
        if entry:
            asked.check_same(entry.asked, entry.request)
        return entry

    def _attached(self, asked: Request, stack: ExitStack) -> Entry | None:
        """Find this very request where an earlier run began it and could not hand it out."""
        if "id" not in asked.drawn or self._told.new:
            return None
        return self._earlier.take_up(asked, self._asker(asked), stack)

    def _give_up(self, asked: Request) -> None:
        """With --again a render that could not be told is over: it no longer counts on each day."""
        old = asked.get("request")
        if not self._told.again or "id" not in asked.drawn or not isinstance(old, str):
            return
        render_id = self._ledger.render_id(old)
        with self._ledger.lock(render_id, wait=False) as ours:
            entry = self._journal.entry(render_id) if ours else None
            if entry and entry.state == "open" and render_id not in self._seen:
                error = GivenUp().as_record(TOOL)
                self._journal.failed(render_id, entry.number, error, entry.records)
                self._around.note(f"{old}: given up for a new one; it counts as spent")

    def _asker(self, asked: Request) -> Asker:
        return Asker("id" not in asked.drawn, asked.key, self._caller(asked))

    def _caller(self, asked: Record) -> str:
        return str(asked.get("caller") or self._around.caller())

    def _render_id(self, asked: Record) -> str:
        said = str(asked.get("render_id") or "")  # of a line that another ledger began
        return record.canonical_uuid(said) or self._ledger.render_id(asked["id"])

    def _continued(self, entry: Entry, line: Record) -> Iterator[Record]:
        """Go on with a render; for the line of a later image of it, without those before."""
        part = result.part_of(line, entry.id)
        if part is None:
            yield from self._resume_or_repeat(entry, line)
            return
        there = {one["id"] for one in [*self._store.find_written(entry), *entry.records]}
        there = there - {line["id"]} | {entry.id, *(f"{entry.id}.{n}" for n in range(2, part))}
        its_own = {"id": line["id"], "request": entry.id}
        try:
            for one in self._resume_or_repeat(entry, line):
                if "pending" in one:
                    yield {**one, **its_own}
                elif one["id"] not in there:
                    yield one
        except ImagenError as fault:
            if fault.record and fault.record.get("id") == entry.id:
                fault.record |= its_own
            raise

    def _resume_or_repeat(self, entry: Entry, line: Record) -> Iterator[Record]:
        """Hand out again what is done; go on with what is open; say again what failed and cost."""
        brought = result.brought(line)
        made = [{**one, **brought} for one in entry.records]
        if entry.state == "done" and self._store.is_there(made):
            self._store.tidy(entry.place, entry.render_id, entry.request)
            yield from self._delivered(entry.render_id, made, entry.delivered)
            return
        is_final = entry.error and entry.state == "failed" and entry.error["billed"] != "no"
        if entry.error and is_final and not entry.may_be_found:
            yield from self._store.those_there(made)
            raise ImagenError.of_record(entry.error, {**entry.failed, **brought})
        job = self._job_of(entry, line)
        if entry.state == "open":
            job.made = [{**one, **brought} for one in self._store.find_written(entry)]
        elif entry.state == "done":
            job.made = self._store.those_there(made)
        with _naming(job):
            written = self._store.written(job, entry, made)
        if written is not None:
            yield from self._handed_out(job, written, entry.place)
            return
        changed = {one["id"]: one["file"] for one in self._store.changed(made)}
        for one in self._made(job, entry):
            if (old := changed.get(one["id"])) and one.get("file", old) != old:
                says = f"{old} has other bytes than were rendered and is left alone"
                self._around.note(f"{one['id']}: {says}; the image is in {one['file']}")
            yield one

    # -- jobs ------------------------------------------------------------------------------------

    def _backend(self, name: str) -> Backend:
        if name not in self._backends:
            self._backends[name] = backends.open_backend(name, self._config, self._around.state)
        return self._backends[name]

    def _job(self, asked: Record, asker: Asker, sent: prompt_styles.Prompts | None = None) -> Job:
        sound = result.sound(asked)
        prompts = sent or prompt_styles.styled(sound, self._config.styles)
        backend = self._backend(sound["backend"])
        job = Job(sound, dict(sound), backend, self._render_id(sound), prompts, asker)
        job.record["caller"] = asker.caller
        return job

    def _planned(self, asked: Record) -> Job:
        """Plan: what would be sent, with what it approximates and drops."""
        request = Request({**asked}, getattr(asked, "drawn", ()))
        failed = request.pop("error", None)
        asker = self._asker(request)
        request.setdefault("backend", self._config["default_backend"])
        job = self._job(request, asker)
        with _naming(job):
            taken_over = settling.is_taken_over(asked)
            job.attempts = result.attempts(asked) if failed else int(taken_over)
            job.may_have_arrived = job.attempts > 0
            if job.may_have_arrived and (paid := backends.as_paid(job.backend)):
                job.sending = settling.of_line(asked, paid.create_s)
                self._drop_default_steps(job)
            plan_submit(job, max(job.attempts, 1))
            self._check(job)
        return job

    def _drop_default_steps(self, job: Job) -> None:
        """Plan what was sent: a record also names the steps that the model takes by itself."""
        fewer = {name: value for name, value in job.asked.items() if name != "steps"}
        plans = [job.backend.plan(Ask(one, *job.prompts, "")) for one in (job.asked, fewer)]
        if plans[0].resolved == plans[1].resolved:
            job.asked = fewer

    def _check(self, job: Job) -> None:
        """Refuse before anything is reserved or sent."""
        plan = known(job.plan)
        if self._told.strict and plan.fidelity:
            raise NotFaithful(f"not met as asked: {result.changes(plan.fidelity)}")
        if plan.images != 1 and len(job.asked["id"]) > _MOST_OF_ID:
            raise Refused(f"an id for several images has at most {_MOST_OF_ID} characters")
        if self._told.output and plan.images > 1:
            raise Refused(f"--output takes one image; this request makes {plan.images}")
        if job.backend.paid and self._caps.any and self._ledger.path is None:
            raise Refused("a budget is kept in the ledger", hint="run without --no-ledger")

    def _adopted(self, line: Record, pending: Record) -> Job:
        """Take a pending line of another ledger into our journal."""
        kept = (*GIVEN, "attempts", "started_at", "render_id", "fidelity", "model", "workflow")
        asked = record.checked({**record.asked(line, kept), "backend": pending["backend"]})
        check_names(asked)
        job = self._job(asked, self._asker(Request(asked)), result.prompts_sent(line))
        job.handle, job.attempts = pending["handle"], max(result.attempts(line), 1)
        job.record |= {"render_id": job.render_id, "pending": pending}
        with _naming(job):
            try:
                plan_submit(job, job.attempts)
            except Refused:  # the workflow has changed: what was submitted can still be fetched
                job.plan = None
            name_files(job.record)
            self._submitter.adopt(job)
        return job

    def _job_of(self, entry: Entry, line: Record) -> Job:
        """Take up a render as the journal has it."""
        asked = {**entry.request, **result.brought(line)}
        if entry.state == "open" and "pending" in line:
            asked["pending"] = line["pending"]  # so that a fault leaves it as it was
        backend, sent = self._backend(entry.backend), result.prompts_sent(asked)
        asker = Asker(True, entry.asked, entry.caller)
        job = Job(asked, dict(asked), backend, entry.render_id, sent, asker)
        job.attempts, job.taken_up = entry.number, True
        if entry.handle is None and (paid := backends.as_paid(backend)):
            job.sending = settling.of_entry(entry, paid.create_s)
            if entry.attempt is None and entry.state == "open":
                self._journal.attempt(entry.render_id, entry.number, job.sending.as_attempt())
        job.plan = Plan(**entry.plan) if entry.plan else None
        over = entry.state == "failed" and not entry.may_be_found
        job.handle = None if over else entry.handle or self._recorded_handle(entry)
        job.is_handle_written = entry.handle is not None
        job.may_have_arrived, job.was_made = not over, entry.state == "done"
        if entry.is_refused:  # so it was no submit, and its number is free
            job.attempts, job.may_have_arrived = entry.number - 1, False
        return job

    def _recorded_handle(self, entry: Entry) -> str | None:
        """Return the handle that only records tell: the journal could not be written."""
        written = self._store.find_written(entry) if entry.state == "open" else []
        return result.submit_of([*entry.records, *written], entry.number)

    # -- the steps, in order ---------------------------------------------------------------------

    def _made(self, job: Job, entry: Entry | None = None) -> Iterator[Record]:
        """Reserve names, submit, collect, write; the names are given back when it is over."""
        with _naming(job):
            try:
                name_files(job.record)
                self._store.reserve(job, entry.place if entry else None)
                with self._around.watch(job.render_id):
                    yield from self._waited(job)
            finally:
                self._store.release(job, entry.place if entry else None)

    def _waited(self, job: Job) -> Iterator[Record]:
        """Submit and finish; INT cancels what is free, TERM hands out what is pending."""
        limit = self._limit(job)
        try:
            if job.handle is not None or self._submitted(job, limit):
                yield from self._finish(job, limit)
            else:
                yield self._unfinished(job, limit)
        except ImagenError as fault:
            raise self._ended(job, fault) from None
        except Stopped as stopped:
            stopped.heeded = True
            if job.finished:
                raise
            handle = job.handle or _chosen_handle(job)
            if handle is not None and (stopped.status == 143 or job.backend.paid):
                with signals.dropped():
                    yield result.pending(job, handle)
                raise
            try:
                became = f"interrupted; {self._cancel(job, handle)}"
            except Stopped as second:
                second.heeded = True
                became = "interrupted twice; the render may go on, it was not cancelled"
            paid = backends.as_paid(job.backend)
            money: dict[str, Any] = {}
            if paid and job.may_have_arrived:  # what became of it the next run can tell
                after_s = self._submitter.wait_s(job, paid)
                money = {"billed": "unknown", "retry": "after", "retry_after_s": after_s}
                money["ends"] = False
            interrupted = Interrupted(became, record=job.record, stopped=stopped, **money)
            with signals.dropped():
                raise self._ended(job, interrupted) from None

    def _limit(self, job: Job) -> Limit:
        options, began = self._told, time.monotonic()
        time_out = job.backend.timeout_s if options.timeout_s is None else options.timeout_s
        wait_s = options.wait_s
        if wait_s is not None:  # of which a part went by while another run was at it
            wait_s = max(wait_s - self._earlier.waited_s, 0.0)
        patience = time_out if wait_s is None else min(wait_s, time_out)
        return Limit(began + patience, began + _LOOK_S, patience == time_out, time_out)

    def _submitted(self, job: Job, limit: Limit) -> bool:
        """Submit; False when no answer came in time to a free one, whose handle we chose."""
        try:
            with self._showing_silence(job):
                until = max(limit.until, limit.look_until)
                job.handle = self._submitter.submit(job, until)
        except AnswerLost:
            handle, margin_s = _chosen_handle(job), job.backend.retry_s + _MARGIN_S
            if job.backend.paid or handle is None or not limit.is_over(margin_s):
                raise
            job.handle = handle
            return False
        return True

    def _unfinished(self, job: Job, limit: Limit) -> Record:
        """Return the pending line of a render that was waited for long enough.

        A free one that times out is cancelled instead: TimedOut.
        """
        if limit.times_out and not job.backend.paid:
            became = self._cancel(job, job.handle)
            raise TimedOut(f"no image after {limit.seconds:g} s; {became}")
        self._written_down(lambda: self._submitter.write_handle(job))
        return result.pending(job, str(job.handle))

    def _cancel(self, job: Job, handle: str | None) -> str:
        """Cancel what is free; gives what became of that, for people."""
        if handle is None or job.backend.paid:
            return "nothing was cancelled"
        try:
            job.backend.cancel(handle, time.monotonic() + _CANCEL_S)
            return "the render was cancelled"
        except ImagenError as fault:
            return f"the render goes on, it could not be cancelled ({fault.message})"

    def _finish(self, job: Job, limit: Limit) -> Iterator[Record]:
        """Collect; what a free backend has lost is submitted once more under a new number."""
        try:
            collected = self._collected(job, limit)
        except RenderLost as fault:
            if job.backend.paid:
                lost = _gone(fault, job.was_made)
                lost.record = self._store.missing_record(job, result.first_missing(job, job.made))
                yield from job.made
                raise lost from None
            if job.plan is None:
                raise
            job.made = []
            job.may_have_arrived, job.taken_up = not fault.finished, False
            collected = self._collected(job, limit) if self._submitted(job, limit) else None
        if collected is None:
            yield self._unfinished(job, limit)
            return
        with signals.held():  # until the records are out: what is made and written is not lost
            made, lacking = self._store.write(job, collected)
            if lacking is None:
                yield from self._handed_out(job, made)
                return
            job.made = made
            yield from made
            raise lacking

    def _handed_out(
        self, job: Job, made: list[Record], left: Mapping[str, Any] | None = None
    ) -> Iterator[Record]:
        """Journal what is done, once its files are on the disk; then that it left us."""
        self._written_down(
            lambda: self._submitter.write_handle(job),
            lambda: self._journal.done(job.render_id, job.attempts, made, job.backend.paid),
        )
        self._store.release(job)
        self._store.tidy(left or {}, job.render_id, job.record)
        yield from self._delivered(job.render_id, made)
        job.finished = True

    def _delivered(
        self, render_id: str, records: list[Record], already: bool = False
    ) -> Iterator[Record]:
        """Yield the records of a render; journal that they left us, or who is to deliver them."""
        run = self._around.delivered_by
        is_abandoned = not already and self._around.is_abandoned()
        if run and not already and not is_abandoned:
            self._written_down(lambda: self._ledger.deliveries.hand_over(render_id, run))
        yield from records
        if not (run or already or self._around.is_abandoned()):
            self._written_down(lambda: self._journal.delivered(render_id))

    def _written_down(self, *writes: Callable[[], None]) -> None:
        """Journal a result; a disk that is full does not keep back what was paid for."""
        try:
            for write in writes:
                write()
        except (LedgerFault, LedgerBusy) as fault:
            self._around.note(f"{fault.message}; the record goes out all the same")

    def _ended(self, job: Job, fault: ImagenError) -> ImagenError:
        """Journal that a submit came to nothing, if that is certain; gives the fault."""
        if job.handle:
            job.record["submit"] = job.handle
        if job.backend.paid and job.handle and fault.billed == "no" and not fault.ends:
            fault.billed = "yes"  # it was accepted: the next run collects what is paid
        if fault.ends and job.attempts and not job.finished:
            error = fault.as_record(TOOL)
            if fault.record and (meta := fault.record.get("backend_meta")):
                error["backend_meta"] = meta
            self._written_down(
                lambda: self._journal.failed(
                    job.render_id, job.attempts, error, job.made, job.handle
                )
            )
        return fault

    def _collected(self, job: Job, limit: Limit) -> Collected | None:
        """Wait for the images; None when the time is over, in the middle of a request too."""
        try:
            with self._showing_silence(job) as tell:
                wait = Wait(limit.until, tell, limit.look_until)
                return job.backend.collect(str(job.handle), wait, job.plan)
        except AnswerLost:
            if not limit.is_over(job.backend.retry_s + _MARGIN_S):
                raise
            return None

    @contextmanager
    def _showing_silence(self, job: Job) -> Iterator[Callable[[str], None]]:
        """Yield what shows people what is waited for; it also shows when a server is silent."""

        def tell(text: str) -> None:
            self._around.tell(time.monotonic() - job.began, text)

        if not self._around.shows:
            yield tell
            return
        from .silence import Silence

        with Silence(tell) as silence:
            yield silence.heard


def _chosen_handle(job: Job) -> str | None:
    """Return the handle that we chose ourselves for the submit, if it was sent."""
    return job.plan.handle if job.plan and job.attempts and "started_at" in job.record else None


def _gone(fault: RenderLost, was_made: bool) -> ImagenError:
    """Say that a paid render is lost: made and gone, or not to be told."""
    if fault.finished or was_made:  # an account that does not know it may be the wrong one
        says = f"it was paid, and its file is gone: {fault.message}"
        return PaidFileGone(says, ends=fault.finished)
    return RenderLost(
        f"{fault.message}; whether it was paid cannot be told", billed="unknown", retry="reconcile"
    )


@contextmanager
def _naming(job: Job) -> Iterator[None]:
    """Let a fault inside carry the request as resolved: the line it becomes can be run again."""
    try:
        yield
    except ImagenError as fault:
        if fault.record is None:
            fault.record = dict(job.record)
        raise
