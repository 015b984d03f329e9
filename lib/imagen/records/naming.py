"""What may name a file or a folder: slugs of prompts, dates. Pure."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from datetime import date

_MAX_SLUG = 60  # with a seed of 20 digits and a counter it stays far below the 255 of a file name


def slug(prompt: str) -> str:
    """Give the prompt as [a-z0-9-], at most 60 long; a hash when nothing of it is left.

    >>> slug("A cat, in a fish-bowl!")
    'a-cat-in-a-fish-bowl'
    """
    plain = unicodedata.normalize("NFKD", prompt[:400]).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
    if len(words) > _MAX_SLUG:
        cut = words[: _MAX_SLUG + 1].rpartition("-")[0] or words
        words = cut[:_MAX_SLUG].strip("-")
    return words or "x" + hashlib.sha256(prompt.encode()).hexdigest()[:10]


def is_slug(text: str) -> bool:
    """Whether the text may stand in a file name and a Storage key as it is."""
    return re.fullmatch(r"[a-z0-9-]{1,100}", text) is not None


def is_date(text: str) -> bool:
    """Whether the text is a date as it names a folder."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
