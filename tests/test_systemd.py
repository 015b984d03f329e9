"""The units are what systemd takes for units."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[1] / "systemd").glob("*.*"))


@pytest.fixture
def analyze(needs):
    needs("systemd-analyze", "systemd")

    def run(*units: Path) -> str:
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(units[0].parent)}
        command = ["systemd-analyze", "verify", "--user", "--man=no", *map(str, units)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return done.stdout + done.stderr

    return run


def rendered(unit: Path, folder: Path) -> Path:
    """Put a unit where it can be verified: an instance of it, with a program that is there."""
    tool = folder / "imagen-render"
    shutil.copy("/bin/true", tool)
    text = unit.read_text().replace("%h/imagen/bin/imagen-render", str(tool))
    made = folder / unit.name.replace("@.", "@nightly.")
    made.write_text(text)
    (folder / unit.name).write_text(text)
    return made


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_verifies(unit, analyze, tmp_path):
    for other in UNITS:
        rendered(other, tmp_path)
    assert analyze(rendered(unit, tmp_path)) == ""


def test_a_broken_unit_does_not(analyze, tmp_path):
    broken = tmp_path / "broken.service"
    broken.write_text("[Service]\nExecStart=/nowhere/imagen-render\n")
    assert "/nowhere/imagen-render" in analyze(broken)


def test_no_unit_names_a_path_of_one_machine():
    for unit in UNITS:
        assert "/home/" not in unit.read_text()
