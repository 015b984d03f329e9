"""The installer of ComfyUI, with the real uv and a small repository in ComfyUI's place."""

from __future__ import annotations

import fcntl
import getpass
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")
Done = subprocess.CompletedProcess[str]
ROOT = Path(__file__).parents[2]
IS_ROOT = os.geteuid() == 0
DAEMON = pwd.getpwnam("daemon")  # another user than root, on every machine
PLACES = "/usr/sbin:/usr/bin:/sbin:/bin"
STEPS = 8  # that say what they found: user, folder, checkout, data, venv, packages, env file, unit
WHEEL = {
    "tiny.py": "",
    "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
    "tiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tiny-1.0.dist-info/RECORD": "",
}
STUBS = {
    "systemctl": """
        case $1 in
        is-*) [ -e "$BOX/log/$1" ] && exit 0 || exit 3 ;;
        enable) touch "$BOX/log/is-enabled" ;;
        restart) touch "$BOX/log/is-active" ;;
        esac
        echo "systemctl $*" >>"$BOX/log/calls" """,
    "useradd": 'echo "useradd $*" >>"$BOX/log/calls"; touch "$BOX/log/user"',
    "sudo": """
        [ "$1" = -- ] || { echo "sudo: $*: only what needs root" >&2; exit 1; }
        shift; echo "sudo $*" >>"$BOX/log/calls"; exec "$@" """,
    "nvidia-smi": '[ "$1" = -L ] && echo "GPU 0: a stand-in"',
}
# one that dies with the installer before the KILL_AT-th command of a run
DEADLY = """
    [ -e "$BOX/log/countdown" ] || exec {real} "$@"
    left=$(cat "$BOX/log/countdown"); left=$((left - 1)); echo "$left" >"$BOX/log/countdown"
    [ "$left" -ne 0 ] || kill -9 "$(cat "$BOX/log/pid")"
    [ "$left" -gt 0 ] || exit 9
    exec {real} "$@" """


class Box:
    """A machine for the installer: its user, its programs, a repository, and where things go."""

    def __init__(self, top: Path, user: str, uv: Path, python: str) -> None:
        self.top, self.user, self.python = top, user, python
        self.bin, self.log, self.units = top / "bin", top / "log", top / "units"
        self.folder, self.env_file = top / "my comfy", top / "etc dir" / "comfyui.env"
        self.source = top / "source"
        for one in (self.bin, self.log, self.units, self.source):
            one.mkdir()
        for name, script in STUBS.items():
            self.stub(name, script)
        (self.bin / "uv").symlink_to(uv)
        shutil.copytree(ROOT / "systemd", top / "systemd")
        self._commit("v1", "first")
        self.own(top)

    def stub(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def _commit(self, tag: str, text: str) -> None:
        wheel = self.source / "tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as made:
            for name, content in WHEEL.items():
                made.writestr(name, content)
        (self.source / "main.py").write_text(f"print({text!r})\n")
        needs = f"# {text}\ntiny @ {wheel.as_uri()}\n"
        (self.source / "requirements.txt").write_text(needs)
        (self.source / ".gitignore").write_text("/user/\n")
        settings = ["user.name=a", "user.email=a@example.com", f"safe.directory={self.source}"]
        git = ["git", *(word for setting in settings for word in ("-c", setting))]
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", text], ["tag", tag]):
            subprocess.run([*git, *command], cwd=self.source, check=True)

    def release(self, tag: str, text: str) -> None:
        """Give ComfyUI a new version."""
        self._commit(tag, text)
        self.own(self.source)

    def own(self, place: Path) -> None:
        """Give it all to the user, whose machine it is, when that is another."""
        if IS_ROOT:
            owner = pwd.getpwnam(self.user)
            for one in [place, *place.rglob("*")]:
                os.chown(one, owner.pw_uid, owner.pw_gid, follow_symlinks=False)

    def command(self, *args: str) -> list[str]:
        places = ["--folder", self.folder, "--env-file", self.env_file, "--units", self.units]
        kind = ["--torch-backend", "cpu", "--python", self.python]
        script = [self.top / "systemd/install-comfyui.sh", "--repository", self.source]
        said = [*script, *places, *kind, "--user", self.user, *args]
        return ["sh", *map(str, said)]

    def run(self, *args: str, check: bool = True) -> Done:
        return self.ran(self.command(*args), check)

    def ran(self, command: list[str], check: bool, **popen: Any) -> Done:
        environment = {
            "PATH": f"{self.bin}:{PLACES}",
            "BOX": str(self.top),
            "HOME": "/root",
            "LANG": "C.UTF-8",
        }
        more = {"cwd": self.top, "env": environment, "timeout": 60, **popen}
        done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
        assert not check or done.returncode == 0, done.stderr
        return done

    def calls(self) -> list[str]:
        """What was asked of systemctl, useradd and sudo; the next call begins anew."""
        log = self.log / "calls"
        found = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return found

    def state(self) -> dict[str, Any]:
        """All that was installed: each file with what is in it, or where it leads."""
        found: dict[str, Any] = {}
        for top in (self.folder, self.units, self.env_file.parent):
            for one in sorted(top.rglob("*")):
                place = str(one.relative_to(self.top))
                if not {"cache", ".git", "__pycache__"} & {*one.parts} and one.name != ".lock":
                    found[place] = _content(one)
        return found

    def forget(self) -> None:
        """Take away all that was installed."""
        for one in (self.folder, self.env_file.parent):
            shutil.rmtree(one, ignore_errors=True)
        for file in [*self.units.iterdir(), *self.log.glob("is-*"), *self.log.glob("calls")]:
            file.unlink()

    def touched(self) -> dict[str, int]:
        """When each installed thing last changed."""
        tops = (self.folder / "ComfyUI", self.folder / "venv", self.folder / "data", self.units)
        files = [one for top in tops for one in [top, *top.rglob("*")]]
        return {str(one): one.lstat().st_ctime_ns for one in [*files, self.env_file]}


def _content(one: Path) -> Any:
    if one.is_symlink():
        return one.readlink()
    return "folder" if one.is_dir() else one.read_bytes()


class UsersBox(Box):
    """A machine whose user runs the installer and has sudo."""

    def ran(self, command: list[str], check: bool, **popen: Any) -> Done:
        who = {"user": DAEMON.pw_uid, "group": DAEMON.pw_gid, "extra_groups": []} if IS_ROOT else {}
        return super().ran(command, check, **who, **popen)


@pytest.fixture(scope="session")
def uv() -> Iterator[Path]:
    """The uv of the test environment, where any user may run it."""
    folder = Path(tempfile.mkdtemp(prefix="imagen-uv-"))
    folder.chmod(0o755)
    yield Path(shutil.copy(Path(sys.executable).parent / "uv", folder / "uv"))
    shutil.rmtree(folder)


@pytest.fixture
def make_box(needs, uv) -> Iterator[Callable[[str], Box]]:
    needs("git", "git")
    # ours may be where no other user comes
    python = shutil.which("python3", path=PLACES) or needs("python3 in /usr/bin", "python3")
    version = "import sys; print(*sys.version_info[:2], sep='.')"
    has = subprocess.run([python, "-c", version], capture_output=True, text=True, check=True)
    tops: list[Path] = []

    def make(who: str) -> Box:
        if who == "root" and not IS_ROOT:
            pytest.skip("only root can run it as root")
        top = Path(tempfile.mkdtemp(prefix="imagen comfy-"))
        top.chmod(0o755)
        tops.append(top)
        user = "daemon" if IS_ROOT else getpass.getuser()
        return (Box if who == "root" else UsersBox)(top, user, uv, has.stdout.strip())

    yield make
    for top in tops:
        shutil.rmtree(top)


@pytest.fixture
def box(make_box) -> Box:
    """A machine whose user runs the installer."""
    return make_box("user")


@pytest.mark.parametrize("who", ["root", "user"])
def test_it_installs_once_and_finds_all_right_the_second_time(make_box, who):
    box = make_box(who)
    first = box.run()
    assert "ComfyUI: to be cloned" in first.stdout
    python = box.folder / "venv/bin/python"
    assert subprocess.run([python, "-c", "import tiny"], check=False).returncode == 0
    assert python.lstat().st_uid == pwd.getpwnam(box.user).pw_uid
    assert (box.folder / "ComfyUI/main.py").read_text() == "print('first')\n"
    assert "COMFYUI_LISTEN=127.0.0.1\n" in box.env_file.read_text()
    started = ["systemctl daemon-reload", "systemctl enable --quiet comfyui"]
    calls = [call for call in box.calls() if call.startswith("systemctl")]
    assert calls == [*started, "systemctl restart comfyui"]
    before = box.touched()
    second = box.run()
    assert box.touched() == before
    right = re.findall(r": (?:as (?:it|they) should be|left as it is)", second.stdout)
    assert len(right) == STEPS
    assert "comfyui.service: enabled and running" in second.stdout
    assert box.calls() == []
    assert not [line for line in second.stdout.splitlines() if "to be" in line]


def test_root_is_asked_for_only_what_needs_it_and_that_is_said_first(box):
    said = box.run().stdout
    assert said.startswith("root is needed (through sudo) for: ")
    through = [call.split()[1] for call in box.calls() if call.startswith("sudo")]
    assert through == ["mkdir", "install", "mv", "install", "mv", *["systemctl"] * 3]


STRIDE = 1 if "IMAGEN_SOAK" in os.environ else 6  # of the commands before which it is killed
COUNTED = ("git", "uv", "mkdir", "touch", "rm", "mv", "cp", "install", "systemctl")


def make_deadly(box: Box) -> None:
    """Let each program that changes something count, and end the installer when its turn comes."""
    for name in COUNTED:
        real = shutil.which(name, path=f"{box.bin}:{PLACES}")
        if Path(real).parent == box.bin:
            real = shutil.move(real, box.bin / f"real-{name}")
        box.stub(name, DEADLY.format(real=shlex.quote(str(real))))


def killed_before(box: Box, number: int) -> bool:
    """Run it and kill it before the command of this number; tell whether it came so far."""
    countdown = box.log / "countdown"
    countdown.write_text(f"{number}\n")
    countdown.chmod(0o666)
    own_pid = ["sh", "-c", 'echo $$ >"$BOX/log/pid"; exec "$@"', "sh"]
    done = box.ran([*own_pid, *box.command()], check=False)
    countdown.unlink()
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def test_killed_between_two_commands_it_goes_on_where_it_stopped(box):
    box.run()
    expected = box.state()
    make_deadly(box)
    number = STRIDE
    box.forget()
    while killed_before(box, number):
        box.run()
        assert box.state() == expected
        assert (box.log / "is-active").exists()
        box.forget()
        number += STRIDE
    assert number > 20


def test_what_a_killed_git_or_uv_left_behind_is_made_anew(box):
    for half in (".ComfyUI.new/.git/objects", ".venv.new/bin"):
        (box.folder / half).mkdir(parents=True)
    box.own(box.folder)
    box.run()
    assert {one.name for one in box.folder.iterdir()} == {"ComfyUI", "cache", "data", "venv"}


def test_a_dry_run_changes_nothing_and_prints_what_a_shell_can_run(box):
    said = box.run("--dry-run").stdout
    assert box.state() == {} and box.calls() == [] and not box.folder.exists()
    box.ran(["sh", "-e", "-c", said], check=True)
    printed = box.state()
    again = box.run("--dry-run").stdout.splitlines()
    assert [line for line in again if not line.startswith("# ")] == []
    box.forget()
    box.run()
    assert box.state() == printed


def test_a_missing_user_is_made_first(make_box):
    box = make_box("root")
    box.stub("id", 'case $* in daemon) [ -e "$BOX/log/user" ] ;; *) exec /usr/bin/id "$@" ;; esac')
    assert "user daemon: to be made" in box.run().stdout
    made = box.calls()[0]
    assert made.startswith("useradd --system --user-group --no-create-home --home-dir")
    assert made.endswith("--shell /usr/sbin/nologin daemon")


def test_a_user_that_cannot_be_made_ends_it_before_anything_else(box):
    box.stub("useradd", 'echo "useradd: no room" >&2; exit 1')
    ran = box.run("--user", "imagen-nobody-else", check=False)
    assert ran.returncode == 1
    assert "make_user failed (hint: mend what it says above, and run the same again)" in ran.stderr
    assert not box.folder.exists()


def test_packages_that_cannot_be_installed_are_tried_again(box):
    box.run()
    asked = box.folder / "ComfyUI/requirements.txt"
    text = asked.read_text()
    asked.write_text("tiny @ file:///nowhere/tiny-1.0-py3-none-any.whl\n")
    ran = box.run("--torch-backend", "cu128", check=False)
    assert ran.returncode == 1
    assert "/nowhere/tiny" in ran.stderr and "install_packages failed (hint: " in ran.stderr
    asked.write_text(text)
    assert "packages: to be installed, for cpu" in box.run().stdout
    assert [one.name for one in box.folder.glob("venv/installed-*")] == ["installed-cpu.txt"]
    assert "packages: as they should be" in box.run().stdout


def test_an_env_file_is_never_overwritten(box):
    box.run("--listen", "192.168.1.10", "--port", "8189")
    text = box.env_file.read_text()
    assert "COMFYUI_LISTEN=192.168.1.10\nCOMFYUI_PORT=8189\n" in text
    box.env_file.write_text(text.replace("COMFYUI_ARGS=\n", "COMFYUI_ARGS=--lowvram\n"))
    mine = box.env_file.read_text()
    ran = box.run("--listen", "127.0.0.1", "--port", "8189")
    assert box.env_file.read_text() == mine
    assert "has no line COMFYUI_LISTEN=127.0.0.1 (hint: write it there" in ran.stderr
    assert "listens on 192.168.1.10 without authentication" in ran.stderr
    assert "COMFYUI_PORT=8189 " not in ran.stderr


def test_a_revision_is_pinned_and_moved_only_when_asked(box):
    box.run("--revision", "v1")
    box.release("v2", "second")
    main = box.folder / "ComfyUI/main.py"
    box.calls()
    assert "ComfyUI: as it should be, at " in box.run().stdout
    assert (main.read_text(), box.calls()) == ("print('first')\n", [])
    moved = box.run("--revision", "v2")
    assert "ComfyUI: to be moved to v2" in moved.stdout
    assert "packages: to be installed" in moved.stdout
    assert main.read_text() == "print('second')\n"
    assert "systemctl restart comfyui" in box.calls()
    assert "to be" not in box.run("--revision", "v2").stdout


def test_changes_of_your_own_in_the_checkout_are_not_lost(box):
    box.run()
    box.release("v2", "second")
    main = box.folder / "ComfyUI/main.py"
    main.write_text("print('mine')\n")
    ran = box.run("--revision", "v2", check=False)
    assert ran.returncode == 1
    assert "main.py" in ran.stderr and "make_checkout failed" in ran.stderr
    assert main.read_text() == "print('mine')\n"


def test_a_newer_python_and_another_backend_are_installed_anew(box):
    box.run()
    (config,) = box.folder.glob("venv/pyvenv.cfg")
    commands = box.run("--torch-backend", "cu128", "--dry-run").stdout
    assert "--reinstall-package torch --reinstall-package torchvision" in commands
    box.run("--torch-backend", "cu128")
    assert [one.name for one in box.folder.glob("venv/installed-*")] == ["installed-cu128.txt"]
    config.write_text(re.sub("version_info = .*", "version_info = 3.9.2", config.read_text()))
    assert "venv: to be made" in box.run("--torch-backend", "cu128").stdout
    assert "version_info = 3.9.2" not in config.read_text()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--folder", "/"], "would be the whole machine"),
        (["--folder", "/srv/50%"], "cannot stand in a unit"),
        (["--folder", 'a"b'], "cannot stand in a unit"),
        (["--folder", "a\nb"], "cannot stand in a unit"),
        (["--folder="], "--folder is empty"),
        (["--user", "root"], "give it a user of its own"),
        (["--user", "nobody"], "give it a user of its own"),
        (["--user", "a; b"], "is no name of a user"),
        (["--port", "0"], "is no port (hint: 1 to 65535)"),
        (["--port", "65536"], "is no port"),
        (["--port", "8188 --enable-cors-header"], "is no port"),
        (["--listen", "127.0.0.1 --cpu"], "is no address"),
        (["--listen", "127.0.0.1\n"], "is no address"),
        (["--user", "root\n"], "is no name of a user"),
        (["--repository", "here\nrm"], "a value has a line break or begins with a dash"),
        (["--revision", "--upload-pack=x"], "is no tag or commit"),
        (["--repository", "--upload-pack=x"], "a value has a line break or begins with a dash"),
        (["--torch-backend", "cpu --index x"], "is no name of a backend"),
        (["--colour", "red"], "no option --colour is known (hint: --help"),
        (["--dryrun"], "no option --dryrun is known (hint: --help"),
        (["--port"], "--port needs a value"),
        (["8188"], "no argument '8188' is known"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_done(box, args, says):
    ran = box.run(*args, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert says in ran.stderr and ran.stderr.count("\n") == 1 + sum("\n" in one for one in args)
    assert (box.calls(), box.state()) == ([], {})


def test_what_is_missing_is_told_with_the_lines_of_both_package_managers(box):
    for name in ("uv", "nvidia-smi"):
        (box.bin / name).unlink()
    ran = box.run("--torch-backend", "cu128", check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    for line in ("uv: pacman -S uv;", "pipx install uv", "pacman -S nvidia-open", "nvidia-driver"):
        assert line in ran.stderr
    assert "git:" not in ran.stderr
    planned = box.run("--torch-backend", "cu128", "--dry-run")
    assert "uv: pacman -S uv" in planned.stderr and " uv venv " in planned.stdout
    assert box.state() == {}


def test_an_old_uv_and_a_driver_that_does_not_answer_are_told(box):
    (box.bin / "uv").unlink()
    box.stub("uv", "exit 2")
    box.stub("nvidia-smi", "exit 9")
    ran = box.run("--torch-backend", "auto", check=False)
    assert ran.returncode == 2
    assert "a newer uv than" in ran.stderr and "nvidia-smi -L must name it" in ran.stderr


def test_a_uv_that_the_user_may_not_run_is_told(make_box):
    box = make_box("root")
    (box.bin / "uv").unlink()
    box.stub("uv", 'case $* in "pip install --help") echo --torch-backend ;; esac')
    (box.bin / "uv").chmod(0o700)
    os.chown(box.bin / "uv", 0, 0)
    ran = box.run(check=False)
    assert ran.returncode == 2
    assert "daemon may not run" in ran.stderr and "install uv for everybody" in ran.stderr


def test_what_is_not_ours_is_left_alone(box):
    unit = box.units / "comfyui.service"
    unit.write_text("[Service]\nExecStart=/usr/bin/mine\n")
    ran = box.run(check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "comfyui.service is another's (hint: " in ran.stderr
    assert unit.read_text() == "[Service]\nExecStart=/usr/bin/mine\n"
    assert not box.folder.exists()


def test_the_installed_unit_verifies_though_its_folder_has_a_blank(box, needs):
    needs("systemd-analyze", "systemd")
    box.run()
    unit = box.units / "comfyui.service"
    done = box.ran(["systemd-analyze", "verify", "--man=no", str(unit)], check=True)
    assert (done.stdout, done.stderr) == ("", "")
    text = unit.read_text()
    assert f"User={box.user}\n" in text
    assert f'--base-directory "{box.folder}/data" --listen ${{COMFYUI_LISTEN}}' in text
    assert f"EnvironmentFile=-{box.env_file}\n" in text


def test_a_unit_below_home_may_see_it(box):
    said = box.run("--dry-run", "--folder", "/home/you/comfy").stdout
    assert "ProtectHome=read-only\n" in said
    assert 'ReadWritePaths="/home/you/comfy/data"' in said
    assert "ProtectHome=yes\n" in box.run("--dry-run").stdout


def test_a_folder_of_another_is_refused(make_box):
    box = make_box("root")
    box.folder.mkdir()
    (box.folder / "theirs").touch()
    ran = box.run(check=False)
    assert ran.returncode == 2 and "is not daemon's (hint: another --folder)" in ran.stderr
    os.chown(box.folder, 1, 1)
    ran = box.run("--user", "bin", check=False)
    assert "is not bin's (hint: --user daemon, or another --folder)" in ran.stderr


@pytest.mark.parametrize("who", ["root", "user"])
def test_a_folder_may_be_a_link_and_the_unit_has_where_it_leads(make_box, who):
    box = make_box(who)
    disk = box.top / "large disk"
    disk.mkdir()
    if who == "user":
        box.own(disk)
    box.folder.symlink_to(disk)
    box.run()
    assert f"WorkingDirectory={disk}/data\n" in (box.units / "comfyui.service").read_text()
    assert pwd.getpwuid(disk.stat().st_uid).pw_name == box.user
    assert "to be" not in box.run().stdout


def test_root_makes_nothing_in_what_is_the_users(make_box):
    box = make_box("root")
    theirs = box.top / "theirs"
    theirs.mkdir()
    box.own(theirs)
    said = box.run("--dry-run", "--folder", f"{theirs}/a/b").stdout
    assert re.search("^runuser -u daemon -- mkdir -p .*/theirs/a/b'$", said, re.MULTILINE)
    assert "\nchown" not in said


def test_what_root_writes_goes_through_no_link(box):
    victim = box.top / "victim"
    victim.write_text("theirs\n")
    box.env_file.parent.mkdir()
    for place in (box.env_file, box.units / "comfyui.service"):
        place.with_name(f"{place.name}.new").symlink_to(victim)
    box.own(box.top)
    box.run()
    assert victim.read_text() == "theirs\n"
    for place in (box.env_file, box.units / "comfyui.service"):
        assert place.is_file() and not place.is_symlink()
        assert place.stat().st_mode & 0o777 == 0o644


def test_an_env_file_that_leads_nowhere_is_refused(box):
    box.env_file.parent.mkdir()
    box.env_file.symlink_to("gone")
    box.own(box.env_file.parent)
    ran = box.run(check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "comfyui.env is a link that leads nowhere (hint: " in ran.stderr


def test_two_at_once_do_not_get_in_each_others_way(box):
    box.run()
    held = os.open(box.folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        ran = box.run(check=False)
        assert ran.returncode == 75
        assert "another run is at work in " in ran.stderr
        assert box.run("--dry-run").returncode == 0
    finally:
        os.close(held)
    assert "to be" not in box.run().stdout


def test_a_folder_that_is_closed_to_whoever_runs_it_is_said(make_box):
    if not IS_ROOT:
        pytest.skip("only root can make a folder of another's")
    box = make_box("user")
    box.folder.mkdir(mode=0o700)
    os.chown(box.folder, pwd.getpwnam("bin").pw_uid, -1)
    ran = box.run("--user", "bin", check=False)
    assert ran.returncode == 2
    assert "is closed to daemon (hint: run this as root)" in ran.stderr


def test_make_passes_options_on(tmp_path):
    places = f"--folder {tmp_path}/comfy --units {tmp_path} --env-file {tmp_path}/env"
    options = f"OPTIONS=--dry-run --user comfyui-of-nobody --port 9 {places}"
    done = subprocess.run(
        ["make", "-s", "install-comfyui", options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "useradd --system" in done.stdout and "COMFYUI_PORT=9\n" in done.stdout
