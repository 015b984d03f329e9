"""The Replicate backend: paid renders, one prediction for each submit.

What the answers mean is judged in replicate_api.py; what a request becomes, in replicate_plan.py.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .. import http, prices, replicate_api, replicate_outputs, replicate_plan, retry
from ..config import secret, variable
from ..errors import (
    AnswerLost,
    ConfigFault,
    ImagenError,
    OutOfCredit,
    Refused,
    Rejected,
    RenderLost,
    ServerFault,
    Throttled,
    Unreachable,
)
from ..replicate_api import Prediction, Wanted
from ..replicate_models import Reference, reference
from ..settings import MODEL, Key, check, hide_password
from . import Ask, Collected, Instance, Lost, Plan, Ran, Sought, Status, Wait

KEYS = {
    "model": Key("string"),
    "api_token_env": Key("variable", "REPLICATE_API_TOKEN"),
    "base_url": Key("url", "https://api.replicate.com", "REPLICATE_BASE_URL"),
    "cancel_after_s": Key("seconds"),
    "prefer_wait_s": Key("count"),
    "poll_s": Key("seconds", 0.5),
    "read_s": Key("seconds", 60),
    "patience_s": Key("seconds", 30),
    "retry_s": Key("seconds", 0.3),
    "settle_s": Key("seconds", 5),
}
BACKOFF_S = 1.0  # the first wait after a 429 that does not say how long
_AT_LEAST_S = 10  # for the requests that even a wait of no time needs
_FETCH_S = 600  # for all images of a prediction
_MARGIN_S = 120  # the list is read back so far beyond the submit: two clocks are compared
_FIND_S = 120  # how long a look may take
_MOST_PAGES = 100  # of a hundred predictions
_GONE = (404, 410)
_UNCLEAR = (303, 408, 499)  # "look elsewhere", or a proxy gave up: what is behind may have accepted
_WHO = "Replicate API"


class Unauthorized(ImagenError):
    """The provider does not accept the token"""

    code = "unauthorized"


def open_instance(instance: Instance) -> Replicate:
    """Open a configured instance."""
    return Replicate(instance)


class Replicate:
    """One configured model at Replicate."""

    paid = True

    def __init__(self, instance: Instance) -> None:
        """Take the instance; nothing is asked yet, and the token is not needed yet."""
        self._settings = instance
        self.model = _model(instance)
        self.timeout_s = instance.get("timeout_s", 60 if "schnell" in self.model.name else 120)
        self._cancel_after_s = instance.get("cancel_after_s", 10 * self.timeout_s)
        self.retry_s = self._get("retry_s")
        self._token_env = str(self._get("api_token_env"))
        self._opened: http.Server | None = None

    def plan(self, ask: Ask) -> Plan:
        """Give the exact body of the POST, and its price."""
        plan = replicate_plan.planned(ask, self.model, self._settings.settings)
        price = prices.price_of(str(self.model), self._settings.prices)
        if price:
            sides = [plan.resolved[side] for side in ("width", "height") if side in plan.resolved]
            area = math.prod(sides) if len(sides) == 2 else None
            plan.cost_usd = price.estimate(plan.images, area, self._cancel_after_s)
        return plan

    # -- submit ----------------------------------------------------------------------------------

    def submit(self, plan: Plan) -> str:
        """Create one prediction; repeated only when told to wait, for then it was not accepted."""
        server = self._server
        headers = {"Cancel-After": f"{math.ceil(self._cancel_after_s)}s"}
        prefer_s = self._settings.get("prefer_wait_s", 0)
        if prefer_s:
            headers["Prefer"] = f"wait={prefer_s}"

        def create() -> http.Answer:
            with self._speaking():
                return server.post(self.model.path, plan.payload, headers, server.read_s + prefer_s)

        try:
            answer = retry.as_told(create, BACKOFF_S)
        except Rejected as fault:
            if fault.status == 404:
                fault.hint = "is it spelled so? a model without an official endpoint needs :version"
            if fault.status in _UNCLEAR:
                raise AnswerLost(fault.message, billed="unknown") from None
            raise
        except (AnswerLost, ServerFault) as fault:  # it may have arrived
            fault.billed = "unknown"
            raise
        return _id_in(answer)

    # -- find ------------------------------------------------------------------------------------

    def find(self, plan: Plan, lost: Lost) -> str | Sought:
        """Read the list of predictions back to the submit, once that is old enough to be in it."""
        settle_s = self._get("settle_s")
        with self._billing("unknown"), self._server.within(time.monotonic() + _FIND_S):
            found = self._sought(plan, lost)
            early_s = settle_s - (time.time() - lost.since)
            if found is Sought.ABSENT and early_s > 0:
                time.sleep(min(early_s, settle_s))  # our clock may have been set back since
                found = self._sought(plan, lost)
            return found

    def _sought(self, plan: Plan, lost: Lost) -> str | Sought:
        """Read to the list's end, or to the margin before the submit; a doubt is no absence."""
        ours: list[Prediction] = []
        doubtful = True
        # what was read before a fault may hold it all the same
        with suppress(Unreachable, AnswerLost, ServerFault, Rejected, Throttled, ValueError):
            doubtful = self._read_list(plan, lost, ours)
        found = replicate_api.best(ours)
        return found.id if found else Sought.UNKNOWN if doubtful else Sought.ABSENT

    def _read_list(self, plan: Plan, lost: Lost, ours: list[Prediction]) -> bool:
        """Put what may be ours into `ours`; gives whether something there cannot be told."""
        path: str | None = replicate_api.LIST
        wanted, doubtful = Wanted(plan.payload["input"], self.model, None), False
        for number in range(_MOST_PAGES):
            answer = self._page(str(path))
            said = answer.json_object()
            if number == 0:
                now = replicate_api.server_now(answer.headers)
                doubtful = now is None
                age_s = time.time() - lost.since
                if now is not None and age_s >= 0:  # else our clock was set back: read it all
                    wanted = wanted._replace(since=now - age_s - _MARGIN_S)
            judged = replicate_api.judged(said.get("results"), wanted, lost.owned)
            ours += judged.ours
            doubtful |= judged.doubtful
            path = replicate_api.next_page(said.get("next"), self._server.url)
            if path is None or judged.reached:
                return doubtful
        return True

    def _page(self, path: str) -> http.Answer:
        def read() -> http.Answer:
            with self._speaking():
                return self._server.get(path)

        return retry.once_more(lambda: retry.as_told(read, BACKOFF_S), self.retry_s)

    # -- collect ---------------------------------------------------------------------------------

    def collect(self, handle: str, wait: Wait, plan: Plan | None) -> Collected | None:
        """Poll until it has ended, then fetch its images; None when the wait is over before.

        It was accepted: whatever fails here, money may have left.
        """
        if not replicate_api.is_id(handle):
            raise Refused(f"no id of a prediction: {handle[:60]!r}", billed="unknown", ends=True)
        ends = max(wait.until, time.monotonic() + _AT_LEAST_S)
        with self._billing("unknown"), self._server.within(ends):
            while (found := self._prediction(handle, wait)).status not in replicate_api.ENDED:
                wait.tell(found.status)
                left = wait.until - time.monotonic()
                if left <= 0:
                    return None
                time.sleep(min(self._get("poll_s"), left))
        if fault := replicate_api.failure(found):
            raise fault
        with self._billing("yes"), self._server.within(time.monotonic() + _FETCH_S):
            return self._collect_files(found, plan)

    def _collect_files(self, found: Prediction, plan: Plan | None) -> Collected:
        """Fetch its files; a fault when no image came, else with those that came."""
        planned = plan.images if plan else 1
        files = replicate_outputs.fetch_files(found, self._file, planned, self.retry_s)
        for fault in files.faults:
            fault.billed = "yes"
        if not files.images and files.faults:
            raise files.faults[0]
        if not files.images and (files.gone or found.data_removed):
            raise RenderLost(
                f"the images of prediction {found.id} are gone: Replicate keeps them for an hour",
                finished=True,
                billed="yes",
                retry="never",
            )
        refused = replicate_outputs.no_picture(found, files)
        if refused:
            refused.billed = "yes"
        meta = _meta(found, plan) | replicate_outputs.meta_of(files, found.shown)
        made = len(files.images) + len(files.faults) + files.gone + files.left
        return Collected(
            [*files.images.values()],
            meta,
            found.run_ms,
            self._cost(found, plan, made),
            [*files.images],
            refused or next(iter(files.faults), None),
            files.raw if refused else None,
        )

    def _prediction(self, handle: str, wait: Wait) -> Prediction:
        """Read it: once more after a 5xx, for a while when the network is down or it is told to."""

        def read() -> Prediction:
            with self._speaking():
                answer = self._server.get(f"{replicate_api.LIST}/{handle}")
            found = replicate_api.prediction(answer.json_object())
            if found.id != handle:
                raise ServerFault(f"asked for prediction {handle}, Replicate gave {found.id}")
            shown = replicate_outputs.shorten(found.outputs, answer.hide)
            now = replicate_api.server_now(answer.headers)
            return found._replace(error=answer.hide(found.error), shown=shown, now=now)

        patience_s = min(self._get("patience_s"), max(wait.until - time.monotonic(), 0))
        try:
            return retry.for_a_while(
                lambda: retry.once_more(read, self.retry_s, when=(ServerFault,)),
                patience_s,
                self.retry_s,
                when=(Unreachable, AnswerLost, Throttled),
            )
        except Rejected as fault:
            if fault.status in _GONE:
                says = f"Replicate no longer knows prediction {handle}"
                raise RenderLost(says, billed="unknown", retry="reconcile") from None
            raise

    def _file(self, url: str) -> http.Answer:
        """Fetch one file."""

        def trusted(address: str) -> bool:
            return replicate_api.is_trusted(address, self._server.url)

        return retry.once_more(lambda: self._server.fetch(url, trusted), self.retry_s)

    def _cost(self, found: Prediction, plan: Plan | None, made: int) -> float | None:
        """Give what it did cost where that is not what was planned: by its time, by its images."""
        price = prices.price_of(str(self.model), self._settings.prices)
        if price is None:
            return None
        if price.unit == "second":
            ran_s = found.predict_s
            return None if ran_s is None else price.estimate(1, None, ran_s)
        if plan is None or plan.cost_usd is None or made <= plan.images:
            return None
        return round(plan.cost_usd / plan.images * made, 9)

    def cancel(self, handle: str) -> None:
        """Leave it: what is paid for is never cancelled by us."""

    # -- what it ran -----------------------------------------------------------------------------

    def account(self) -> str:
        """Give a digest of the address and the token."""
        return hashlib.sha256(f"{self._base()} {self._token()}".encode()).hexdigest()

    def ran(self, since: float) -> Iterator[Ran]:
        """Read the list of predictions back to a time; ServerFault when it cannot be read."""
        path: str | None = replicate_api.LIST
        seen = set()
        while path is not None:
            if path in seen:
                raise ServerFault("the server's list of predictions goes round in a circle")
            seen.add(path)
            said = self._page(path).json_object()
            found = replicate_api.listed(said.get("results"))
            yield from (_ran(one) for one in found if (one.created or since) >= since)
            if any(one.created is not None and one.created < since for one in found):
                return
            path = replicate_api.next_page(said.get("next"), self._server.url)

    # -- status ----------------------------------------------------------------------------------

    def status(self, ask: bool) -> Status:
        """Tell whether there is a token and, when asked, whether Replicate accepts it."""
        if not secret(self._token_env):
            return Status("not configured", f"set {self._token_env}")
        try:
            server = self._server
            if ask:
                with self._speaking():
                    server.get(replicate_api.LIST).json_object()
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
            self._opened = http.Server(self._base(), headers, self._get("read_s"), _WHO)
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
        for fault in check((f"${name}",), "url", said):
            raise ConfigFault(f"${name} {hide_password(fault.message)}", hint=fault.hint)
        return replicate_api.base(said or self._get("base_url"))

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Say a refusal in Replicate's own words, and with what helps."""
        try:
            yield
        except Throttled as fault:
            fault.retry_after_s = replicate_api.told_wait(fault)
            said = replicate_api.problem(fault.body) or "too many requests"
            fault.message = f"Replicate asks to wait: {said}"
            raise
        except OutOfCredit:
            raise OutOfCredit(
                "the account at Replicate is out of credit",
                hint="https://replicate.com/account/billing",
            ) from None
        except Rejected as fault:
            if fault.status == 401:
                raise Unauthorized(
                    f"the token in ${self._token_env} is refused",
                    hint="https://replicate.com/account/api-tokens",
                ) from None
            if said := replicate_api.problem(fault.body):
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


def _id_in(answer: http.Answer) -> str:
    """Give the id in the answer to a create; without one, it is as good as lost."""
    try:
        found = answer.json_object().get("id")
    except ServerFault as fault:
        says = f"Replicate accepted the prediction, but: {fault.message}"
        raise AnswerLost(says, billed="unknown") from None
    if not replicate_api.is_id(found):
        says = "Replicate accepted the prediction, but its answer holds no id"
        raise AnswerLost(says, billed="unknown")
    return str(found)


def _ran(one: Prediction) -> Ran:
    fault = replicate_api.failure(one)
    billed = fault.billed if fault else "yes" if one.status == "succeeded" else "unknown"
    prompt = (one.input or {}).get("prompt")
    return Ran(
        handle=one.id,
        status=one.status,
        ended=one.status in replicate_api.ENDED,
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
        seed = replicate_api.seed_in(found.logs)
    meta = {"prediction_id": found.id, "seed_used": seed}
    return meta if found.predict_s is None else {**meta, "predict_time_s": found.predict_s}
