"""The steps of one render, with a backend that does as the test says: paid ones too."""

from __future__ import annotations

import json
import math
import os
import signal
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagen import backends, signals
from imagen.backends import Ask, Collected, Lost, Plan, Refusals, Sought, Wait
from imagen.config.loader import Config
from imagen.errors import (
    AnswerLost,
    BadImage,
    FileFault,
    ImagenError,
    InDoubt,
    Interrupted,
    NotFaithful,
    OutOfCredit,
    ReaderGone,
    Refused,
    Rejected,
    RenderLost,
    ServerFault,
    Stopped,
    TimedOut,
    TooFewImages,
    Unreachable,
)
from imagen.files import store
from imagen.http.responses import REFUSALS
from imagen.images import codec
from imagen.ledger import Ledger
from imagen.records.request import Told
from imagen.render import result
from imagen.render.budget import CAPS
from imagen.render.renderer import Around, Renderer

PNG = codec.encode_png(Image.linear_gradient("L").resize((64, 48)), {})
ID = "0b3c1d5e-0000-4000-8000-0123456789ab"
ASKED = {"prompt": "a cat", "id": ID, "seed": 7, "backend": "scripted"}


def submit_id(number: int) -> str:
    return str(uuid.uuid5(uuid.UUID(ID), str(number)))


class Scripted:
    """A backend whose calls do what stands in its lists, in turn; then all is well."""

    timeout_s = 5.0
    retry_s = 0.0
    settle_s, create_s, server_date = 0.05, 1.0, None
    refusals = Refusals(REFUSALS)

    def __init__(self, *, paid: bool = False) -> None:
        self.paid = paid
        self.chooses_handle = not paid
        self.cost: float | None = 0.04 if paid else 0.0
        self.images = 1
        self.size = (64, 48)
        self.approximates = False
        self.on_submit: list[Any] = []
        self.on_collect: list[Any] = []
        self.on_find: list[Any] = []
        self.calls: list[tuple[str, str]] = []

    def plan(self, ask: Ask) -> Plan:
        resolved = {"seed": ask.request["seed"], "width": self.size[0], "height": self.size[1]}
        handle = ask.submit_id if self.chooses_handle else None
        plan = Plan({"id": ask.submit_id}, resolved, self.cost, self.images, handle)
        if self.approximates:
            plan.approximate("width", 65, 64, "multiples of 16")
        return plan

    def submit(
        self,
        plan: Plan,
        until: float = math.inf,
        begin: Callable[[], None] = lambda: None,
        refused: Callable[[], None] = lambda: None,
    ) -> str:
        begin()
        self.calls.append(("submit", plan.payload["id"]))
        return self._next(self.on_submit) or plan.payload["id"]

    def find(self, plan: Plan, lost: Lost, until: float = math.inf) -> str | Sought:
        self.calls.append(("find", plan.payload["id"]))
        return self._next(self.on_find) or Sought.ABSENT

    def collect(self, handle: str, wait: Wait, plan: Plan | None) -> Collected | None:
        self.calls.append(("collect", handle))
        found = self._next(self.on_collect)
        if found == "wait":
            time.sleep(max(wait.until - time.monotonic(), 0))
            return None
        return found or Collected([PNG] * self.images, {"vram_used_mib": 3}, 12)

    def cancel(self, handle: str, until: float = math.inf) -> None:
        self.calls.append(("cancel", handle))

    def _next(self, script: list[Any]) -> Any:
        step = script.pop(0) if script else None
        if isinstance(step, BaseException):
            raise step
        return step

    def did(self, *names: str) -> list[str]:
        return [f"{name} {handle}" for name, handle in self.calls if name in names]


@pytest.fixture
def backend(monkeypatch) -> Scripted:
    scripted = Scripted()
    monkeypatch.setattr(backends, "open_backend", lambda *_: scripted)
    return scripted


@pytest.fixture
def paid(backend) -> Scripted:
    backend.__init__(paid=True)
    return backend


NO_CAPS = dict.fromkeys(f"budget.{name}" for name in CAPS)


@pytest.fixture
def renderer(tmp_path) -> Callable[..., Renderer]:
    def make(
        styles: dict[str, Any] | None = None,
        more: Any = None,
        ledger: str = "ledger.sqlite3",
        caps: Any = None,
        **told: Any,
    ) -> Renderer:
        values = {"default_backend": "scripted", **NO_CAPS, **(caps or {})}
        config = Config(None, values, styles=styles or {})
        says = Told(**{"out_dir": tmp_path / "out", **told})
        around = Around(tmp_path, **(more or {}))
        return Renderer(config, Ledger(tmp_path / ledger), says, around)

    return make


def only(made: Any) -> dict[str, Any]:
    (record,) = made
    return record


# -- a good end ------------------------------------------------------------------------------------


def test_one_render_is_one_submit_and_one_image(renderer, backend):
    made = only(renderer().render(ASKED))
    assert backend.calls == [("submit", submit_id(1)), ("collect", submit_id(1))]
    assert (made["submit"], made["attempts"], made["render_id"]) == (submit_id(1), 1, ID)
    assert made["backend_meta"] == {"seed_used": 7, "vram_used_mib": 3}
    assert Path(made["file"]).read_bytes() == PNG, "as it came, untouched"
    assert made["queue_ms"] == max(made["latency_ms"] - 12, 0), "what the backend did not run"


def test_the_cost_of_a_submit_stands_on_its_first_record(renderer, paid):
    paid.images = 3
    made = [*renderer().render(ASKED)]
    assert [one["cost_usd"] for one in made] == [0.04, 0, 0]
    assert [one["id"] for one in made] == [ID, f"{ID}.2", f"{ID}.3"]
    assert len({one["render_id"] for one in made}) == 3


def test_an_unknown_cost_is_absent(renderer, paid):
    paid.cost = None
    assert "cost_usd" not in only(renderer().render(ASKED))


def test_a_size_that_came_out_otherwise_is_in_the_record_and_said(renderer, backend):
    backend.size = (128, 48)
    made = only(renderer().render(ASKED))
    assert (made["width"], made["height"]) == (64, 48)
    (change,) = made["fidelity"]["approximated"]
    assert (change["field"], change["asked"], change["got"]) == ("width", 128, 64)


def test_more_images_than_asked_are_all_kept(renderer, backend):
    backend.on_collect = [Collected([PNG, PNG], {})]
    assert len([*renderer().render(ASKED)]) == 2


def test_a_style_changes_what_the_backend_is_asked_and_not_what_the_file_is_called(
    renderer, backend, monkeypatch
):
    asked: list[Ask] = []
    plan = backend.plan
    monkeypatch.setattr(backend, "plan", lambda ask: asked.append(ask) or plan(ask))
    styles = {"ink": {"prefix": "ink drawing of ", "negative": "photo"}}
    made = only(renderer(styles).render({**ASKED, "style": "ink"}))
    assert (asked[0].prompt, asked[0].negative) == ("ink drawing of a cat", "photo")
    assert (made["sent_prompt"], made["slug"]) == ("ink drawing of a cat", "a-cat")


# -- never twice what may have arrived -------------------------------------------------------------


def test_a_server_fault_is_tried_once_more_after_a_look(renderer, backend):
    backend.on_submit = [ServerFault()]
    made = only(renderer().render(ASKED))
    assert backend.did("submit", "find") == [
        *(f"submit {submit_id(1)}", f"find {submit_id(1)}", f"submit {submit_id(2)}")
    ]
    assert (made["attempts"], made["submit"]) == (2, submit_id(2))


def test_a_lost_answer_that_had_arrived_is_found_and_not_sent_again(renderer, backend):
    backend.on_submit = [AnswerLost()]
    backend.on_find = ["found-handle"]
    made = only(renderer().render(ASKED))
    assert len(backend.did("submit")) == 1
    assert (made["submit"], made["attempts"]) == ("found-handle", 1)


def test_whether_a_paid_submit_arrived_cannot_be_told_so_it_is_not_sent_again(renderer, paid):
    paid.on_submit = [AnswerLost()]
    paid.on_find = [Sought.UNKNOWN] * 5
    with pytest.raises(InDoubt) as caught:
        only(renderer().render(ASKED))
    fault = caught.value
    assert (fault.retry, fault.billed, fault.exit_status) == ("reconcile", "unknown", 1)
    assert len(paid.did("submit")) == 1
    assert fault.record["attempts"] == 1


def test_a_connection_that_was_refused_is_no_attempt(renderer, backend):
    backend.on_submit = [Unreachable()]
    made = only(renderer().render(ASKED))
    assert backend.did("submit", "find") == [f"submit {submit_id(1)}"] * 2
    assert made["attempts"] == 1


@pytest.mark.parametrize("fault", [Rejected, OutOfCredit, Refused])
def test_a_refusal_is_final(renderer, backend, fault):
    backend.on_submit = [fault()]
    with pytest.raises(fault):
        only(renderer().render(ASKED))
    assert len(backend.did("submit")) == 1


def test_two_faults_end_the_try(renderer, backend):
    backend.on_submit = [ServerFault(), ServerFault()]
    with pytest.raises(ServerFault) as caught:
        only(renderer().render(ASKED))
    assert len(backend.did("submit")) == 2
    assert caught.value.record["attempts"] == 2


def test_a_failed_line_is_looked_for_before_it_is_sent_again(renderer, backend):
    backend.on_find = ["found-handle"]
    failed = {**ASKED, "attempts": 1, "error": {"tool": "imagen-render", "retry": "safe"}}
    made = only(renderer().render(failed))
    assert backend.did("submit", "find") == [f"find {submit_id(1)}"]
    assert made["submit"] == "found-handle"
    assert "error" not in made


def test_a_failed_line_that_is_nowhere_takes_the_next_number(renderer, backend):
    failed = {**ASKED, "attempts": 1, "error": {"tool": "imagen-render", "retry": "safe"}}
    made = only(renderer().render(failed))
    assert backend.did("submit") == [f"submit {submit_id(2)}"]
    assert made["attempts"] == 2


def test_a_lost_render_is_submitted_once_more_under_a_new_number(renderer, backend):
    backend.on_collect = [RenderLost()]
    made = only(renderer().render(ASKED))
    assert backend.did("submit") == [f"submit {submit_id(1)}", f"submit {submit_id(2)}"]
    assert made["attempts"] == 2


def test_a_render_that_is_lost_twice_is_an_error(renderer, backend):
    backend.on_collect = [RenderLost(), RenderLost()]
    with pytest.raises(RenderLost):
        only(renderer().render(ASKED))
    assert len(backend.did("submit")) == 2


def test_nothing_is_sent_when_the_reader_is_gone(renderer, backend):
    def gone() -> None:
        raise ReaderGone

    with pytest.raises(ReaderGone):
        only(renderer(more={"before_submit": gone}).render(ASKED))
    assert backend.calls == []


def test_strict_refuses_before_anything_is_sent(renderer, backend):
    backend.approximates = True
    with pytest.raises(NotFaithful, match="not met as asked: width 64 for 65"):
        only(renderer(strict=True).render(ASKED))
    assert backend.calls == []


# -- pictures that are none ------------------------------------------------------------------------


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("data", [b"", b"<html>", PNG[:-20], PNG[: len(PNG) // 2]])
def test_bytes_that_are_no_image_leave_nothing(renderer, backend, tmp_path, data):
    backend.on_collect = [Collected([data], {})]
    with pytest.raises(BadImage) as caught:
        only(renderer().render(ASKED))
    assert caught.value.record["seed"] == 7
    assert left(tmp_path / "out") == [".a-cat-7.reserved"], "the next try may bring it"


@pytest.mark.parametrize(("count", "billed"), [(0, "no"), (2, "no")])
def test_fewer_images_than_asked(renderer, backend, count, billed):
    backend.images = 3
    backend.on_collect = [Collected([PNG] * count, {})]
    made = []
    with pytest.raises(TooFewImages, match=f"{count} of 3") as caught:
        made += renderer().render(ASKED)
    fault = caught.value
    assert fault.billed == billed
    assert fault.record["id"] == (ID if count == 0 else f"{ID}.3")


def test_fewer_images_than_paid_for_are_billed_all_the_same(renderer, paid):
    paid.on_collect = [Collected([], {})]
    with pytest.raises(TooFewImages) as caught:
        only(renderer().render(ASKED))
    assert caught.value.billed == "yes"


def test_a_disk_that_is_full_at_the_end_leaves_a_line_that_can_be_run_again(
    renderer, backend, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "imagen.files.store.sync_folder",
        lambda _: (_ for _ in ()).throw(OSError(28, "No space left")),
    )
    with pytest.raises(FileFault) as caught:
        only(renderer().render(ASKED))
    assert caught.value.exit_status == 75
    monkeypatch.undo()
    monkeypatch.setattr(backends, "open_backend", lambda *_: backend)
    backend.on_find = [submit_id(1)]
    failed = {**caught.value.record, "error": caught.value.as_record("imagen-render")}
    made = only(renderer().render(failed))
    assert len(backend.did("submit")) == 1, "it is fetched again, not made again"
    assert Path(made["file"]).is_file()


# -- waiting no longer -----------------------------------------------------------------------------


def test_wait_hands_out_what_another_process_collects(renderer, backend):
    backend.on_collect = ["wait"]
    pending = only(renderer(wait_s=0.01).render(ASKED))
    assert pending["pending"]["handle"] == submit_id(1)
    assert "file" not in pending
    made = only(renderer().collect(json.loads(json.dumps(pending))))
    assert backend.did("submit", "cancel") == [f"submit {submit_id(1)}"]
    assert (made["submit"], made["latency_ms"]) == (submit_id(1), 12)
    assert not {"pending", "error"} & {*made}


def test_a_free_render_that_times_out_is_cancelled(renderer, backend):
    backend.on_collect = ["wait"]
    with pytest.raises(TimedOut):
        only(renderer(timeout_s=0.01).render(ASKED))
    assert backend.did("cancel") == [f"cancel {submit_id(1)}"]


def test_a_paid_render_that_times_out_becomes_pending_and_is_never_cancelled(renderer, paid):
    paid.on_collect = ["wait"]
    pending = only(renderer(timeout_s=0.01).render(ASKED))
    assert pending["pending"]["handle"] == submit_id(1)
    assert paid.did("cancel") == []


def stopped(make: Renderer, line: dict[str, Any]) -> tuple[list[dict[str, Any]], BaseException]:
    made: list[dict[str, Any]] = []
    with pytest.raises((Stopped, Interrupted)) as caught:
        made += [made.append(one) for one in make.render(line)]
    return [one for one in made if one], caught.value


def test_an_interrupt_cancels_a_free_render(renderer, backend):
    backend.on_collect = [Stopped(130)]
    made, fault = stopped(renderer(), ASKED)
    assert (made, fault.code, fault.stopped.status) == ([], "interrupted", 130)
    assert backend.did("cancel") == [f"cancel {submit_id(1)}"]


@pytest.mark.parametrize("status", [130, 143])
def test_a_paid_render_is_handed_out_and_never_cancelled(renderer, paid, status):
    paid.on_collect = [Stopped(status)]
    (pending,), fault = stopped(renderer(), ASKED)
    assert fault.status == status
    assert pending["pending"]["handle"] == submit_id(1)
    assert paid.did("cancel") == []


def test_a_termination_leaves_a_free_render_running(renderer, backend):
    backend.on_collect = [Stopped(143)]
    (pending,), _ = stopped(renderer(), ASKED)
    assert pending["pending"]["handle"] == submit_id(1)
    assert backend.did("cancel") == []


def test_a_termination_while_the_answer_is_awaited_names_the_handle_that_we_chose(
    renderer, backend
):
    backend.on_submit = [Stopped(143)]
    (pending,), _ = stopped(renderer(), ASKED)
    assert pending["pending"]["handle"] == submit_id(1)


def test_an_interrupt_of_a_paid_submit_whose_answer_is_awaited_says_money_may_have_left(
    renderer, paid
):
    paid.on_submit = [Stopped(130)]
    _, fault = stopped(renderer(), ASKED)
    assert isinstance(fault, Interrupted)
    assert fault.billed == "unknown"


def test_an_interrupt_before_a_paid_submit_was_begun_says_that_nothing_was_paid(renderer, paid):
    def stop() -> None:
        raise Stopped(130)

    _, fault = stopped(renderer(more={"before_submit": stop}), ASKED)
    assert paid.did("submit") == []
    assert fault.billed != "unknown"


UNSOUND = {
    "no object": "approximated",
    "empty": {},
    "a name that nobody knows": {"guessed": [{"field": "width", "why": "w", "asked": 1}]},
    "no list": {"dropped": {"field": "width", "why": "w", "asked": 1}},
    "no field": {"dropped": [{"why": "w", "asked": 1}]},
    "why is no text": {"dropped": [{"field": "width", "why": 1, "asked": 1}]},
    "not what was got": {"approximated": [{"field": "width", "why": "w", "asked": 1}]},
    "one of two": {
        "dropped": [{"field": "width", "why": "w", "asked": 1}],
        "approximated": [{"field": "width"}],
    },
}


@pytest.mark.parametrize("what", UNSOUND)
def test_an_unsound_fidelity_that_comes_back_is_forgotten(what):
    line = {"prompt": "a cat", "model": "m", "fidelity": UNSOUND[what]}
    assert result.sound(line) == {"prompt": "a cat", "model": "m"}


def test_a_sound_fidelity_that_comes_back_stays():
    change = {"field": "width", "why": "multiples of 16", "asked": 65, "got": 64}
    line = {"prompt": "a cat", "fidelity": {"approximated": [change], "dropped": [change]}}
    assert result.sound(line) == line


def test_a_server_that_cannot_be_told_to_cancel_does_not_hide_the_interrupt(renderer, backend):
    backend.on_collect = [Stopped(130)]

    def fail(_handle: str, _until: float) -> None:
        raise ServerFault

    backend.cancel = fail
    _, fault = stopped(renderer(), ASKED)
    assert fault.stopped.status == 130


@pytest.mark.parametrize("second", [130, 143])
def test_a_second_signal_while_it_is_cancelled_still_lets_the_record_out(renderer, backend, second):
    backend.on_collect = [Stopped(130)]

    def stop(_handle: str, _until: float) -> None:
        raise Stopped(second)

    backend.cancel = stop
    _, fault = stopped(renderer(), ASKED)
    assert isinstance(fault, Interrupted)
    assert fault.stopped.status == 130
    assert "it was not cancelled" in fault.message


def test_a_signal_while_a_render_that_timed_out_is_cancelled_is_an_interrupt(renderer, backend):
    backend.on_collect = ["wait"]
    signals_to_come = [Stopped(130)]

    def stop(_handle: str, _until: float) -> None:
        if signals_to_come:
            raise signals_to_come.pop()

    backend.cancel = stop
    _, fault = stopped(renderer(timeout_s=0.01), ASKED)
    assert isinstance(fault, Interrupted)
    assert fault.stopped.status == 130
    assert "the render was cancelled" in fault.message


def test_a_cancel_is_given_little_time(renderer, backend):
    limits = []
    backend.on_collect = [Stopped(130)]
    backend.cancel = lambda _handle, until: limits.append(until - time.monotonic())
    stopped(renderer(), ASKED)
    assert 0 < limits[0] < 2


def late(backend, fault) -> None:
    """Let a submit of the backend end in a fault when its time is over."""

    def submit(plan: Plan, until: float, *_hooks: Callable[[], None]) -> str:
        backend.calls.append(("submit", plan.payload["id"]))
        time.sleep(max(until - time.monotonic(), 0))
        raise fault

    backend.submit = submit


@pytest.fixture
def hurried(monkeypatch) -> None:
    monkeypatch.setattr("imagen.render.renderer._LOOK_S", 0.2)


def test_a_free_submit_without_an_answer_in_time_is_pending_under_the_handle_that_we_chose(
    hurried, renderer, backend
):
    late(backend, AnswerLost())
    line = only(renderer(wait_s=0.1).render(ASKED))
    assert line["pending"]["handle"] == submit_id(1)
    assert backend.did("submit", "find") == [f"submit {submit_id(1)}"], "there is no second try"


def test_a_pending_line_without_an_answer_is_looked_for_before_it_is_sent_again(
    hurried, renderer, backend
):
    late(backend, AnswerLost())
    line = only(renderer(wait_s=0.1).render(ASKED))
    del backend.submit
    made = only(renderer().collect(line))
    assert backend.did("submit", "find", "collect")[1:] == [
        f"find {submit_id(1)}",
        f"submit {submit_id(2)}",
        f"collect {submit_id(2)}",
    ]
    assert made["attempts"] == 2


def test_a_free_submit_without_an_answer_times_out_and_is_cancelled(hurried, renderer, backend):
    late(backend, AnswerLost())
    with pytest.raises(TimedOut) as caught:
        only(renderer(timeout_s=0.1).render(ASKED))
    assert "the render was cancelled" in caught.value.message
    assert backend.did("cancel") == [f"cancel {submit_id(1)}"]


@pytest.mark.parametrize("fault", [Unreachable, ServerFault])
def test_what_is_no_silence_is_told_as_it_is(hurried, renderer, backend, fault):
    late(backend, fault())
    with pytest.raises(fault):
        only(renderer(wait_s=0.1).render(ASKED))


def test_a_paid_submit_without_an_answer_is_never_pending(hurried, renderer, paid):
    late(paid, AnswerLost())
    with pytest.raises(AnswerLost) as caught:
        only(renderer(wait_s=0.1).render(ASKED))
    assert caught.value.billed == "unknown"


def test_an_answer_that_is_lost_before_the_time_is_over_is_looked_for_at_once(renderer, backend):
    backend.on_submit, backend.on_find = [AnswerLost()], [submit_id(1)]
    assert "file" in only(renderer(wait_s=60).render(ASKED))


@pytest.mark.parametrize("who", ["backend", "paid"])
def test_a_look_that_the_end_of_the_wait_cuts_short_leaves_a_pending_line(
    hurried, renderer, request, who
):
    backend = request.getfixturevalue(who)

    def collect(handle: str, wait: Wait, plan: Plan | None) -> None:
        time.sleep(max(wait.until, wait.look_until) - time.monotonic())
        raise AnswerLost

    backend.collect = collect
    line = only(renderer(wait_s=0.1).render(ASKED))
    assert line["pending"]["handle"] == submit_id(1)


@pytest.mark.parametrize(
    ("end", "stays"),
    [(None, False), (Stopped(130), False), (BadImage(), True), ("wait", True)],
)
def test_a_reservation_stays_as_long_as_its_render_can_go_on(
    renderer, backend, tmp_path, end, stays
):
    backend.on_collect = [end]
    with suppress(ImagenError, Stopped):
        only(renderer(wait_s=0.01).render(ASKED))
    reservations = [name for name in left(tmp_path / "out") if name.startswith(".")]
    assert reservations == ([".a-cat-7.reserved"] if stays else [])
    only(renderer().render(ASKED))
    assert sorted(left(tmp_path / "out")) == ["a-cat-7.json", "a-cat-7.png"]


# -- collecting ------------------------------------------------------------------------------------


@pytest.fixture
def pending(renderer, paid) -> dict[str, Any]:
    paid.on_collect = ["wait"]
    styles = {"ink": {"prefix": "ink "}}
    return only(renderer(styles, wait_s=0.01).render({**ASKED, "style": "ink", "mine": 1}))


def test_a_pending_line_is_collected_though_its_style_is_gone(renderer, paid, pending):
    made = only(renderer().collect(pending))
    assert (made["submit"], made["mine"]) == (submit_id(1), 1)
    assert len(paid.did("submit")) == 1


def test_a_pending_line_is_collected_though_it_can_no_longer_be_planned(renderer, paid, pending):
    def refuse(_ask: Ask) -> Plan:
        raise Refused("the workflow is another")

    paid.plan = refuse
    for ledger in ("ledger.sqlite3", "another.sqlite3"):
        made = only(renderer({"ink": {}}, ledger=ledger).collect(pending))
        assert Path(made["file"]).is_file()


def test_a_fault_while_collecting_leaves_the_line_pending(renderer, paid, pending):
    paid.on_collect = [ServerFault()]
    with pytest.raises(ServerFault) as caught:
        only(renderer({"ink": {"prefix": "ink "}}).collect(pending))
    assert caught.value.record["pending"] == pending["pending"]


def test_a_taken_output_name_leaves_the_line_pending(renderer, paid, pending, tmp_path):
    (tmp_path / "mine.png").touch()
    make = renderer({"ink": {"prefix": "ink "}}, output=str(tmp_path / "mine.png"))
    with pytest.raises(Refused) as caught:
        only(make.collect(pending))
    assert caught.value.record["pending"] == pending["pending"]
    assert paid.did("collect") == [f"collect {submit_id(1)}"]


# -- what a line that comes back says of itself ----------------------------------------------------

ELSEWHERE = "5c1f0d2e-1111-4222-8333-0123456789ab"
FAILED = {**ASKED, "id": "k", "attempts": 1, "error": {"tool": "imagen-render", "retry": "safe"}}


def test_a_failed_line_of_another_ledger_is_looked_for_under_the_id_it_had(renderer, backend):
    made = only(renderer().render({**FAILED, "render_id": ELSEWHERE}))
    looked = str(uuid.uuid5(uuid.UUID(ELSEWHERE), "1"))
    assert backend.did("find") == [f"find {looked}"]
    assert made["render_id"] == ELSEWHERE


def test_a_pending_line_keeps_the_global_id_that_it_had(renderer, backend):
    backend.on_collect = ["wait"]
    line = only(renderer(wait_s=0.01).render({**ASKED, "id": "k"}))
    made = only(renderer(ledger="another.sqlite3").collect(line))
    assert made["render_id"] == line["render_id"]


def test_a_pending_line_keeps_what_was_approximated_when_it_was_sent(renderer, backend):
    backend.on_collect, backend.approximates = ["wait"], True
    line = only(renderer(wait_s=0.01).render(ASKED))
    backend.approximates = False  # as the rounded size, asked again, is met exactly
    for ledger in ("another.sqlite3", "ledger.sqlite3"):
        made = only(renderer(ledger=ledger).collect(line))
        assert made["fidelity"] == line["fidelity"]


def test_a_pending_line_keeps_the_model_that_it_was_sent_to(renderer, backend):
    backend.on_collect = ["wait"]
    line = only(renderer(wait_s=0.01).render(ASKED))
    line["model"] = "as-it-was.safetensors"
    made = only(renderer(ledger="another.sqlite3").collect(line))
    assert made["model"] == "as-it-was.safetensors"


# -- what must not be lost -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [130, 143])
def test_a_signal_while_the_image_is_written_waits_until_its_record_is_out(
    renderer, backend, monkeypatch, status
):
    write = store.store

    def interrupted(*args: Any) -> Any:
        os.kill(os.getpid(), status - 128)
        return write(*args)

    monkeypatch.setattr(store, "store", interrupted)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals.install()
    try:
        made, fault = stopped(renderer(), ASKED)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert isinstance(fault, Stopped)
    assert fault.status == status
    (one,) = made
    assert Path(one["file"]).is_file()
    assert "pending" not in one
    assert backend.did("cancel") == []


def test_a_render_that_could_not_be_cancelled_is_not_said_to_be(renderer, backend, monkeypatch):
    def cancel(_handle: str, _until: float) -> None:
        raise ServerFault("the server answered 500")

    monkeypatch.setattr(backend, "cancel", cancel)
    backend.on_collect = ["wait"]
    with pytest.raises(TimedOut, match="goes on, it could not be cancelled"):
        only(renderer(timeout_s=0.01).render(ASKED))


def test_more_images_than_asked_do_not_replace_the_one_that_was_named(renderer, backend, tmp_path):
    other = codec.encode_png(Image.linear_gradient("L").resize((64, 48)).rotate(180), {})
    backend.on_collect = [Collected([PNG, other], {})]
    named = tmp_path / "cover.png"
    one, more = renderer(output=str(named), force=True).render(ASKED)
    assert one["file"] == str(named)
    assert named.read_bytes() == PNG
    assert Path(more["file"]).read_bytes() == other
    assert Path(more["file"]).is_relative_to(tmp_path / "out")


def test_an_image_far_larger_than_planned_is_not_decoded(renderer, backend):
    large = codec.encode_png(Image.new("L", (12_000, 8_000)), {})
    backend.on_collect = [Collected([large], {})]
    with pytest.raises(BadImage, match="too many to check"):
        only(renderer().render(ASKED))
