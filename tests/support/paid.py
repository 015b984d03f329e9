"""Renders that are paid for: the real imagen-render against the Replicate look-alike."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servers.replicate import SCHNELL, TOKEN, Replicate

if TYPE_CHECKING:
    from conftest import Ran, Tools

PRICE = 0.003  # USD for each image, by the package's price list
QUICK = "poll_s: 0.01, settle_s: 0.05, retry_s: 0.01"


class Paid:
    """A machine with one paid backend, `rep`; called, it runs imagen-render there."""

    def __init__(self, tool: Tools, server: Replicate, configure: Callable[[str], Path]) -> None:
        self.tool = tool
        self.server = server
        self.state = tool.folder / "state" / "imagen"
        self.ledger = self.state / "ledger.sqlite3"
        self.write = configure
        self.configure()

    def configure(self, more: str = "", model: str = SCHNELL, keys: str = QUICK) -> None:
        """Write the configuration; `more` are lines of their own."""
        rep = f"{{type: replicate, model: '{model}', base_url: '{self.server.url}', {keys}}}"
        self.write(f"default_backend: rep\nbackends:\n  rep: {rep}\n{more}\n")

    def __call__(self, *args: object, **more: Any) -> Ran:
        """Run imagen-render with small images to its end."""
        return self.tool("render", *self._small(args), **more)

    def together(self, commands: Iterable[tuple[object, ...]], **more: Any) -> list[Ran]:
        """Run imagen-render with each of these arguments, all at once."""
        started = [
            self.tool.start("render", *self._small(args), stdin=subprocess.DEVNULL, **more)
            for args in commands
        ]
        return [self.tool.ended(child) for child in started]

    @staticmethod
    def _small(args: tuple[object, ...]) -> tuple[object, ...]:
        return (*args, "--size=512x512")

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Look into the ledger, or change it behind everybody's back."""
        with closing(sqlite3.connect(self.ledger)) as db, db:
            return db.execute(statement, values).fetchall()

    def age(self, seconds: float) -> None:
        """Let everything in the ledger be that much older."""
        self.set_clock(seconds)
        self.sql("update submits set attempt_clock = attempt_clock - ?", seconds)

    def set_clock(self, seconds: float) -> None:
        """Let the wall clock have been set forward by so much since, or back."""
        self.sql("update renders set created_at = created_at - ?", seconds)
        names = ("intended_at", "attempt_at")
        changes = ", ".join(f"{name} = {name} - {seconds}" for name in names)
        self.sql(f"update submits set {changes}")

    @property
    def creates(self) -> int:
        """How many predictions are paid for."""
        return self.server.creates


__all__ = ["PRICE", "QUICK", "SCHNELL", "TOKEN", "Paid"]
