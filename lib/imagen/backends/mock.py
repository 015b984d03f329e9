"""The mock backend: a picture drawn here, offline, free, decided by prompt and seed.

It can be told to fail like the real ones, by data: `options.faults` of a request, or `faults:` of
the instance (a list, or a YAML file with one). A fault is a name, or {fault, times, wait_s, match}:
`times` is how often it strikes (always, when not given), `match` limits it to prompts that hold the
text. The memory of a server that lost an answer, and the counts, stand in the state folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import disk
from ..config.settings import Key, expanded
from ..errors import (
    AnswerLost,
    ConfigFault,
    ImagenError,
    OutOfCredit,
    Refused,
    RenderLost,
    ServerFault,
    Throttled,
    Unreachable,
    suggest,
)
from ..files import atomic
from ..images import codec, scene
from . import Ask, Collected, Instance, Lost, Plan, Sought, Status, Wait

KEYS = {"faults": Key("faults")}
FAULTS = {
    "refused": "the connection is refused",
    "server_error": "the server answers 500",
    "lost_answer": "the submit arrives, but its answer does not",
    "throttled": "429, with a wait of wait_s",
    "out_of_credit": "402",
    "wrong_magic": "a web page instead of an image",
    "truncated": "an image cut off in the middle",
    "fewer_images": "one image fewer than asked",
    "flat": "an image of one colour",
    "slow": "the image takes wait_s",
    "hang": "the image never comes",
}
_MAX_SIZE = 4096

Rule = dict[str, Any]


def open_instance(instance: Instance) -> Mock:
    """Open a configured instance."""
    return Mock(instance)


class Mock:
    """One configured mock."""

    paid = False
    retry_s = 0.05

    def __init__(self, instance: Instance) -> None:
        """Take the instance; its faults are read and checked now."""
        self._name = instance.name
        self._options = instance.get("options", {})
        self._memory = instance.state_folder / "mock"
        self._rules = _rules(_from_file(instance))
        self.timeout_s = instance.get("timeout_s", 600)

    def plan(self, ask: Ask) -> Plan:
        """Give what would be drawn."""
        request = ask.request
        options = {**self._options, **request.get("options", {})}
        rules = _rules(options.pop("faults", None))
        count = options.pop("images", 1)
        if not isinstance(count, int) or not 1 <= count <= 16:
            raise Refused(f"the mock draws from 1 to 16 images at once, not {count!r}")
        size = {name: min(request.get(name, 1024), _MAX_SIZE) for name in ("width", "height")}
        payload = {
            "id": ask.submit_id,
            "prompt": ask.prompt,
            "seed": request["seed"],
            **size,
            "images": count,
        }
        if rules:
            payload["faults"] = rules
        resolved = {"seed": request["seed"], **size, "model": "mock"}
        plan = Plan(payload, resolved, 0.0, images=count, handle=ask.submit_id)
        for name, got in size.items():
            if request.get(name, got) != got:
                plan.approximate(name, request[name], got, f"the mock draws at most {_MAX_SIZE}")
        for name in request:
            if name in ("negative_prompt", "steps", "cfg", "sampler", "scheduler"):
                plan.drop(name, request[name], "the mock has no use for it")
        for name, value in options.items():
            plan.drop(f"options.{name}", value, "the mock has no use for it")
        return plan

    def submit(
        self, plan: Plan, until: float = math.inf, begin: Callable[[], None] = lambda: None
    ) -> str:
        """Take the picture on, or fail as told."""
        begin()
        handle = str(plan.handle)
        self._strike(
            plan.payload, "refused", Unreachable("cannot reach the mock: connection refused")
        )
        self._strike(plan.payload, "server_error", ServerFault("the mock answered 500"))
        self._strike(plan.payload, "out_of_credit", OutOfCredit())
        if rule := self._struck(plan.payload, "throttled"):
            raise Throttled("the mock answered 429", retry_after_s=rule.get("wait_s", 5))
        self._accept(handle, plan)
        self._strike(plan.payload, "lost_answer", AnswerLost("lost the answer of the mock"))
        return handle

    def _accept(self, handle: str, plan: Plan) -> None:
        """Remember it as a server would; without faults told, a full or read-only disk is none."""
        accepted = json.dumps({**plan.payload, "accepted_at": time.time()}).encode()
        try:
            self._memory.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic.publish(self._accepted(handle), accepted, replace=True, durable=False)
        except OSError:
            if self._rules_of(plan.payload):
                raise

    def find(self, plan: Plan, lost: Lost, until: float = math.inf) -> str | Sought:
        """Look whether the submit arrived."""
        handle = str(plan.handle)
        return handle if self._accepted(handle).exists() else Sought.ABSENT

    def collect(self, handle: str, wait: Wait, plan: Plan | None) -> Collected | None:
        """Draw the images."""
        payload = self._payload(handle, plan)
        if not self._ready(payload, wait):
            return None
        images = [self._drawn(payload, number) for number in range(payload["images"])]
        if self._struck(payload, "fewer_images"):
            images.pop()
        if self._struck(payload, "wrong_magic"):
            images[0] = b"<html><body>504 Gateway Time-out</body></html>"
        if self._struck(payload, "truncated"):
            images[0] = images[0][: len(images[0]) // 2]
        if not self._rules_of(payload):
            with suppress(OSError):
                self._accepted(handle).unlink()  # the plan alone can draw it again
        meta = {"seed_used": payload["seed"], "prediction_id": handle}
        return Collected(images, meta)

    def cancel(self, handle: str, until: float = math.inf) -> None:
        """Forget the render."""
        self._accepted(handle).unlink(missing_ok=True)

    def status(self, ask: bool, until: float = math.inf) -> Status:
        """It is always there."""
        return Status("ok")

    def about(self) -> dict[str, str]:
        """Give its model."""
        return {"model": "mock"}

    def _payload(self, handle: str, plan: Plan | None) -> dict[str, Any]:
        """Give what was accepted; a mock without faults has no need of a memory."""
        try:
            found: dict[str, Any] = json.loads(
                disk.read_regular(self._accepted(handle), follow=False)
            )
            return found
        except OSError:
            if plan is None or self._rules_of(plan.payload):
                raise RenderLost(f"the mock knows no render {handle}") from None
            return plan.payload

    def _accepted(self, handle: str) -> Path:
        return self._memory / f"{hashlib.sha256(handle.encode()).hexdigest()[:32]}.json"

    def _ready(self, payload: dict[str, Any], wait: Wait) -> bool:
        """Wait as long as a slow or hanging server makes us; whether the images came in time."""
        delay = 0.0
        if rule := self._struck(payload, "slow"):
            delay = rule.get("wait_s", 2)
        if self._struck(payload, "hang"):
            delay = float("inf")
        ready = payload.get("accepted_at", 0) + delay
        while time.time() < ready:
            if time.monotonic() >= wait.until:
                return False
            wait.tell("drawing")
            time.sleep(max(min(0.1, ready - time.time(), wait.until - time.monotonic()), 0))
        return True

    def _drawn(self, payload: dict[str, Any], number: int) -> bytes:
        seed, width, height = payload["seed"], payload["width"], payload["height"]
        also = {} if number == 0 else {"number": str(number + 1)}
        caption = "  ".join([f"seed {seed}", self._name, f"{width}x{height}", *also.values()])
        prompt = payload["prompt"]
        picture = scene.draw(prompt, seed + number * 2**64, width, height, caption)
        if self._struck(payload, "flat"):
            picture.paste(0, (0, 0, width, height))
        text = {"prompt": prompt, "seed": str(seed), "backend": self._name, **also}
        return codec.encode_png(picture, text)

    def _rules_of(self, payload: dict[str, Any]) -> list[Rule]:
        return [*payload.get("faults", []), *self._rules]

    def _strike(self, payload: dict[str, Any], name: str, fault: ImagenError) -> None:
        if self._struck(payload, name):
            raise fault

    def _struck(self, payload: dict[str, Any], name: str) -> Rule | None:
        """Give the rule by which this fault strikes now; counts it."""
        for rule in self._rules_of(payload):
            meant = rule["fault"] == name and rule.get("match", "") in payload["prompt"]
            if meant and self._counts(rule, payload):
                return rule
        return None

    def _counts(self, rule: Rule, payload: dict[str, Any]) -> bool:
        """Whether a rule still has a strike left: one byte in a file each time it strikes."""
        if "times" not in rule:
            return True
        whose = (
            payload["prompt"] + str(payload["seed"]) if rule in payload.get("faults", []) else ""
        )
        key = json.dumps([self._name, whose, rule], sort_keys=True)
        self._memory.mkdir(mode=0o700, parents=True, exist_ok=True)
        counter = self._memory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.count"
        descriptor = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, b".")
            return os.fstat(descriptor).st_size <= int(rule["times"])
        finally:
            os.close(descriptor)


def _from_file(instance: Instance) -> Any:
    named = instance.get("faults")
    if not isinstance(named, str):
        return named
    import yaml

    path = instance.config_folder / expanded(named)
    try:
        with disk.open_named(path) as stream:
            return yaml.safe_load(stream.read().decode())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as fault:
        raise ConfigFault(
            f"backend {instance.name}: cannot read the faults in {path}: {fault}"
        ) from None


def _rules(said: Any) -> list[Rule]:
    """Give what was said as rules; Refused when it is none."""
    said = [said] if isinstance(said, (str, dict)) else [] if said is None else said
    if not isinstance(said, list):
        raise Refused(f"no faults of the mock: {said!r}", hint="a list of " + ", ".join(FAULTS))
    rules = [{"fault": one} if isinstance(one, str) else one for one in said]
    for rule in rules:
        if not isinstance(rule, dict) or not isinstance(rule.get("fault"), str):
            raise Refused(f"no fault of the mock: {rule!r}", hint="one of " + ", ".join(FAULTS))
        if rule["fault"] not in FAULTS:
            raise Refused(
                f"the mock has no fault {rule['fault']!r}", hint=suggest(rule["fault"], FAULTS)
            )
        for name, value in rule.items():
            if name not in _RULE or not isinstance(value, _RULE[name]) or isinstance(value, bool):
                raise Refused(f"a fault of the mock cannot hold {name}: {value!r}")
            if isinstance(value, (int, float)) and value < 0:
                raise Refused(f"{name} of a fault cannot be negative: {value}")
    return rules


_RULE: dict[str, Any] = {"fault": str, "times": int, "wait_s": (int, float), "match": str}
