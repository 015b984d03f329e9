"""The units are what systemd takes for units."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNITS = sorted(p for p in (ROOT / "systemd").iterdir() if p.suffix in (".service", ".timer"))


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
    assert sorted(name for name, *_ in commands) == ["listen", "render", "upload"]
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


def installed(home: Path, *args: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    command = ["sh", str(ROOT / "systemd/install.sh"), *args]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return done.stdout


def test_the_worker_is_installed_once_with_the_paths_of_this_checkout(tmp_path):
    env_file = tmp_path / ".dotfiles/imagen-worker.env"
    assert "written" in installed(tmp_path, str(env_file))
    unit = tmp_path / ".config/systemd/user/imagen-worker.service"
    text = unit.read_text()
    assert f"EnvironmentFile=-{env_file}\n" in text
    assert f'ExecStart="{ROOT}/bin/imagen-listen"\n' in text
    assert env_file.stat().st_mode & 0o777 == 0o600
    env_file.write_text("IMAGEN_DATABASE_URL=mine\n")
    assert "as it should be" in installed(tmp_path, str(env_file))
    assert (unit.read_text(), env_file.read_text()) == (text, "IMAGEN_DATABASE_URL=mine\n")


def test_the_installed_unit_verifies(analyze, tmp_path):
    installed(tmp_path)
    unit = tmp_path / ".config/systemd/user/imagen-worker.service"
    assert analyze(Path(shutil.copy(unit, tmp_path))) == ""


def test_the_worker_is_not_started_again_for_what_must_be_changed_first():
    text = (ROOT / "systemd/imagen-worker.service").read_text()
    for line in ("Type=notify", "KillMode=mixed", "Restart=on-failure"):
        assert f"{line}\n" in text
    assert "RestartPreventExitStatus=2\n" in text
