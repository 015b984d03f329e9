"""Backends: four verbs and a status. A new one is one file here and its name in TYPES.

plan     pure: the payload to be sent, what it approximates and drops, what it costs
submit   one call that may cost money; gives the provider's handle
find     looks once for a submit whose answer was lost: there, absent, or unknown
collect  waits and fetches; may be called again by another process
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from ..errors import ImagenError


class Ask(NamedTuple):
    """What a backend is asked: the request, the prompts as sent, the id of this submit (a UUID)."""

    request: Mapping[str, Any]
    prompt: str
    negative: str | None
    submit_id: str


@dataclass(slots=True)
class Plan:
    """What would be sent, and what is known of the result beforehand.

    `handle` is set when we choose it ourselves; `cost_usd` is None when the price is unknown.
    `images` is how many must come, 0 where that cannot be known: then any number from 1 is right.
    """

    payload: dict[str, Any]
    resolved: dict[str, Any]
    cost_usd: float | None
    images: int = 1
    handle: str | None = None
    approximated: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)

    def approximate(self, name: str, asked: Any, got: Any, why: str) -> None:
        """Note that a field is met only nearly."""
        self.approximated.append({"field": name, "asked": asked, "got": got, "why": why})

    def drop(self, name: str, asked: Any, why: str) -> None:
        """Note that a field cannot be used."""
        self.dropped.append({"field": name, "asked": asked, "why": why})

    @property
    def fidelity(self) -> dict[str, Any]:
        """The record's `fidelity`, empty when the request is met exactly."""
        both = {"approximated": self.approximated, "dropped": self.dropped}
        return {name: changes for name, changes in both.items() if changes}


class Sought(Enum):
    """What a look for a lost submit may find, when it finds no handle."""

    ABSENT = "certainly absent"
    UNKNOWN = "cannot tell"


class Lost(NamedTuple):
    """A submit whose answer was lost, and when it can have been accepted at the earliest.

    `age_s` is how many seconds ago, None where our clocks cannot tell; `server_date` is a time of
    the server's own clock (unix) before that moment, None where no answer told one; `started_at`
    is our wall clock's time, which may be wrong. `owned` tells whether another render's journal
    entry holds a handle: that prediction is not ours.
    """

    age_s: float | None
    server_date: float | None
    started_at: float
    owned: Callable[[str], bool]


class Refusals(NamedTuple):
    """Which answers prove that a create was refused; any other leaves open what became of it.

    `statuses` with a JSON object as the body where the API `speaks_json`: a web page may come from
    something on the way that has passed the request on.
    """

    statuses: frozenset[int]
    speaks_json: bool = True


class Wait(NamedTuple):
    """How long to wait: until a time of time.monotonic(); `tell` shows people what for.

    The look that even a wait of no time needs may take until `look_until`.
    """

    until: float
    tell: Callable[[str], None]
    look_until: float = -math.inf


class Raw(NamedTuple):
    """A file that came and is no picture: its bytes, and how its name should end."""

    data: bytes
    suffix: str


class Collected(NamedTuple):
    """The images' bytes as they came, and what the backend says of them; times in ms.

    `cost_usd` is what they did cost, where that is not what was planned. `numbers` say which of the
    submit's images they are, from 1 on, where some are missing; `fault` is what kept those back.
    """

    images: list[bytes]
    meta: dict[str, Any]
    run_ms: int | None = None
    cost_usd: float | None = None
    numbers: Sequence[int] = ()
    fault: ImagenError | None = None
    raw: Raw | None = None

    @property
    def numbered(self) -> list[tuple[int, bytes]]:
        """The images with their numbers."""
        numbers = self.numbers or range(1, len(self.images) + 1)
        return [*zip(numbers, self.images, strict=True)]


class Ran(NamedTuple):
    """A render that a provider says it ran; `created` is unix time on its clock.

    `billed` is as in a record's error: yes, no or unknown.
    """

    handle: str
    status: str
    ended: bool
    billed: str
    created: float | None
    model: str | None
    prompt: str | None


class Status(NamedTuple):
    """Whether an instance can be used: ok, or not configured, unreachable, too old, incomplete.

    `lacks` are more fields of an incomplete one's line: what is missing, and what cures it.
    """

    state: str
    detail: str = ""
    lacks: Mapping[str, Any] = {}

    def __str__(self) -> str:
        """Give it as one text."""
        return f"{self.state} ({self.detail})" if self.detail else self.state


class Backend(Protocol):
    """One configured instance.

    `until` is a time of time.monotonic(): no request is waited for any longer, and whoever had to
    stop raises AnswerLost.
    """

    paid: bool
    timeout_s: float
    retry_s: float

    def plan(self, ask: Ask) -> Plan:
        """Give what would be sent; Refused when it cannot be."""

    def submit(
        self, plan: Plan, until: float = math.inf, begin: Callable[[], None] = lambda: None
    ) -> str:
        """Send the plan; give the handle. No answer is waited for beyond `until` (monotonic).

        `begin` is called before each attempt, so that the start of the last one can be journaled:
        one that follows a 429 proves that those before it were refused.
        """

    def find(self, plan: Plan, lost: Lost, until: float = math.inf) -> str | Sought:
        """Look once for a submit of this plan whose answer was lost.

        ABSENT means: everything that can be ours was read, and nothing in it is. Whether the list
        can be so complete already is for the caller to judge, by `settle_s` and `create_s`.
        """

    def collect(self, handle: str, wait: Wait, plan: Plan | None) -> Collected | None:
        """Wait for the images and fetch them; None when the wait ran out first.

        The plan is worked out anew when another process submitted it, None when it cannot be.
        """

    def cancel(self, handle: str, until: float = math.inf) -> None:
        """Cancel this render and no other, as well as can be."""

    def status(self, ask: bool, until: float = math.inf) -> Status:
        """Tell whether it can be used; with `ask` the server is asked."""

    def about(self) -> dict[str, str]:
        """Give its model and workflow, where it has them."""


class PaidBackend(Backend, Protocol):
    """A backend whose creates cost money, and whose lost ones are looked for in a list.

    `settle_s` is how long the list may lag behind what was accepted; `create_s` how long one
    create takes at most, from connecting to the end of its answer; `server_date` the time that the
    server's last answer told (unix), None before the first.
    """

    refusals: Refusals
    settle_s: float
    create_s: float
    server_date: float | None

    def submit(
        self,
        plan: Plan,
        until: float = math.inf,
        begin: Callable[[], None] = lambda: None,
        refused: Callable[[], None] = lambda: None,
    ) -> str:
        """As `Backend.submit`; `refused` is called after an attempt that was refused for certain.

        So while it waits to try again, the journal says that nothing is under way.
        """


def as_paid(backend: Backend) -> PaidBackend | None:
    """Return a backend as the paid one that it is; None when it is free."""
    return cast(PaidBackend, backend) if backend.paid else None


class Account(Protocol):
    """A backend whose provider lists what it ran, for the whole account."""

    def account(self) -> str:
        """Give what tells accounts apart; no secret can be read from it."""

    def ran(self, since: float) -> Iterator[Ran]:
        """Yield what the account ran since a time (unix), the newest first."""


class Instance(NamedTuple):
    """An instance's name and settings, and the folders that paths in it are relative to."""

    name: str
    settings: dict[str, Any]
    config_folder: Path
    state_folder: Path
    prices: Mapping[str, Any] = {}  # of the configuration, over those of the package

    def get(self, key: str, default: Any = None) -> Any:
        """Give a setting, or the default when it is not there."""
        value = self.settings.get(key)
        return default if value is None else value
