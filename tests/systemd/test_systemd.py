"""The units are what systemd takes for units."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALL = sorted(p for p in (ROOT / "systemd").iterdir() if p.suffix in (".service", ".timer"))
COMFYUI = ROOT / "systemd/comfyui.service"  # the one that is not a user's
UNITS = [unit for unit in ALL if unit != COMFYUI]


@pytest.fixture
def analyze(needs):
    needs("systemd-analyze", "systemd")

    def run(*units: Path, whose: str = "--user") -> str:
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(units[0].parent)}
        command = ["systemd-analyze", "verify", whose, "--man=no", *map(str, units)]
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
    for unit in ALL:
        assert "/home/" not in unit.read_text()


def install(home: Path, *args: str, top: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    command = ["sh", str(top / "systemd/install.sh"), *args]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=home, check=False
    )


def installed(home: Path, *args: str) -> str:
    done = install(home, *args)
    assert (done.returncode, done.stderr) == (0, "")
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


@pytest.mark.parametrize(
    "said", ["my files/worker.env", "./my files/worker.env", "~/my files/worker.env"]
)
def test_the_unit_names_the_env_file_from_the_root(said, analyze, tmp_path):
    installed(tmp_path, said)
    unit = tmp_path / ".config/systemd/user/imagen-worker.service"
    (line,) = re.findall("^EnvironmentFile=-(.*)$", unit.read_text(), re.MULTILINE)
    assert line.startswith("/")
    assert Path(line).samefile(tmp_path / "my files/worker.env")
    assert analyze(Path(shutil.copy(unit, tmp_path))) == ""


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("a%h.env", "cannot stand in a unit (hint: another name)"),
        ("it's.env", "cannot stand in a unit"),
        ('"a".env', "cannot stand in a unit"),
        ("$HOME.env", "cannot stand in a unit"),
        ("a\nExecStart=x", "cannot stand in a unit"),
        ("~other/a.env", "~other/a.env: only ~/ is known"),
        (".", "is a folder (hint: name a file in it)"),
        ("new/", "is a folder"),
    ],
)
def test_an_env_file_that_no_unit_can_name_is_refused_and_nothing_is_done(said, says, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    ran = install(tmp_path, said)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert says in ran.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkout_that_no_unit_can_name_is_refused(tmp_path):
    top = tmp_path / "50% done"
    shutil.copytree(ROOT / "systemd", top / "systemd")
    ran = install(tmp_path, top=top)
    assert ran.returncode == 2
    assert f"{top}: quotes" in ran.stderr


def test_make_hands_the_env_file_on_as_it_is():
    rule = (ROOT / "Makefile").read_text().partition("\ninstall-systemd:")[2].splitlines()[1]
    recipe = rule.strip().removeprefix("@").replace("$$", "$")
    recipe = recipe.replace("sh systemd/install.sh", "printf '<%s>'")
    for said in ("it's here.env", "~/a.env"):
        environment = {**os.environ, "ENV_FILE": said}
        done = subprocess.run(
            ["sh", "-c", recipe], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout == f"<{said}>"


def test_the_installed_unit_verifies(analyze, tmp_path):
    installed(tmp_path)
    unit = tmp_path / ".config/systemd/user/imagen-worker.service"
    assert analyze(Path(shutil.copy(unit, tmp_path))) == ""


def test_the_worker_is_not_started_again_for_what_must_be_changed_first():
    text = (ROOT / "systemd/imagen-worker.service").read_text()
    for line in ("Type=notify", "KillMode=mixed", "Restart=on-failure"):
        assert f"{line}\n" in text
    assert "RestartPreventExitStatus=2\n" in text


# -- ComfyUI, a system unit ------------------------------------------------------------------------


def test_the_unit_of_comfyui_verifies(analyze, tmp_path):
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    shutil.copy("/bin/true", python)
    unit = tmp_path / COMFYUI.name
    unit.write_text(COMFYUI.read_text().replace("/var/lib/comfyui", str(tmp_path)))
    assert analyze(unit, whose="--system") == ""
    unit.write_text(unit.read_text().replace("OOMPolicy=stop", "OOMPolicy=perhaps"))
    assert "perhaps" in analyze(unit, whose="--system")


def test_the_unit_of_comfyui_is_hardened(needs):
    analyze = needs("systemd-analyze", "systemd")
    known = subprocess.run([analyze, "--help"], capture_output=True, text=True, check=True).stdout
    if "--offline" not in known:
        pytest.skip("this systemd cannot judge a unit that is not installed (250 and newer can)")
    command = [analyze, "security", "--offline=true", "--no-pager", "--threshold=30", COMFYUI]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_of_comfyui_leaves_the_gpu_and_its_compilers_alone():
    set_here = {line.partition("=")[0] for line in COMFYUI.read_text().splitlines()}
    assert {"NoNewPrivileges", "ProtectSystem", "CapabilityBoundingSet"} <= set_here
    breaking = {"PrivateDevices", "DeviceAllow", "DevicePolicy", "ProtectClock", "ProcSubset"}
    assert {*breaking, "MemoryDenyWriteExecute"} & set_here == set()


def test_comfyui_ends_as_with_ctrl_c_and_starts_again_unless_an_argument_is_wrong():
    text = COMFYUI.read_text()
    for line in ("KillSignal=SIGINT", "Restart=on-failure", "RestartPreventExitStatus=2"):
        assert f"{line}\n" in text


def test_comfyui_listens_on_this_machine_only_unless_its_env_file_says_otherwise():
    text, example = COMFYUI.read_text(), COMFYUI.with_name("comfyui.env.example").read_text()
    defaults = re.findall(r"^Environment=(COMFYUI_.*)$", text, re.MULTILINE)
    assert defaults == re.findall(r"^COMFYUI_.*$", example, re.MULTILINE)
    assert defaults == ["COMFYUI_LISTEN=127.0.0.1", "COMFYUI_PORT=8188", "COMFYUI_ARGS="]
    assert text.index("Environment=COMFYUI_LISTEN") < text.index("EnvironmentFile=")
    assert "ExecStartPre=/usr/bin/test -n ${COMFYUI_LISTEN}\n" in text
    for setting in defaults:
        name = setting.partition("=")[0]
        assert f"${{{name}}}" in text or f" ${name}\n" in text


# -- time and text ---------------------------------------------------------------------------------


def test_no_timer_runs_in_an_hour_that_daylight_saving_skips():
    """Clocks go forward at 0, 1, 2 or 3 o'clock, depending on the country."""
    hours = {
        unit.name: re.search(r"^OnCalendar=(?:.* )?(\S+):\S+$", unit.read_text(), re.MULTILINE)[1]
        for unit in UNITS
        if unit.suffix == ".timer"
    }
    assert len(hours) == 2
    assert all(hour == "*" or int(hour) >= 4 for hour in hours.values()), hours


EXAMPLE = Path(__file__).parents[2] / "systemd" / "imagen-worker.env.example"


@pytest.mark.parametrize("odd", ["a&b", "a$HOME", "a#b", "a b", 'a"b', "a;b", "a\\b", "a`b"])
def test_a_value_in_the_form_of_the_example_is_text_for_a_shell_too(odd, tmp_path):
    """Single quotes are the one form that systemd and a shell read alike."""
    path = tmp_path / "env"
    text = re.sub("^#(?=[A-Z_]+=)", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    values = re.findall(r"^([A-Z_]+)='[^']*'$", text, re.MULTILINE)
    assert values == re.findall(r"^([A-Z_]+)=", text, re.MULTILINE)
    path.write_text(re.sub("='.*'$", lambda _: f"='{odd}'", text, flags=re.MULTILINE))
    shell = 'set -a; . "$0"; set +a; printf %s "$IMAGEN_DATABASE_URL"'
    ran = subprocess.run(["sh", "-c", shell, path], capture_output=True, text=True, check=True)
    assert ran.stdout == odd


GENERATOR = Path("/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator")


@pytest.mark.parametrize("odd", ["a&b", "a#b", "a b", 'a"b', "a;b", "a\\b", "a`b"])
def test_a_value_in_the_form_of_the_example_is_text_for_systemd(odd, tmp_path, needs):
    """Its reader of environment.d is the one of EnvironmentFile=, which also leaves a $ alone."""
    needs("systemd-analyze", "systemd")
    if not GENERATOR.exists():
        pytest.skip(f"no {GENERATOR} here")
    folder = tmp_path / "config" / "environment.d"
    folder.mkdir()
    (folder / "imagen.conf").write_text(f"IMAGEN_DATABASE_URL='{odd}'\n")
    environment = {"XDG_CONFIG_HOME": str(folder.parent), "HOME": str(tmp_path)}
    ran = subprocess.run([GENERATOR], capture_output=True, text=True, env=environment, check=True)
    shell = f'{ran.stdout}\nprintf %s "$IMAGEN_DATABASE_URL"'  # it quotes as a shell reads
    value = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert value == odd
