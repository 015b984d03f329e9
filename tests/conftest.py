"""What every test stands on: an environment without our variables, and the real tools to run."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Any, NamedTuple

import hypothesis
import pytest
from jsonschema import Draft202012Validator

import preloaded
from imagen.records import record
from preloaded import ForkedTool, Preloaded
from real import LIB, missing
from seeds import SEED, VARIABLE

if TYPE_CHECKING:
    from paid import Paid
    from servers.postgres import Cluster, Place
    from servers.postgrest import Rest
    from servers.supabase import Cloud

OURS = ("IMAGEN_", "SUPABASE_", "REPLICATE_", "HF_")
ALSO = ("TMUX", "TMUX_PANE", "NO_COLOR")
FOLDERS = {"HOME": "home", "XDG_CONFIG_HOME": "config", "XDG_STATE_HOME": "state"}
WRITERS = ("render", "generate", "sheet", "compare", "enqueue")
LONG = {
    *("test_worker_chaos.py", "test_killed.py", "test_install_comfyui.py"),
    *("test_bench.py", "test_demo.py"),
}
NO_RECORDS = {"--dry-run", "--output=-", "--version", "--help"}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.setrecursionlimit(5_000)  # the tests read what is nested deep from a deeper place than tools

# how long an example takes says how loaded the machine is, and nothing of the code
hypothesis.settings.register_profile(
    "imagen",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
)
hypothesis.settings.load_profile("imagen")

_record_schema = Draft202012Validator(
    record.schema("record"), format_checker=Draft202012Validator.FORMAT_CHECKER
)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let the order of the tests follow from $IMAGEN_SEED, where nothing else was asked for."""
    if config.getoption("randomly_seed", None) == "default":
        config.option.randomly_seed = SEED


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say how this run can be run again."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and not hasattr(session.config, "workerinput"):
        reporter.write_line(f"{VARIABLE}={SEED} runs these tests in this order again")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode
) -> None:
    """Say it where the failures are, too."""
    if exitstatus:
        terminalreporter.write_line(f"{VARIABLE}={SEED} runs these tests in this order again")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: a test waits for processes more than it computes."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that nobody waits for it at the end."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take away what would steer the tools, and give them a home of their own."""
    for name in list(os.environ):
        if name.startswith(OURS) or name in ALSO:
            monkeypatch.delenv(name)
    for name, folder in FOLDERS.items():
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(name, str(tmp_path / folder))


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    """Where images go when nothing says otherwise."""
    return tmp_path / "home" / "Pictures" / "imagen"


@pytest.fixture
def configure(tmp_path: Path) -> Callable[[str], Path]:
    """Write the configuration file where the tools look for it."""

    def write(text: str) -> Path:
        path = tmp_path / "config" / "imagen" / "config.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def needs() -> Callable[[str, str], str]:
    """Give the path of a program; without it skip, or fail where everything must be real."""

    def find(program: str, debian_package: str) -> str:
        path = shutil.which(program)
        if path is None:
            missing(f"no {program} here (Debian: apt install {debian_package})")
        return path

    return find


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The PostgreSQL of this test run, one for all its workers."""
    from servers import postgres

    root = tmp_path_factory.getbasetemp()
    try:
        found = postgres.shared(root.parent if "PYTEST_XDIST_WORKER" in os.environ else root)
    except postgres.NoPostgres as none:
        missing(str(none))
    yield found
    found.let_go()


@pytest.fixture
def database(cluster: Cluster) -> Iterator[Place]:
    """A migrated database of the test's own."""
    with cluster.database() as place:
        yield place


@pytest.fixture
def pooled(database: Place, needs: Callable[[str, str], str]) -> Iterator[str]:
    """The address of the test's database behind a transaction pooler."""
    from servers.pgbouncer import pooling

    with pooling(database, needs("pgbouncer", "pgbouncer")) as dsn:
        yield dsn


@pytest.fixture
def bare_database(cluster: Cluster) -> Iterator[Place]:
    """A database as a new Supabase project has it; no other test changes roles meanwhile."""
    from servers import postgres

    with cluster.roles_held(), cluster.database(postgres.BARE) as place:
        yield place


@pytest.fixture
def plain_database(cluster: Cluster) -> Iterator[Place]:
    """An empty database, though the server's roles are there; only this test changes roles."""
    with cluster.roles_held(), cluster.database("template0") as place:
        yield place


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[Rest]]:
    """Start a PostgREST for a database: `with serve(database) as rest`."""
    from servers import postgrest

    try:
        postgrest.find()
    except postgrest.NoPostgrest as none:
        missing(str(none))
    return postgrest.serving


@pytest.fixture
def rest(database: Place, serve: Callable[..., AbstractContextManager[Rest]]) -> Iterator[Rest]:
    """A PostgREST for the test's database."""
    with serve(database) as found:
        yield found


@pytest.fixture(scope="session")
def serve_cloud(
    serve: Callable[..., AbstractContextManager[Rest]],
) -> Callable[[Place], AbstractContextManager[Cloud]]:
    """Start a Supabase project for a database: `with serve_cloud(database) as cloud`."""
    from servers import supabase

    return supabase.serving


@pytest.fixture
def cloud(
    database: Place, serve_cloud: Callable[[Place], AbstractContextManager[Cloud]]
) -> Iterator[Cloud]:
    """A Supabase project with a database of the test's own, behind one URL."""
    with serve_cloud(database) as found:
        yield found


class Ran(NamedTuple):
    """How a tool ended, and what it said."""

    status: int
    out: bytes
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of its stdout, parsed."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def record(self) -> dict[str, Any]:
        """The only line of its stdout, parsed."""
        (only,) = self.records
        return only


class Tools:
    """Runs the real executables as processes, in a folder of the test's own."""

    def __init__(self, folder: Path, python: Preloaded | None = None) -> None:
        self.folder = folder
        self.python = python
        self.started: list[subprocess.Popen[bytes]] = []

    def argv(self, name: str, *args: object) -> list[str]:
        """Give the command line of a tool, run by the Python that runs the tests."""
        texts = [os.fsdecode(one) if isinstance(one, bytes) else str(one) for one in args]
        return [sys.executable, "-m", "imagen", *name.split(), *texts]

    def environment(self, env: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """Give the environment with changes; None takes a variable away."""
        changed = {**os.environ, "PYTHONPATH": str(LIB), **(env or {})}
        folder = Path(changed.get("XDG_CONFIG_HOME") or "/")
        if "IMAGEN_CONFIG" not in changed and not (folder / "imagen" / "config.yaml").exists():
            changed = {"IMAGEN_BACKEND": "mock"} | changed  # else render says that nothing is
        return {name: value for name, value in changed.items() if value is not None}

    def __call__(
        self,
        name: str,
        *args: object,
        stdin: bytes | str | list[dict[str, Any]] = b"",
        env: Mapping[str, str | None] | None = None,
        timeout: float = 30,
        check_records: bool = True,
        **popen: Any,
    ) -> Ran:
        """Run a tool to its end; what WRITERS write is held to the schema of a record."""
        with self._process(name, *args, env=env, **popen) as child:
            try:
                out, err = child.communicate(as_bytes(stdin), timeout)
            except BaseException:
                child.kill()
                raise
        ran = Ran(child.returncode, out or b"", (err or b"").decode())
        if check_records and ran.status == 75 and "stderr" not in popen:
            assert "(hint: " in ran.err, f"status 75 without a word what to do: {ran.err}"
        if check_records and name in WRITERS and not NO_RECORDS & {*args}:
            for number, line in enumerate(ran.out.splitlines(), 1):
                broken = [fault.message for fault in _record_schema.iter_errors(json.loads(line))]
                assert not broken, f"line {number} of stdout breaks the schema: {broken}"
        return ran

    def start(
        self, name: str, *args: object, env: Mapping[str, str | None] | None = None, **popen: Any
    ) -> subprocess.Popen[bytes]:
        """Start a tool with pipes; it is killed when the test ends before it."""
        child = self._process(name, *args, env=env, **popen)
        self.started.append(child)
        return child

    def _process(
        self,
        name: str,
        *args: object,
        env: Mapping[str, str | None] | None = None,
        argv: list[str] | None = None,
        cold: bool = False,
        **popen: Any,
    ) -> subprocess.Popen[bytes]:
        """Start a tool: forked where that is the same to it, as a new Python when `cold`."""
        environment = self.environment(env)
        more = {"cwd": self.folder, "stdin": PIPE, "stdout": PIPE, "stderr": PIPE, **popen}
        words = argv or self.argv(name, *args)
        forks = not (argv or cold) and self.python and self.python.can_start(environment, more)
        if self.python and forks:
            return ForkedTool(self.python, words, env=environment, **more)
        return subprocess.Popen(words, env=environment, **more)

    def on_terminal(self, name: str, *args: object, stream: str = "stdout", **env: str) -> str:
        """Run a tool with one of its streams on a terminal; give what that shows."""
        terminal, side = pty.openpty()
        child = self.start(name, *args, env=env, **{stream: side})
        os.close(side)
        shown = b""
        with suppress(OSError):  # all other ends are closed
            while part := os.read(terminal, 4096):
                shown += part
        os.close(terminal)
        child.wait(60)
        return shown.decode().replace("\r\n", "\n")

    def ended(self, child: subprocess.Popen[bytes], timeout: float = 60) -> Ran:
        """Wait for the end of what was started."""
        out, err = child.communicate(timeout=timeout)
        return Ran(child.returncode, out or b"", (err or b"").decode())

    def stop(self) -> None:
        """End what still runs."""
        for child in self.started:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream:
                    with suppress(BrokenPipeError):
                        stream.close()


def as_bytes(stdin: bytes | str | list[dict[str, Any]]) -> bytes:
    if isinstance(stdin, list):
        return b"".join(json.dumps(one).encode() + b"\n" for one in stdin)
    return stdin.encode() if isinstance(stdin, str) else stdin


@pytest.fixture(autouse=True)
def no_signal_comes_again() -> Iterator[None]:
    """A signal that a test has caught from our handlers is not raised again in another one."""
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


@pytest.fixture(scope="session")
def python() -> Iterator[Preloaded | None]:
    """A Python with our modules loaded, that tools are forked from; None where each is new."""
    if not preloaded.IS_WANTED:
        yield None
        return
    process = Preloaded({**os.environ, "PYTHONPATH": str(LIB)})
    yield process
    process.close()


@pytest.fixture
def tool(tmp_path: Path, python: Preloaded | None) -> Iterator[Tools]:
    """Run real tools: `tool("render", "a cat", stdin=[…]).records`."""
    tools = Tools(tmp_path, python)
    yield tools
    tools.stop()


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """Wait until something is true, looking often; fail when it takes too long."""

    def wait(what: Callable[[], Any], seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < end, "it never came"
            time.sleep(0.005)
        return found

    return wait


@pytest.fixture
def paid(
    tool: Tools, configure: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Paid]:
    """Run imagen-render where it is paid for: `paid("a cat", "--id", "k")`."""
    from paid import TOKEN, Paid
    from servers.replicate import Replicate

    monkeypatch.setenv("REPLICATE_API_TOKEN", TOKEN)
    with Replicate() as server:
        yield Paid(tool, server, configure)
