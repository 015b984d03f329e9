"""The error family: codes, advice, exit statuses, and words for the person at the terminal."""

from __future__ import annotations

import errno
from itertools import permutations

import pytest

from imagen import errors
from imagen.errors import ImagenError, Refused, from_os, suggest, worse


def family(root: type[ImagenError] = ImagenError) -> list[type[ImagenError]]:
    return [root, *(one for child in root.__subclasses__() for one in family(child))]


OURS = [one for one in family() if one.__module__.startswith("imagen")]


@pytest.mark.parametrize("kind", OURS)
def test_every_error_has_a_message_a_code_and_sound_advice(kind):
    fault = kind()
    assert fault.message
    assert "\n" not in fault.message
    assert fault.code.isidentifier()
    assert fault.billed in ("no", "yes", "unknown")
    assert fault.retry in ("safe", "after", "never", "reconcile")
    assert fault.exit_status in (1, 2, 75)


@pytest.mark.parametrize("kind", OURS)
def test_status_75_promises_that_nothing_is_paid_twice(kind):
    fault = kind()
    if fault.exit_status == 75:
        assert fault.retry in ("safe", "after")
    if fault.exit_status == 2:
        assert (fault.retry, fault.billed) == ("never", "no"), "and for that nothing was sent"


def test_codes_are_of_one_meaning():
    codes = {}
    for kind in OURS:
        if "code" in vars(kind):
            assert codes.setdefault(kind.code, kind) is kind
    assert len(codes) > 20


ORDER = [0, 75, 1, 2]


@pytest.mark.parametrize(("one", "other"), [*permutations([*ORDER, 130, 143], 2)])
def test_the_worst_status_wins(one, other):
    rank = {status: n for n, status in enumerate(ORDER)} | {130: 9, 143: 9}
    found = worse(one, other)
    assert found in (one, other)
    assert rank[found] == max(rank[one], rank[other])


def test_an_error_in_a_record_leaves_out_what_it_does_not_know():
    assert errors.OutOfCredit().as_record("imagen-render") == {
        "tool": "imagen-render",
        "code": "out_of_credit",
        "message": "The account is out of credit",
        "billed": "no",
        "retry": "never",
        "scope": "setup",
    }
    fault = errors.Throttled("slow down", retry_after_s=0.0, hint="wait", billed="unknown")
    assert fault.as_record("t") == {
        "tool": "t",
        "code": "rate_limited",
        "message": "slow down",
        "hint": "wait",
        "billed": "unknown",
        "retry": "after",
        "retry_after_s": 0.0,
    }


def test_the_line_for_people_carries_the_hint():
    assert Refused("no").as_line() == "no"
    assert Refused("no", hint="do this").as_line() == "no (hint: do this)"


def test_a_fact_of_one_error_does_not_stick_to_its_class():
    Refused("x", hint="h", code="c")
    assert (Refused().hint, Refused().code) == (None, "bad_request")


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("mok", ["mock", "flux"], "did you mean mock?"),
        ("flx", ["mock", "flux", "flex"], "did you mean flux or flex?"),
        ("zzz", ["mock", "flux"], "known: flux, mock"),
        ("zzz", [], None),
        ("zzz", [f"name{n}" for n in range(13)], None),
    ],
)
def test_close_matches(word, known, hint):
    found = suggest(word, known)
    if hint and " or " in hint:
        assert {*found.removesuffix("?").split()} == {*hint.removesuffix("?").split()}
    else:
        assert found == hint


@pytest.mark.parametrize(
    ("number", "retry", "status"),
    [
        (errno.ENOSPC, "safe", 75),
        (errno.EDQUOT, "safe", 75),
        (errno.EACCES, "never", 2),
        (errno.EROFS, "never", 2),
        (errno.ENOTDIR, "never", 2),
        (errno.ENAMETOOLONG, "never", 2),
    ],
)
def test_a_fault_of_the_system_says_what_to_do_about_it(number, retry, status):
    fault = from_os(OSError(number, "the reason", "/some/where"), "cannot write")
    assert fault.message == "cannot write: the reason: /some/where"
    assert (fault.code, fault.retry, fault.exit_status) == ("file", retry, status)
    if number != errno.EDQUOT:
        assert fault.hint


def test_a_fault_of_the_system_without_a_file_or_a_number():
    assert from_os(OSError("just words"), "cannot").message == "cannot: just words"
