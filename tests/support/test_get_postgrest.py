"""Why there is no PostgREST: the reason reaches whoever runs `make test`, and each skipped test."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from servers import postgrest

SCRIPT = Path(__file__).with_name("get_postgrest.sh")
PROXY = "ERR! code ECONNREFUSED\nnpm ERR! request to https://npm.example/x failed"
SAYS = {
    f"npm {PROXY}\nnpm ERR! A complete log of this run is in x.log": "ECONNREFUSED",
    "npm error code ENOSPC\nnpm error nospc no space left on device": "no space left on device",
    "/usr/bin/env: 'node': No such file or directory": "'node': No such file or directory",
}

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="its package has none here"
)


@pytest.fixture
def venv(tmp_path, monkeypatch):
    folder = tmp_path / "venv"
    folder.mkdir()
    monkeypatch.setattr(postgrest, "NAMED", None)
    monkeypatch.setattr(sys, "prefix", str(folder))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.delenv("POSTGREST_BIN", raising=False)
    return folder


def install(venv, says):
    """Run the script with an npm that fails and says this; give what is told."""
    npm = venv.parent / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{says}\nEND\nexit 1\n")
    npm.chmod(0o755)
    return told_by("sh", SCRIPT, venv)


def told_by(*command, **more):
    """Run a command to its end; give what it tells."""
    ran = subprocess.run(command, capture_output=True, text=True, check=True, **more)
    return ran.stderr


@pytest.mark.parametrize(("says", "reason"), SAYS.items())
def test_an_npm_that_fails_is_quoted_by_make_and_by_each_test_that_is_skipped(venv, says, reason):
    told = install(venv, says)
    assert told.count("\n") == 1
    assert reason in told
    with pytest.raises(postgrest.NoPostgrest) as caught:
        postgrest.find()
    assert reason in str(caught.value)
    assert "apt install npm" not in str(caught.value)


def test_a_reason_is_forgotten_when_it_is_there(venv):
    install(venv, "npm error code ENOSPC")
    program = venv / postgrest.PACKED
    program.parent.mkdir(parents=True)
    program.touch()
    assert postgrest.find() == str(program)


def test_make_tries_it_again_until_it_is_there_and_then_no_more(venv, tmp_path, needs):
    """The virtual environment is set up: nothing else of it is made."""
    project, make = tmp_path / "project", [needs("make", "make"), "-s", "postgrest"]
    (project / "tests/support").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "tests/support/get_postgrest.sh"):
        shutil.copy(SCRIPT.parents[2] / name, project / name)
    venv.rename(project / ".venv")
    for name in (".tools-installed", ".tests-installed"):
        (project / ".venv" / name).touch()
    assert told_by(*make, cwd=project) == "", "nothing failed, and yet it is tried"
    (project / ".venv" / "no-postgrest").write_text("npm was away\n")
    venv.mkdir()
    install(venv, "npm error code ENOSPC")  # an npm that fails, from now on
    for _ in range(2):
        assert "ENOSPC" in told_by(*make, cwd=project)
    (project / ".venv" / "no-postgrest").unlink()
    assert told_by(*make, cwd=project) == ""
