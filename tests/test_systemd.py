"""The units are what systemd takes for units."""

import os
import re
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
    text = unit.read_text()
    for name in re.findall(r"%h/imagen/bin/(imagen-\w+)", text):
        shutil.copy("/bin/true", folder / name)
    text = text.replace("%h/imagen/bin/", f"{folder}/")
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


def test_every_unit_runs_a_tool_with_options_that_it_has(tool):
    commands = [
        line.removeprefix("ExecStart=%h/imagen/bin/imagen-").split()
        for unit in UNITS
        for line in unit.read_text().splitlines()
        if line.startswith("ExecStart=")
    ]
    assert sorted(name for name, *_ in commands) == ["render", "upload"]
    for name, *options in commands:
        assert tool(name, *options, "--help").status == 0


def test_every_timer_has_its_service_and_makes_up_for_what_it_missed():
    timers = [unit for unit in UNITS if unit.suffix == ".timer"]
    assert {unit.stem for unit in timers} == {"imagen-batch@", "imagen-upload-pending"}
    for timer in timers:
        assert timer.with_suffix(".service").is_file()
        assert "Persistent=true" in timer.read_text()


def test_what_a_pending_upload_says_is_no_prompt_in_the_journal():
    service = next(unit for unit in UNITS if unit.name == "imagen-upload-pending.service")
    assert "StandardOutput=null" in service.read_text()


def test_no_unit_names_a_path_of_one_machine():
    for unit in UNITS:
        assert "/home/" not in unit.read_text()
