"""Statements that the server plans once: sent whole the first time, by name from then on.

A name is made of the statement's text, so that it never stands for another one.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from functools import cache

NOT_THERE, THERE_ALREADY = "26000", "42P05"  # SQLSTATEs: the name of a prepared statement


class Kept:
    """What the server keeps for one connection.

    Behind a transaction pooler the next statement may reach another connection of the server, where
    the name means nothing. As soon as that shows, statements are sent whole for ever.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._there: set[str] = set()
        self._is_kept = True

    def asked(self, sql: str) -> str:
        """Give what to send for a statement with %s for its values."""
        if not self._is_kept:
            return sql
        name, prepare, execute = named(sql)
        return execute if name in self._there else f"{prepare};\n{execute}"

    def answered(self, sql: str) -> None:
        """Remember that the server has it now."""
        self._there.add(named(sql)[0])

    def is_missed(self, sql: str, sqlstate: str) -> bool:
        """Whether a statement failed of its name alone; nothing was done, so it is asked again."""
        name = named(sql)[0]
        if sqlstate == THERE_ALREADY and name not in self._there:
            self._there.add(name)
            return True
        was_kept, self._is_kept = self._is_kept, self._is_kept and sqlstate != NOT_THERE
        return was_kept and not self._is_kept


@cache
def named(sql: str) -> tuple[str, str, str]:
    """Give a statement's name, what makes the server keep it, and what runs it."""
    name = f"imagen_{hashlib.sha256(sql.encode()).hexdigest()[:32]}"
    numbers = itertools.count(1)
    text = re.sub("%s", lambda _: f"${next(numbers)}", sql).rstrip(";")
    return name, f"prepare {name} as {text}", f"execute {name}({', '.join(re.findall('%s', sql))})"
