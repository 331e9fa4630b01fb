"""A real PostgreSQL for the tests that need one: its own processes, port and data, synced to disk.

One server per test process, started when the first test asks and ended with the process. Tests
share it, each with a database of its own. Nothing here uses a server that was running before.
"""

from __future__ import annotations

import atexit
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests.system import SYSTEM_PATH
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGE = "postgresql"
SERVERS = Path("/usr/lib/postgresql")
"""Where Debian keeps the programs, a folder for each version."""
PROGRAMS = ("initdb", "postgres")
OWNER = "kelpie"
"""The role that owns everything; it needs no password."""
GUARDED = "guarded"
"""A role that may do the same, but only with `PASSWORD`."""
PASSWORD = "p4ss-w0rd-of-a-test"
START_S = 60.0
STOP_S = 30.0
ACCESS = f"""\
host all {GUARDED} 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""
EMPTY_STORE = """
DO $$ DECLARE
    emptied text;
BEGIN
    IF to_regclass('kelpie.meta') IS NULL THEN
        RETURN;
    END IF;
    FOR emptied IN SELECT relname FROM pg_class WHERE relnamespace = 'kelpie'::regnamespace
        AND relkind = 'r' AND relname NOT IN ('meta', 'shards')
    LOOP
        EXECUTE format('DELETE FROM kelpie.%I', emptied);
    END LOOP;
    DELETE FROM kelpie.meta WHERE name NOT IN ('schema', 'base');
    UPDATE kelpie.shards SET epoch = 0, session = '', pinned = '';
END $$"""
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "100",
    "shared_buffers": "32MB",
    # Nobody asks for the past of a test, and two cores are few.
    "autovacuum": "off",
    "log_min_messages": "warning",
}


def find_programs(path: str | None = None, *, servers: Path = SERVERS) -> Path:
    """Returns the folder that holds the server's programs, or fails the test with the cure."""
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}" if path is None else path
    versions = sorted(servers.glob("*/bin"), key=lambda folder: int(folder.parent.name))
    for folder in (*map(Path, path.split(":")), *reversed(versions)):
        # Links may stand in the path; the server finds its files beside the real program.
        found = [(folder / name).resolve() for name in PROGRAMS]
        if all(os.access(program, os.X_OK) for program in found):
            return found[0].parent
    pytest.fail(
        f"PostgreSQL's programs ({', '.join(PROGRAMS)}) are missing; "
        f"run: sudo apt-get install -y {PACKAGE}",
        pytrace=False,
    )


@dataclass
class PostgresServer:
    """A server under this process; `start` it before, `stop` it after."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    numbers: itertools.count[int] = field(default_factory=itertools.count, repr=False)

    @property
    def log(self) -> str:
        """What the server wrote so far."""
        return (self.folder / "log").read_text(errors="replace")

    def dsn(self, database: str, *, role: str = OWNER, password: str = "") -> str:
        """Returns the address of a database."""
        secret = f":{password}" if password else ""
        return f"postgresql://{role}{secret}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Starts the server and returns once it answers; harmless while it runs."""
        if self.process is not None:
            return
        place = ["-D", str(self.folder / "data"), f"--port={self.port}"]
        options = [f"--{name}={value}" for name, value in SETTINGS.items()]
        programs = find_programs()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                _unprivileged([str(programs / "postgres"), *place, *options]),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(self._answers, within_s=START_S, what="PostgreSQL answers")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"PostgreSQL ended: {self.log[-2_000:]}"
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            pid_file = self.folder / "data" / "postmaster.pid"
            return "ready" in pid_file.read_text()
        return False

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Ends the server; SIGQUIT leaves it as a crash does, SIGINT in good order."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(how)
        process.wait(STOP_S)

    async def execute(self, *statements: str, database: str = "postgres") -> None:
        """Runs statements as the owner, each in a transaction of its own."""
        connection = await asyncpg.connect(self.dsn(database))
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def create_database(self, *, template: str = "template0") -> str:
        """Makes an empty database, or a copy of one that nobody uses, and returns its name."""
        name = f"test_{next(self.numbers)}"
        await self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    async def drop_database(self, name: str) -> None:
        """Removes a database, whoever is connected to it."""
        await self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


class StoreDatabases:
    """Databases with the store's schema and nothing in it, used again and again.

    Emptying one costs a tenth of making one.
    """

    def __init__(self) -> None:
        self._free: list[str] = []

    async def take(self, server: PostgresServer) -> str:
        """Returns a database that nobody uses."""
        return self._free.pop() if self._free else await server.create_database()

    async def give_back(self, server: PostgresServer, name: str) -> None:
        """Empties a database for the next one who asks."""
        await server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{name}' AND pid <> pg_backend_pid()",
            EMPTY_STORE,
            database=name,
        )
        self._free.append(name)


STORE_DATABASES = StoreDatabases()


MADE: list[PostgresServer] = []


@lru_cache(maxsize=1)
def shared_server() -> PostgresServer:
    """Returns this process's server, running; fails the test if the machine has none to offer."""
    server = make_server()
    server.start()
    return server


def stop_all() -> None:
    """Ends every server of this process and removes its data; harmless when done before."""
    while MADE:
        server = MADE.pop()
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)


atexit.register(stop_all)


def make_server() -> PostgresServer:
    """Returns a server with fresh data that has not been started."""
    programs = find_programs()
    folder = Path(tempfile.mkdtemp(prefix="kelpie-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, _unprivileged_user().pw_name)
    command = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", OWNER]
    # What initdb writes need not be synced: a machine that dies takes the test with it.
    command += ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
    done = subprocess.run(
        _unprivileged(command), cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"initdb failed: {done.stderr[-2_000:]}"
    (folder / "data" / "pg_hba.conf").write_text(ACCESS)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    MADE.append(PostgresServer(folder, port))
    return MADE[-1]


async def make_guarded_role(server: PostgresServer) -> None:
    """Makes the role that needs a password, unless it is there."""
    await server.execute(
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{GUARDED}') THEN"
        f" CREATE ROLE {GUARDED} SUPERUSER LOGIN PASSWORD '{PASSWORD}'; END IF; END $$"
    )


def _unprivileged(command: Sequence[str]) -> list[str]:
    """Returns the command as one that dies with its parent, and not as root, which it refuses."""
    as_user: list[str] = []
    if os.geteuid() == 0:
        user = _unprivileged_user()
        as_user = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return ["setpriv", *as_user, "--pdeathsig=QUIT", *command]


def _unprivileged_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.fail("PostgreSQL refuses to run as root and there is no user nobody", pytrace=False)
