"""What the tests run for real: our package where it stands, and what must not be missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

import imagen

LIB = Path(imagen.__file__).resolve().parents[1]
REQUIRE_REAL = os.environ.get("IMAGEN_REQUIRE_REAL") == "1"


def missing(what: str) -> NoReturn:
    """Skip for want of something real, or fail where everything must be real."""
    if REQUIRE_REAL:
        pytest.fail(what)
    pytest.skip(what)
