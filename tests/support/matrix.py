"""The matrix: each fault at each stage of a render, met by each program, and one judge for all.

A `Cell` names a stage, a fault, whether the create was accepted all the same, and a program.
It is played by playing.py: the real program runs against a backend until it has its picture or says
that it never will, as a person or an agent would: the same command again, when `retry_after_s` is
over. `judge` is pure: it reads an `Observation` and returns the promises that were broken.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import product
from pprint import pformat
from typing import Any

STAGES = ("create", "throttled", "poll", "fetch")
PROGRAMS = ("render_with_id", "render_without_id", "generate", "compare", "listen")
RENDERS, WRAPPERS = PROGRAMS[:2], PROGRAMS[2:4]
WIRE = (
    *("cut_before", "cut_after", "reset", "silence", "trickle", "malformed_status"),
    *("two_lengths", "moved_301", "bad_gateway"),
)
PROXIES = ("proxy_http", "proxy_connect")
CLOCKS = {"clock_plus_1h": "+3600", "clock_minus_10min": "-600"}
KILLS = ("kill", "takeover", *CLOCKS)
LISTS = ("list_lags", "list_normalises")
FAULTS = (*WIRE, *PROXIES, *KILLS, *LISTS)
HANDS_OVER = ("render_with_id", "listen")  # what another ledger can go on with
UNREADABLE = ("malformed_status", "two_lengths", "moved_301", "bad_gateway")
ALIKE = {"trickle": "silence", "two_lengths": "malformed_status", "moved_301": "bad_gateway"}
MOST_CELLS = 80  # of `make test`, the free ones too


@dataclass(frozen=True, order=True)
class Cell:
    """One combination; `accepted` says whether the create that met the fault was."""

    stage: str
    fault: str
    accepted: bool
    program: str
    backend: str = "replicate"

    @property
    def id(self) -> str:
        """The name of its test."""
        both = self.stage in STAGES[:2] and not self.fault.startswith(("cut_", "list_"))
        outcome = ("_accepted" if self.accepted else "_unaccepted") if both else ""
        backend = () if self.backend == "replicate" else (self.backend,)
        return "-".join((*backend, self.stage, self.fault + outcome, self.program))

    @property
    def may_stay_in_doubt(self) -> bool:
        """Whether the list cannot tell for ever, so that only a person can end the doubt."""
        return self.fault == "list_normalises" and self.stage in STAGES[:2]


def _accepted(stage: str, fault: str) -> tuple[bool, ...]:
    if stage in ("poll", "fetch") or fault == "cut_after" or fault in LISTS:
        return (True,)
    return (False,) if fault == "cut_before" else (True, False)


def free_cells() -> list[Cell]:
    """Return the cells of ComfyUI and of the mock, which take an id of ours."""
    faults = ("cut_before", "cut_after", "silence", "bad_gateway", "kill")
    with_id, *others = (PROGRAMS[0], PROGRAMS[1], PROGRAMS[2])
    cells = [
        Cell(stage, fault, accepted, with_id, "comfyui")
        for stage, fault in product(("create", "poll", "fetch"), faults)
        for accepted in _accepted(stage, fault)
    ]
    cells += [Cell("create", "kill", True, program, "comfyui") for program in others]
    return [
        *cells,
        Cell("create", "cut_before", False, with_id, "mock"),
        Cell("create", "cut_after", True, with_id, "mock"),
        Cell("create", "bad_gateway", False, with_id, "mock"),
        Cell("poll", "kill", True, with_id, "mock"),
        Cell("fetch", "cut_after", True, with_id, "mock"),
    ]


def chosen_free_cells() -> list[Cell]:
    """Return the free cells of `make test`: each fault of a create, and a few of later stages."""
    with_id, without_id = RENDERS
    faults = (("cut_before", False), ("cut_after", True), ("silence", True), ("bad_gateway", False))
    return [
        *(Cell("create", fault, accepted, with_id, "comfyui") for fault, accepted in faults),
        Cell("create", "kill", False, with_id, "comfyui"),
        Cell("create", "kill", True, without_id, "comfyui"),
        Cell("poll", "kill", True, with_id, "comfyui"),
        Cell("fetch", "cut_after", True, with_id, "comfyui"),
        Cell("fetch", "silence", True, with_id, "comfyui"),
        Cell("create", "cut_after", True, with_id, "mock"),
    ]


def all_cells() -> list[Cell]:
    """Return every cell of a paid backend that makes sense.

    Only a handle can be handed over to another ledger, and once it is known no list is read.
    """
    return [
        Cell(stage, fault, accepted, program)
        for stage, fault, program in product(STAGES, FAULTS, PROGRAMS)
        if (fault != "takeover" or program in HANDS_OVER)
        and (fault not in LISTS or stage in ("create", "throttled"))
        for accepted in _accepted(stage, fault)
    ]


def chosen_cells() -> list[Cell]:
    """Return the paid cells of `make test`: all creates of imagen-render, the rest pairwise.

    A create that may be accepted or not is met accepted with an id and unaccepted without, or the
    other way round. A worker's cells are few, since each needs a database. The free cells cover
    pairs too.
    """
    cells = []
    for turn, (fault, program) in enumerate(product(FAULTS, RENDERS)):
        ways = _accepted("create", fault)
        accepted = ways[(turn + turn // 2) % len(ways)]
        if fault != "takeover" or program in HANDS_OVER:
            cells.append(Cell("create", fault, accepted, program))
    cells += [Cell("create", "kill", True, program) for program in PROGRAMS[2:]]
    rest = [cell for cell in all_cells() if cell.program != "listen" or cell.fault in KILLS[:2]]
    free = chosen_free_cells()
    missing = set().union(*map(pairs, rest)) - set().union(*map(pairs, [*cells, *free]))
    while missing and len(cells) + len(free) < MOST_CELLS:
        best = max(rest, key=lambda cell: (len(pairs(cell) & missing), cell.program not in RENDERS))
        missing -= pairs(best)
        cells.append(best)
    return cells


def pairs(cell: Cell) -> set[tuple[str, str]]:
    """Return the pairs that a cell covers.

    What only the bytes differ in meets either wrapper. Once the handle is known, clocks, another
    ledger and answers that cannot be read are met at either stage. After a 429, which proves only
    that the attempt before was refused, one of those that look alike stands for both.
    """
    wrapped = cell.fault in WIRE and cell.program in WRAPPERS
    either = (*KILLS[1:], *PROXIES, *UNREADABLE)
    later = cell.fault in either and cell.stage in ("poll", "fetch")
    program = "wrapper" if wrapped else cell.program
    stage = "poll or fetch" if later else cell.stage
    fault = ALIKE.get(cell.fault, cell.fault) if cell.stage == "throttled" else cell.fault
    return {(stage, fault), (cell.fault, program), (cell.stage, cell.program)}


# -- the judge -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run of the program: its exit status (None: it did not end in time), its records.

    `creates` counts the creates that the backend had accepted when the run ended.
    """

    status: int | None
    records: list[dict[str, Any]]
    stderr: str
    creates: int
    seconds: float = 0.0
    killed: bool = False

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The error objects of its records."""
        return [one["error"] for one in self.records if isinstance(one.get("error"), dict)]

    @property
    def is_over(self) -> bool:
        """Whether to run it again makes no sense: it is done, it hangs, or it says never."""
        if self.killed:
            images = [one for one in self.records if "members" not in one]  # without the sheet
            return any("file" in one for one in images)
        never = [error.get("retry") == "never" for error in self.errors]
        return self.status in (0, None) or (bool(never) and all(never))

    @property
    def is_doubt(self) -> bool:
        """Whether it says that it may have been paid, and how that is settled."""
        return any(
            error.get("billed") == "unknown" and error.get("retry") in ("after", "reconcile")
            for error in self.errors
        )

    @property
    def retry_after_s(self) -> float:
        """How long to wait before the same command."""
        return max((float(error.get("retry_after_s") or 0) for error in self.errors), default=0.0)


@dataclass(frozen=True)
class Observation:
    """What was seen of one cell: every run, the ledgers' submits, the images on the disk.

    `submits` are rows of backend, handle, billed and estimate_usd, of all ledgers that took part;
    `pictures` are the records with a file that the last run gave, each with the file's size;
    `handles` are the provider's ids of the creates that it accepted, in its own list.
    """

    cell: Cell
    runs: list[Run]
    creates: int
    handles: list[str]
    submits: list[dict[str, Any]]
    pictures: list[dict[str, Any]]
    paid: bool = True
    ledgers: int = 1
    proxied: int | None = None  # requests that a proxy forwarded; None without one
    files: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return pformat(asdict(self), width=100, sort_dicts=False)

    @property
    def last(self) -> Run:
        """The last run."""
        return self.runs[-1]

    @property
    def has_picture(self) -> bool:
        """Whether the last run gave the picture that was paid for."""
        whole = [one for one in self.pictures if one["size"] > 0]
        ended = self.last.status == 0 or self.last.killed
        return ended and any(one["submit"] in self.handles for one in whole)


def judge(seen: Observation) -> list[str]:
    """Return the promises that were broken, none when all was kept."""
    return [
        *_paid_once(seen),
        *_nothing_lost(seen),
        *_counted(seen),
        *_never_stuck(seen),
        *_ended_properly(seen),
    ]


def _paid_once(seen: Observation) -> list[str]:
    if seen.creates > 1:
        first = next(at for at, run in enumerate(seen.runs, 1) if run.creates > 1)
        return [f"PAID ONCE: {seen.creates} creates were accepted for one image (run {first})"]
    return []


def _nothing_lost(seen: Observation) -> list[str]:
    """Whether what was made and can be fetched is there; a doubt that time cannot end may stay."""
    if not seen.creates or seen.has_picture:
        return []
    if seen.last.is_doubt and seen.cell.may_stay_in_doubt:
        return []
    return ["NOTHING LOST: an image was made, and the same command again does not bring it"]


def _counted(seen: Observation) -> list[str]:
    """Whether the budget sees every accepted create, and no run called one unbilled."""
    if not seen.paid:
        return []
    broken = []
    open_or_billed = [one for one in seen.submits if one["billed"] != "no"]
    counted = sum(one["estimate_usd"] is not None for one in open_or_billed)
    if counted < seen.creates:
        broken.append(f"COUNTED: the budget counts {counted} of {seen.creates} accepted creates")
    if seen.has_picture and seen.ledgers == 1 and counted > seen.creates:
        broken.append(f"COUNTED: it is settled, and the budget counts {counted} for 1 create")
    for number, run in enumerate(seen.runs, 1):
        if run.creates and any(error.get("billed") == "no" for error in run.errors):
            broken.append(f"COUNTED: run {number} says billed: no, a create had been accepted")
    return broken


def _never_stuck(seen: Observation) -> list[str]:
    if seen.creates or seen.has_picture:
        return []
    return ["NEVER STUCK: nothing was accepted, and the same command again brings no picture"]


def _ended_properly(seen: Observation) -> list[str]:
    """Whether each run ended by itself, with the status that its records mean."""
    broken = []
    for number, run in enumerate(seen.runs, 1):
        if run.killed:
            continue
        if run.status is None:
            broken.append(f"ENDED: run {number} had not ended after {run.seconds:.0f} s")
        elif "Traceback" in run.stderr or not run.records:
            broken.append(f"ENDED: run {number} gave no record, or a traceback")
        elif run.is_doubt and seen.cell.program in RENDERS:
            status = 75 if {error["retry"] for error in run.errors} == {"after"} else 1
            if run.status != status:
                broken.append(f"ENDED: run {number} is in doubt, its status {run.status}")
    if seen.proxied == 0:
        broken.append("the proxy saw nothing: this cell proves nothing")
    return broken
