"""A Supabase project for tests and for people: one URL, and behind it what a hosted one has.

PostgreSQL and PostgREST are real; Storage is the look-alike of `storage.py`, whose objects are rows
of that PostgreSQL under its policies.

    with serving(database) as cloud: ...     in a test
    make dev-cloud                           for people: prints what to export, runs until Ctrl-C
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import shlex
import signal
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .gateway import Gateway
from .guarded import DidNotStart
from .postgres import NoPostgres, Place, prepare, started
from .postgrest import NoPostgrest, Rest, find
from .storage import Storage

BUCKET = "imagen-generated"
DAYS_30 = 30 * 86400


class Cloud:
    """A project; its gateway counts what is asked and fails on demand."""

    def __init__(self, database: Place, folder: Path | None = None) -> None:
        """Take its database, and a folder for the bytes of objects, else they are in memory."""
        self.database = database
        self.rest = Rest(database)
        self.storage = Storage(self.rest.secret, database.dsn("authenticator"), folder)
        self.service_key = self.rest.key(lasts_s=DAYS_30)
        self.anon_key = self.rest.key("anon", lasts_s=DAYS_30)

    def start(self, port: int = 0) -> Cloud:
        """Start all that is not there yet."""
        self.rest.start(storage=self.storage, port=port)
        return self

    @property
    def gateway(self) -> Gateway:
        """What answers under the URL: `asked`, `asks(…)`, `fail(…)`, `forget()`."""
        return self.rest.gateway

    @property
    def url(self) -> str:
        """What `supabase.url` is for this one."""
        return self.gateway.url

    @property
    def dsn(self) -> str:
        """The database's address as the role that migrates; it holds a password."""
        return self.database.dsn("migrator")

    def user_key(self, user: str, lasts_s: float = 3600) -> str:
        """Give the token of a user who has signed in."""
        return self.rest.key("authenticated", lasts_s, sub=user, aud="authenticated")

    def new_user(self) -> str:
        """Make a user in auth.users; give their id."""
        user = str(uuid.uuid4())
        with self.database.cursor() as cursor:
            values = [user, f"{user[:8]}@example.net"]
            cursor.execute("insert into auth.users (id, email) values (%s, %s)", values)
        return user

    def environment(self, owner: str | None = None) -> dict[str, str]:
        """Give the variables that point our tools here."""
        said = {"SUPABASE_URL": self.url, "SUPABASE_SERVICE_ROLE_KEY": self.service_key}
        return {**said, **({"IMAGEN_OWNER_USER_ID": owner} if owner else {})}

    def stop(self) -> None:
        """End what was started."""
        self.rest.stop()
        self.storage.close()


@contextmanager
def serving(database: Place) -> Iterator[Cloud]:
    """Serve a project for as long as the block runs."""
    cloud = Cloud(database)
    try:
        yield cloud.start()
    finally:
        cloud.stop()


# -- for people ------------------------------------------------------------------------------------


class Told(BaseException):
    """A signal told us to end."""


def main() -> None:
    """Serve a throw-away project until told to end; whatever ends us, nothing is left."""
    parser = argparse.ArgumentParser(prog="dev-cloud", description=main.__doc__)
    parser.add_argument("--port", default="0", help="of the URL; 0 takes a free one")
    port = _port(parser.parse_args().port)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _told)
    _end_with_parent()
    try:
        find()
        _serve(port)
    except Told:
        print("dev-cloud: ended, nothing is left", file=sys.stderr)
    except (NoPostgres, NoPostgrest, DidNotStart) as fault:
        sys.exit(f"dev-cloud: {fault}")
    except OSError as fault:
        sys.exit(f"dev-cloud: it could not start, with port {port}: {fault}")


def _port(said: str) -> int:
    """Give the port that is asked for; that it cannot be had is said before anything starts."""
    if not said.isascii() or not said.isdigit() or int(said[:6]) > 65535:
        sys.exit(f"dev-cloud: {said!r} is no port (hint: PORT=54321, or none for a free one)")
    try:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the gateway does
            one.bind(("127.0.0.1", int(said)))
    except OSError as fault:
        why = "is taken" if fault.errno == errno.EADDRINUSE else f"cannot be had: {fault.strerror}"
        sys.exit(f"dev-cloud: port {said} {why} (hint: another PORT, or none for a free one)")
    return int(said)


def _told(_number: int, _frame: FrameType | None) -> None:
    raise Told


def _end_with_parent() -> None:
    """End when what started us is killed, say make; on other systems than Linux we live on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _serve(port: int) -> None:
    print("dev-cloud: starting PostgreSQL, PostgREST and Storage", file=sys.stderr)
    cluster = started()
    try:
        prepare(cluster)
        assert cluster.share
        folder = cluster.share.folder / "objects"  # which goes with the cluster
        folder.mkdir()
        with cluster.database() as place:
            cloud = Cloud(place, folder)
            try:
                _tell(cloud.start(port))
                signal.pause()
            finally:
                _undisturbed()
                cloud.stop()
    finally:
        _undisturbed()
        cluster.let_go()


def _undisturbed() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _tell(cloud: Cloud) -> None:
    """Print on stdout what to export, on stderr what a person may want to know."""
    owner = cloud.new_user()
    about = {
        **cloud.environment(owner),
        "SUPABASE_ANON_KEY": cloud.anon_key,
        "SUPABASE_USER_KEY": cloud.user_key(owner, DAYS_30),
        "IMAGEN_DATABASE_URL": cloud.database.tcp("migrator", cloud.database.cluster.password),
    }
    for name, value in about.items():
        print(f"export {name}={shlex.quote(value)}")
    sys.stdout.flush()
    kept = f"throw-away: all of it is gone when this ends (process {os.getpid()}, Ctrl-C)"
    print(f"dev-cloud: ready at {cloud.url}, bucket {BUCKET}; {kept}", file=sys.stderr)


if __name__ == "__main__":
    main()
