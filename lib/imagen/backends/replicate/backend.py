"""The Replicate backend: paid renders, one prediction for each submit.

What the answers mean is judged in replicate_api.py; what a request becomes, in replicate_plan.py.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ... import http, retry
from ...config import prices
from ...config.loader import secret, variable
from ...config.settings import MODEL, Key, check, hide_password
from ...errors import (
    AnswerLost,
    ConfigFault,
    ImagenError,
    OutOfCredit,
    Refused,
    Rejected,
    RenderLost,
    ServerFault,
    Throttled,
    Unauthorized,
    Unreachable,
)
from ...http.responses import REFUSALS, proves_refusal
from .. import Ask, Collected, Instance, Lost, Plan, Ran, Refusals, Sought, Status, Wait
from . import inputs, responses
from . import outputs as output_files
from .catalog import Reference, reference
from .responses import Prediction, Wanted

KEYS = {
    "model": Key("string"),
    "api_token_env": Key("variable", "REPLICATE_API_TOKEN"),
    "base_url": Key("server", "https://api.replicate.com", "REPLICATE_BASE_URL"),
    "cancel_after_s": Key("seconds"),
    "prefer_wait_s": Key("count"),
    "poll_s": Key("seconds", 0.5),
    "connect_s": Key("seconds", http.CONNECT_S),
    "read_s": Key("seconds", 60),
    "patience_s": Key("seconds", 30),
    "retry_s": Key("seconds", 0.3),
    "settle_s": Key("seconds", 5),
}
BACKOFF_S = 1.0  # the first wait after a 429 that does not say how long
_AT_LEAST_S = 1  # for the one look that even a wait of no time needs
_CREATE_S = 2  # that a create must have left: one that is cut short is a doubt
_FETCH_S = 600  # for all images of a prediction
_MARGIN_S = 120  # the list is read back so far beyond the submit: two clocks are compared
_FIND_S = 120  # how long a look may take
_MOST_PAGES = 100  # of a hundred predictions
_DAY_S = 86400
_RAN_PAGES = 1000  # of what the account ran, for imagen-usage --reconcile
_RAN_S = 600
_IDLE_PAGES = 3  # in a row, with nothing that was not listed before
_GONE = (404, 410)
_WHO = "Replicate API"


def open_instance(instance: Instance) -> Replicate:
    """Open a configured instance."""
    return Replicate(instance)


class Replicate:
    """One configured model at Replicate."""

    paid = True
    # of its published API description: errors are problem details in JSON
    refusals = Refusals(frozenset(REFUSALS))

    def __init__(self, instance: Instance) -> None:
        """Take the instance; nothing is asked yet, and the token is not needed yet."""
        self._settings = instance
        self.model = _model(instance)
        self.timeout_s = instance.get("timeout_s", 60 if "schnell" in self.model.name else 120)
        self._cancel_after_s = instance.get("cancel_after_s", 10 * self.timeout_s)
        self.retry_s = self._get("retry_s")
        self._token_env = str(self._get("api_token_env"))
        self._opened: http.Server | None = None
        self.server_date: float | None = None

    def plan(self, ask: Ask) -> Plan:
        """Give the exact body of the POST, and its price."""
        plan = inputs.planned(ask, self.model, self._settings.settings)
        price = prices.price_of(str(self.model), self._settings.prices)
        if price:
            sides = [plan.resolved[side] for side in ("width", "height") if side in plan.resolved]
            area = math.prod(sides) if len(sides) == 2 else None
            plan.cost_usd = price.estimate(plan.images, area, self._cancel_after_s)
        return plan

    # -- submit ----------------------------------------------------------------------------------

    def submit(
        self,
        plan: Plan,
        until: float = math.inf,
        begin: Callable[[], None] = lambda: None,
        refused: Callable[[], None] = lambda: None,
    ) -> str:
        """Create one prediction; repeated only when told to wait, for then it was not accepted.

        An answer that proves no refusal leaves open whether it was accepted: AnswerLost.
        """
        try:
            answer = retry.as_told(
                lambda: self._create(plan, until, begin, refused),
                BACKOFF_S,
                until=until - _CREATE_S,
            )
        except Rejected as fault:
            if fault.status == 404:
                fault.hint = "is it spelled so? a model without an official endpoint needs :version"
            raise
        except (AnswerLost, ServerFault) as fault:  # it may have arrived
            fault.billed = "unknown"
            raise
        try:
            shown = answer.json_object()
        except ServerFault as fault:
            says = f"Replicate accepted the prediction, but: {fault.message}"
            raise AnswerLost(says, billed="unknown") from None
        return responses.created(shown, plan.payload["input"])

    def _create(
        self, plan: Plan, until: float, begin: Callable[[], None], refused: Callable[[], None]
    ) -> http.Answer:
        """Send one attempt."""
        server, prefer_s = self._server, self._prefer_s
        headers = {"Cancel-After": f"{math.ceil(self._cancel_after_s)}s"}
        ends = max(until, time.monotonic() + _CREATE_S)
        if until < math.inf:
            prefer_s = min(prefer_s, max(math.floor(ends - time.monotonic()) - 1, 0))
        if prefer_s:
            headers["Prefer"] = f"wait={prefer_s}"
        begin()
        with server.within(ends), self._speaking():
            try:
                answer = server.post(
                    self.model.path, plan.payload, headers, server.read_s + prefer_s, fresh=True
                )
                return self._dated(answer)
            except (Rejected, Throttled, OutOfCredit, Unauthorized) as fault:
                self._note_date(fault.headers)
                if proves_refusal(fault.status, fault.body, self.refusals.statuses):
                    refused()
                    raise
                raise AnswerLost(fault.message, billed="unknown") from None

    @property
    def create_s(self) -> float:
        """How long one create can take: connecting, its answer, and the wait that it asks for."""
        return float(self._get("connect_s") + self._get("read_s") + self._prefer_s)

    @property
    def settle_s(self) -> float:
        """How long the list may lag behind what was accepted."""
        return float(self._get("settle_s"))

    @property
    def _prefer_s(self) -> int:
        return int(self._settings.get("prefer_wait_s", 0))

    # -- find ------------------------------------------------------------------------------------

    def find(self, plan: Plan, lost: Lost, until: float = math.inf) -> str | Sought:
        """Read the list of predictions back to before the submit."""
        ours: list[Prediction] = []
        ends = min(until, time.monotonic() + _FIND_S)
        with self._billing("unknown"), self._server.within(ends):
            fault: ImagenError | None = None
            doubtful = False
            try:
                doubtful = self._read_list(plan, lost, ours)
            except (Unreachable, AnswerLost, ServerFault, Rejected, Throttled) as caught:
                fault = caught  # what was read before it may hold it all the same
            if prediction := responses.best(ours):
                return prediction.id
            if fault:
                raise fault
            return Sought.UNKNOWN if doubtful else Sought.ABSENT

    def _read_list(self, plan: Plan, lost: Lost, ours: list[Prediction]) -> bool:
        """Put what is ours into `ours`; return whether something there perhaps is."""
        path: str | None = responses.LIST
        wanted = Wanted(plan.payload["input"], self.model, None, None)
        doubtful, seen = False, set[str]()
        while path is not None and len(seen) < _MOST_PAGES:
            seen.add(path)
            answer = self._page(path)
            if len(seen) == 1:
                now = responses.server_now(answer.headers)
                wanted = wanted._replace(since=_since(now, lost), readable_since=_coarse(now, lost))
            listing = answer.json_object()
            shown = responses.judged(listing.get("results"), wanted, lost.owned)
            ours += shown.ours
            doubtful |= shown.doubtful
            path = responses.next_page(listing.get("next"), self._server.url)
            if path is None or shown.reached:
                return doubtful
            if path in seen:
                return True  # it leads round in a circle: its end cannot be seen
        return True

    def _page(self, path: str) -> http.Answer:
        def read() -> http.Answer:
            with self._speaking():
                return self._dated(self._server.get(path))

        until = self._server.until
        return retry.once_more(
            lambda: retry.as_told(read, BACKOFF_S, until=until), self.retry_s, until=until
        )

    def _dated(self, answer: http.Answer) -> http.Answer:
        self._note_date(answer.headers)
        return answer

    def _note_date(self, headers: Mapping[str, str]) -> None:
        """Remember the server's time: the next create is accepted after it, whatever our clock."""
        self.server_date = responses.server_now(headers) or self.server_date

    # -- collect ---------------------------------------------------------------------------------

    def collect(self, handle: str, wait: Wait, plan: Plan | None) -> Collected | None:
        """Poll until it has ended, then fetch its images; None when the wait is over before.

        It was accepted: whatever fails here, money may have left.
        """
        if not responses.is_id(handle):
            raise Refused(f"no id of a prediction: {handle[:60]!r}", billed="unknown", ends=True)
        ends = max(wait.until, wait.look_until, time.monotonic() + _AT_LEAST_S)
        with self._billing("unknown"), self._server.within(ends):
            while (found := self._prediction(handle, wait)).status not in responses.ENDED:
                wait.tell(found.status)
                left = wait.until - time.monotonic()
                if left <= 0:
                    return None
                time.sleep(min(self._get("poll_s"), left))
        if fault := responses.failure(found):
            raise fault
        with self._billing("yes"), self._server.within(time.monotonic() + _FETCH_S):
            return self._collect_files(found, plan)

    def _collect_files(self, prediction: Prediction, plan: Plan | None) -> Collected:
        """Fetch its files; a fault when no image came, else with those that came."""
        handle, planned = prediction.id, plan.images if plan else 1
        files = output_files.fetch_files(prediction, self._file, planned, self.retry_s)
        for fault in files.faults:
            fault.billed = "yes"
        if not files.images and files.faults:
            raise files.faults[0]
        if not files.images and (files.gone or prediction.data_removed):
            raise RenderLost(
                f"the images of prediction {handle} are gone: Replicate keeps them for an hour",
                finished=True,
                billed="yes",
                retry="never",
            )
        refused = output_files.no_picture(prediction, files)
        if refused:
            refused.billed = "yes"
        meta = _meta(prediction, plan) | output_files.meta_of(files, prediction.shown)
        count = len(files.images) + len(files.faults) + files.gone + files.not_fetched
        return Collected(
            [*files.images.values()],
            meta,
            prediction.run_ms,
            self._cost(prediction, plan, count),
            [*files.images],
            refused or next(iter(files.faults), None),
            files.raw if refused else None,
        )

    def _prediction(self, handle: str, wait: Wait) -> Prediction:
        """Read it: once more after a 5xx, for a while when the network is down or it is told to."""

        def read() -> Prediction:
            with self._speaking():
                answer = self._server.get(f"{responses.LIST}/{handle}")
            found = responses.prediction(answer.json_object())
            if found.id != handle:
                raise ServerFault(f"asked for prediction {handle}, Replicate gave {found.id}")
            shown = output_files.shorten(found.outputs, answer.hide)
            now = responses.server_now(answer.headers)
            return found._replace(error=answer.hide(found.error), shown=shown, now=now)

        patience_s = min(self._get("patience_s"), max(wait.until - time.monotonic(), 0))
        try:
            return retry.for_a_while(
                lambda: retry.once_more(read, self.retry_s, when=(ServerFault,)),
                patience_s,
                self.retry_s,
                when=(Unreachable, AnswerLost, Throttled),
                until=self._server.until,
            )
        except Rejected as fault:
            if fault.status in _GONE:
                says = f"Replicate no longer knows prediction {handle}"
                raise RenderLost(says, billed="unknown", retry="reconcile") from None
            raise

    def _file(self, url: str) -> http.Answer:
        """Fetch one file."""

        def trusted(address: str) -> bool:
            return responses.is_trusted(address, self._server.url)

        return retry.once_more(lambda: self._server.fetch(url, trusted), self.retry_s)

    def _cost(self, prediction: Prediction, plan: Plan | None, count: int) -> float | None:
        """Give what it did cost where that is not what was planned: by its time, by its images."""
        price = prices.price_of(str(self.model), self._settings.prices)
        if price is None:
            return None
        if price.unit == "second":
            ran_s = prediction.predict_s
            return None if ran_s is None else price.estimate(1, None, ran_s)
        if plan is None or plan.cost_usd is None or count <= plan.images:
            return None
        return round(plan.cost_usd / plan.images * count, 9)

    def cancel(self, handle: str, until: float = math.inf) -> None:
        """Leave it: what is paid for is never cancelled by us."""

    # -- what it ran -----------------------------------------------------------------------------

    def account(self) -> str:
        """Give a digest of the address and the token."""
        return hashlib.sha256(f"{self._base()} {self._token()}".encode()).hexdigest()

    def ran(self, since: float) -> Iterator[Ran]:
        """Read the list of predictions back to a time; ServerFault when it cannot be read."""
        path: str | None = responses.LIST
        seen: set[str] = set()
        handles: set[str] = set()
        idle = 0
        end = time.monotonic() + _RAN_S
        while path is not None:
            if path in seen:
                raise ServerFault("the server's list of predictions goes round in a circle")
            seen.add(path)
            listing = self._page(path).json_object()
            predictions = responses.listed(listing.get("results"))
            new = [one for one in predictions if one.id not in handles]
            handles |= {one.id for one in new}
            idle = 0 if new else idle + 1
            if idle >= _IDLE_PAGES:
                raise ServerFault("the server's list of predictions does not advance")
            if len(seen) > _RAN_PAGES or time.monotonic() > end:
                raise ServerFault("the server's list of predictions has no end")
            yield from (_ran(one) for one in new if (one.created or since) >= since)
            if any(one.created is not None and one.created < since for one in predictions):
                return
            path = responses.next_page(listing.get("next"), self._server.url)

    # -- status ----------------------------------------------------------------------------------

    def status(self, ask: bool, until: float = math.inf) -> Status:
        """Tell whether there is a token and, when asked, whether Replicate accepts it."""
        if not secret(self._token_env):
            return Status("not configured", f"set {self._token_env}")
        try:
            server = self._server
            if ask:
                with self._speaking(), server.within(until):
                    server.get(responses.LIST).json_object()
        except (ConfigFault, Unauthorized) as fault:
            return Status("not configured", fault.message)
        except ImagenError as fault:
            return Status("unreachable", fault.message)
        return Status("ok")

    def about(self) -> dict[str, str]:
        """Give its model."""
        return {"model": str(self.model)}

    # -- the server ------------------------------------------------------------------------------

    def _get(self, key: str) -> Any:
        return self._settings.get(key, KEYS[key].default)

    @property
    def _server(self) -> http.Server:
        if self._opened is None:
            headers = {"Authorization": f"Bearer {self._token()}"}
            limits = self._get("read_s"), _WHO, self._get("connect_s")
            self._opened = http.Server(self._base(), headers, *limits)
        return self._opened

    def _token(self) -> str:
        token, where = secret(self._token_env), f"backend {self._settings.name}: {self._token_env}"
        if token is None:
            raise ConfigFault(f"{where} is not set", hint="it holds the API token of Replicate")
        if not re.fullmatch(r"[!-~]+", token):
            raise ConfigFault(
                f"{where} holds what no token has: a blank, a line end or a letter not in ASCII"
            )
        return token

    def _base(self) -> str:
        name = str(KEYS["base_url"].env)
        said = variable(name)
        for fault in check((f"${name}",), "server", said):
            raise ConfigFault(f"${name} {hide_password(fault.message)}", hint=fault.hint)
        return responses.base(said or self._get("base_url"))

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Say a refusal in Replicate's own words, and with what helps."""
        try:
            yield
        except Throttled as fault:
            fault.retry_after_s = responses.told_wait(fault)
            said = responses.problem(fault.body) or "too many requests"
            fault.message = f"Replicate asks to wait: {said}"
            raise
        except OutOfCredit as fault:
            fault.message = "the account at Replicate is out of credit"
            fault.hint = "https://replicate.com/account/billing"
            raise
        except Rejected as fault:
            if fault.status == 401:
                raise Unauthorized(
                    f"the token in ${self._token_env} is refused",
                    hint="https://replicate.com/account/api-tokens",
                    status=fault.status,
                    body=fault.body,
                    headers=fault.headers,
                ) from None
            if said := responses.problem(fault.body):
                fault.message = f"Replicate refuses it ({fault.status}): {said}"
            raise

    @contextmanager
    def _billing(self, billed: str) -> Iterator[None]:
        """Let no fault say that nothing was billed: something was accepted, and is still there."""
        try:
            yield
        except ImagenError as fault:
            if fault.billed == "no":
                fault.billed = billed
                if isinstance(fault, (Rejected, Unauthorized)):
                    fault.retry = "safe"  # whoever asks again may be let in
            raise


def _model(instance: Instance) -> Reference:
    said = instance.get("model")
    example = "model: black-forest-labs/flux-schnell"
    if said is None:
        raise ConfigFault("no model", hint=example)
    if not MODEL.fullmatch(said):
        says = f"the model is owner/name or owner/name:version, not {said[:100]!r}"
        raise ConfigFault(says, hint=example)
    if instance.get("prefer_wait_s", 1) > 60:
        raise ConfigFault("prefer_wait_s is at most 60")
    return reference(said)


def _since(server_now: float | None, lost: Lost) -> float | None:
    """Return the server's time before which nothing can be ours; None: its list is read to its end.

    An exact age needs the server's clock now; the time that it told before the submit needs none.
    """
    if lost.age_s is not None and server_now is not None:
        return server_now - lost.age_s - _MARGIN_S
    return None if lost.server_date is None else lost.server_date - _MARGIN_S


def _coarse(server_now: float | None, lost: Lost) -> float:
    """Return the time before which what cannot be read is not ours: clocks are not a day off."""
    wall_age_s = max(time.time() - lost.started_at, lost.age_s or 0.0)
    return (time.time() if server_now is None else server_now) - wall_age_s - _DAY_S


def _ran(one: Prediction) -> Ran:
    fault = responses.failure(one)
    billed = fault.billed if fault else "yes" if one.status == "succeeded" else "unknown"
    prompt = (one.input or {}).get("prompt")
    return Ran(
        handle=one.id,
        status=one.status,
        ended=one.status in responses.ENDED,
        billed=billed,
        created=one.created,
        model=one.model,
        prompt=prompt if isinstance(prompt, str) else None,
    )


def _meta(found: Prediction, plan: Plan | None) -> dict[str, Any]:
    """Give what is known of it beside the images; seed_used is null when nobody says it."""
    given = plan.payload["input"] if plan else found.input or {}
    seed = given.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed == 0:
        seed = responses.seed_in(found.logs)
    meta = {"prediction_id": found.id, "seed_used": seed}
    return meta if found.predict_s is None else {**meta, "predict_time_s": found.predict_s}
