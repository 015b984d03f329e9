"""What the ledger knows of a comparison's members when imagen-render could say nothing."""

from __future__ import annotations

from imagen.ledger import Ledger
from imagen.render.comparison import Comparisons


def test_an_interrupted_member_is_pending_done_or_certainly_not_sent(paid):
    paid.server.held = True
    first = paid("a cat", "--id", "x-rep-1", "--wait", 0).record
    comparisons = Comparisons(Ledger(paid.ledger), lambda text: None)
    member = {"prompt": "a cat", "id": "x-rep-1", "backend": "rep"}
    pending = comparisons.record_of(member)["pending"]
    assert pending == first["pending"]
    assert comparisons.is_open("x-rep-1")
    paid.server.held = False
    done = paid("a cat", "--id", "x-rep-1").record
    assert comparisons.record_of(member) == done
    assert not comparisons.is_open("x-rep-1")
    unknown = comparisons.record_of({**member, "id": "x-rep-2"})
    error = unknown["error"]
    assert (error["code"], error["billed"], error["retry"]) == ("interrupted", "no", "safe")
