"""The backends of the matrix: how each is configured, counted, and met by a fault at each stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from servers import wire
from servers.comfyui import ComfyUI
from servers.replicate import SCHNELL, SPELLINGS, TOKEN, Replicate, throttled
from servers.tls import certificate
from servers.wire import Broken

NAME = "replicate.test"  # that only a proxy resolves
BREAKS = {
    "cut_before": wire.CUT,
    "cut_after": wire.CUT,
    "reset": wire.RESET,
    "silence": wire.SILENCE,
    "trickle": wire.TRICKLE,
    "malformed_status": wire.MALFORMED,
    "two_lengths": wire.TWO_LENGTHS,
    "moved_301": wire.MOVED,
    "bad_gateway": wire.page("502 Bad Gateway"),
}


@dataclass(frozen=True)
class Limits:
    """The instance's limits, in seconds."""

    connect_s: float = 1.0
    read_s: float = 3.0
    settle_s: float = 0.3


@dataclass
class Place:
    """One backend instance, as the matrix sees it.

    `instance` returns its configuration, `strike` lets the next request of a stage meet a fault,
    `throttle` answers the next creates with 429, `arrived` counts the requests of a stage, `mend`
    ends all faults. `list_lags` and `list_normalises` are what its list of runs does, where it has
    one. `address` is where it listens; `behind` lets it be reached by NAME through a proxy.
    """

    name: str
    paid: bool
    instance: Callable[[Limits], str]
    creates: Callable[[], int]
    handles: Callable[[], list[str]]
    arrived: Callable[[str], int]
    strike: Callable[[str, Broken, bool, float], object]
    mend: Callable[[], object]
    throttle: Callable[[int, float], object] = lambda times, wait_s: None
    list_lags: Callable[[float], object] = lambda seconds: None
    list_normalises: Callable[[], object] = lambda: None
    behind: Callable[[str, Path], dict[str, str]] = lambda kind, folder: {}
    address: tuple[str, int] = ("127.0.0.1", 0)
    environment: dict[str, str] = field(default_factory=dict)
    size: str = "512x512"


@contextmanager
def replicate() -> Iterator[Place]:
    """Give the Replicate look-alike, a paid backend."""
    requests = {
        "create": "POST /v1/models",
        "throttled": "POST /v1/models",
        "poll": "GET /v1/predictions/",
        "fetch": "GET /files/",
    }
    with Replicate() as server:
        base = [server.url]

        def instance(limits: Limits) -> str:
            keys = f"connect_s: {limits.connect_s}, read_s: {limits.read_s}"
            keys += f", settle_s: {limits.settle_s}, poll_s: 0.02, retry_s: 0.05, patience_s: 1"
            return f"{{type: replicate, model: '{SCHNELL}', base_url: '{base[0]}', {keys}}}"

        def behind(kind: str, folder: Path) -> dict[str, str]:
            secure = kind == "proxy_connect"
            port = server.url.rpartition(":")[2]
            base[0] = server.files_url = f"http{'s' * secure}://{NAME}:{port}"
            if not secure:
                return {}
            signed = certificate(folder, [NAME])
            signed.wrap(server._http)
            return {"REQUESTS_CA_BUNDLE": str(signed.ca)}

        yield Place(
            name="rep",
            paid=True,
            instance=instance,
            creates=lambda: server.creates,
            handles=lambda: [str(one["id"]) for one in server.predictions],
            arrived=lambda stage: server.asks(requests[stage]),
            strike=lambda stage, broken, accepted, late_s: server.fail(
                requests[stage], broken, after=accepted, late_s=late_s, until_listed=True
            ),
            mend=server.forgive,
            throttle=lambda times, wait_s: server.fail(
                requests["create"], throttled(wait_s), times=times
            ),
            list_lags=lambda seconds: setattr(server, "lag_s", seconds),
            list_normalises=lambda: setattr(server, "spelling", SPELLINGS),
            behind=behind,
            address=("127.0.0.1", int(server.url.rpartition(":")[2])),
            environment={"REPLICATE_API_TOKEN": TOKEN},
        )


@contextmanager
def comfyui() -> Iterator[Place]:
    """Give the ComfyUI look-alike, a free backend that takes an id of ours."""
    requests = {"create": "POST /prompt", "poll": "GET /history", "fetch": "GET /view"}
    with ComfyUI() as server:
        keys = "poll_min_s: 0.01, poll_max_s: 0.05, retry_s: 0.05, patience_s: 1"

        def arrived(stage: str) -> int:
            return sum(
                f"{way} {path}".startswith(requests[stage]) for way, path, _ in server.requests
            )

        yield Place(
            name="comfy",
            paid=False,
            instance=lambda limits: f"{{type: comfyui, url: '{server.url}', {keys}}}",
            creates=lambda: len(server.submits),
            handles=lambda: [str(one["prompt_id"]) for one in server.submits],
            arrived=arrived,
            strike=lambda stage, broken, accepted, late_s: server.fail(
                requests[stage], broken, after=accepted
            ),
            mend=server.mend,
            size="64x64",
        )


@contextmanager
def mock(folder: Path) -> Iterator[Place]:
    """Give the mock, which fails by data: a stage's fault is a word in its configuration."""
    memory, faults = folder / "cell" / "machine" / "imagen" / "mock", list[str]()
    remember = "{fault: hang, times: 0}"  # never strikes, but the mock keeps what it accepted
    words = {wire.CUT: "lost_answer", wire.HALF_A_BODY: "truncated"}

    def strike(stage: str, broken: Broken, accepted: bool, late_s: float) -> None:
        if broken is wire.SILENCE:
            faults.append("{fault: slow, wait_s: 600, times: 1}")
        else:
            word = words.get(broken, "server_error") if accepted else "refused"
            faults.append(f"{{fault: {word}, times: 1}}")

    def accepted() -> list[str]:
        return [str(json.loads(path.read_text())["id"]) for path in memory.glob("*.json")]

    yield Place(
        name="mock",
        paid=False,
        instance=lambda limits: f"{{type: mock, faults: [{', '.join([remember, *faults])}]}}",
        creates=lambda: len(accepted()),
        handles=accepted,
        arrived=lambda stage: len(accepted()),
        strike=strike,
        mend=faults.clear,
        size="64x64",
    )
