"""What becomes of a question when the server, or the way to it, fails: no server is needed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import pytest

from kelpie.core.errors import (
    ConfigError,
    CorruptionError,
    DiskFullError,
    InvalidFieldError,
    KelpieError,
    OverloadedError,
    StoreAwayError,
    StoreError,
    StoreVersionError,
)
from kelpie.core.limits import DATABASE_ATTEMPTS_MAX
from kelpie.storage.postgres.control import Control, ExpectedError
from kelpie.storage.postgres.driver import UNIQUE, refuse_to_open, translate_error
from kelpie.storage.postgres.link import ServerFailedError, WriterLink
from kelpie.storage.records import ShardGrant
from tests.contract.store.world import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from kelpie.storage.postgres.driver import ServerConnection

PLACE = "postgresql://kelpie@db/kelpie"


class ScriptedServer:
    """Answers each question with what comes next: a value, or an error that it raises."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.connections: list[ScriptedConnection] = []

    async def connect(self, _name: str = "") -> ServerConnection:
        self.connections.append(ScriptedConnection(self))
        return cast("ServerConnection", self.connections[-1])

    def answer(self) -> Any:
        value = self.script.pop(0)
        if isinstance(value, BaseException):
            raise value
        return value


class ScriptedConnection:
    """A connection whose writer's row always is at the generation of the connection."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.end = ""

    async def execute(self, _query: str, *_args: Any) -> str:
        return "SELECT 0"

    async def fetchval(self, _query: str, *_args: Any) -> Any:
        return self.server.answer()

    async def fetchrow(self, query: str, *_args: Any, timeout: float | None = None) -> Any:
        if query.startswith("INSERT INTO writers"):
            return (len(self.server.connections), 0, 0, [])
        assert timeout is not None, "no batch waits for ever"
        return self.server.answer()

    async def close(self, *, timeout: float | None = None) -> None:
        assert timeout is not None, "a goodbye is short"
        self.end = "closed"
        if self.server.script:
            self.server.answer()

    def terminate(self) -> None:
        self.end = "terminated"

    def is_closed(self) -> bool:
        return bool(self.end)


async def ask(connection: ServerConnection) -> Any:
    return await connection.fetchval("SELECT 1")


def ends(server: ScriptedServer) -> list[str]:
    return [connection.end for connection in server.connections]


# --- the connection of sessions and shards ------------------------------------------------------


@pytest.mark.parametrize(
    "lost", [ConnectionResetError("gone"), asyncpg.AdminShutdownError("bye"), TimeoutError()]
)
async def test_a_question_whose_connection_is_lost_is_asked_again_over_another(
    lost: Exception,
) -> None:
    server = ScriptedServer(lost, 7)
    assert await Control(server.connect).do(ask) == 7
    assert ends(server) == ["terminated", ""]


async def test_a_question_that_was_undone_for_others_sake_is_asked_again_over_the_same() -> None:
    server = ScriptedServer(asyncpg.DeadlockDetectedError("locked"), 7)
    assert await Control(server.connect).do(ask) == 7
    assert ends(server) == [""]


@pytest.mark.parametrize(
    ("failure", "left"),
    [
        (ConnectionResetError, ["terminated", "terminated"]),
        (asyncpg.LockNotAvailableError, [""]),
    ],
)
async def test_a_question_that_fails_twice_is_given_up_with_the_advice_to_try_again(
    failure: Callable[[str], Exception], left: list[str]
) -> None:
    server = ScriptedServer(failure("one"), failure("two"), 7)
    with pytest.raises(StoreError, match="no answer \\(two\\); try again"):
        await Control(server.connect).do(ask)
    assert ends(server) == left
    assert server.script == [7], "it was not asked a third time"


async def test_a_question_that_the_server_cannot_answer_is_not_asked_again() -> None:
    server = ScriptedServer(asyncpg.DiskFullError("full"), 7)
    with pytest.raises(DiskFullError, match="the cluster's rows"):
        await Control(server.connect).do(ask)
    assert (ends(server), server.script) == ([""], [7])


async def test_a_refusal_that_was_expected_is_left_to_the_caller_to_explain() -> None:
    refusal = asyncpg.UniqueViolationError("twice")
    control = Control(ScriptedServer(refusal, refusal).connect)
    with pytest.raises(ExpectedError, match="twice"):
        await control.do(ask, expected=UNIQUE)
    with pytest.raises(StoreError, match=UNIQUE):
        await control.do(ask)


async def test_a_server_that_nobody_reaches_is_tried_twice_and_then_said_to_be_away() -> None:
    tries: list[str] = []

    async def refuse() -> ServerConnection:
        tries.append("again")
        raise ConnectionRefusedError("refused")

    control = Control(refuse)
    with pytest.raises(StoreError, match="no answer \\(refused\\)"):
        await control.do(ask)
    assert len(tries) == 2
    await control.close()
    assert len(tries) == 2, "nothing is opened in order to close it"


async def test_half_a_conversation_is_not_gone_on_with() -> None:
    server = ScriptedServer(asyncio.CancelledError(), 7)
    control = Control(server.connect)
    with pytest.raises(asyncio.CancelledError):
        await control.do(ask)
    assert await control.do(ask) == 7
    assert ends(server) == ["terminated", ""]


@pytest.mark.parametrize(("goodbye", "end"), [(None, "closed"), (TimeoutError(), "terminated")])
async def test_closing_says_goodbye_once_and_hangs_up_on_a_server_that_does_not_answer(
    goodbye: Exception | None, end: str
) -> None:
    server = ScriptedServer(7, goodbye)
    control = Control(server.connect)
    await control.do(ask)
    await control.close()
    await control.close()
    assert ends(server) == [end]


def test_only_the_living_session_gains_and_loses_shards() -> None:
    control = Control(ScriptedServer().connect)
    control.begin("mine")
    control.gain("mine", [ShardGrant(1, 4), ShardGrant(2, 5)])
    control.gain("other", [ShardGrant(3, 6)])
    control.lose("other", [ShardGrant(1, 4)])
    control.lose("mine", [ShardGrant(1, 3), ShardGrant(2, 5)])
    assert control.grants() == (ShardGrant(1, 4),), "an older epoch takes nothing away"
    control.end("other")
    assert (control.is_living, control.epoch(1), control.epoch(2)) == (True, 4, -1)
    control.end("mine")
    assert (control.is_living, control.shards()) == (False, ())


# --- what errors mean ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "advice"),
    [
        (asyncpg.DiskFullError("x"), DiskFullError, "free some disk space"),
        (asyncpg.DataCorruptedError("x"), CorruptionError, "run a check"),
        (asyncpg.IndexCorruptedError("x"), CorruptionError, "restore a backup"),
        (asyncpg.UndefinedTableError("x"), StoreVersionError, "no store of this version"),
        (asyncpg.TooManyConnectionsError("x"), OverloadedError, "raise max_connections"),
        (asyncpg.ProgramLimitExceededError("x"), InvalidFieldError, "cannot keep one of its texts"),
        (asyncpg.AdminShutdownError("x"), StoreAwayError, "x \\(57P01\\); look at the database"),
        (TimeoutError(), StoreAwayError, "no answer \\(TimeoutError\\)"),
        (asyncpg.CheckViolationError("x"), StoreError, "x \\(23514\\); look at the database"),
    ],
)
def test_a_failure_says_what_to_do_about_it(
    error: Exception, kind: type[KelpieError], advice: str
) -> None:
    with pytest.raises(kind, match=advice) as raised:
        raise translate_error(error, "the store")
    assert raised.type is kind
    assert "the store" in raised.value.message


@pytest.mark.parametrize(
    ("error", "kind", "advice"),
    [
        (asyncpg.InvalidCatalogNameError("x"), ConfigError, "create it first"),
        (asyncpg.InvalidPasswordError("x"), ConfigError, "this user or password"),
        (asyncpg.InvalidAuthorizationSpecificationError("x"), ConfigError, "user or password"),
        (asyncpg.InsufficientPrivilegeError("x"), ConfigError, "let it create schemas"),
        (OSError("x"), StoreError, "start the server"),
        (asyncpg.CannotConnectNowError("x"), StoreError, "x \\(57P03\\)"),
    ],
)
def test_a_database_that_does_not_open_is_named_with_what_to_do(
    error: Exception, kind: type[KelpieError], advice: str
) -> None:
    with pytest.raises(kind, match=advice) as raised:
        raise refuse_to_open(error, PLACE)
    assert raised.type is kind
    assert raised.value.message.startswith(PLACE)


# --- a writer's connection ----------------------------------------------------------------------


async def linked(server: ScriptedServer) -> WriterLink:
    link = WriterLink(server.connect, clock=FakeClock(), holder="h", writer=0)
    await link.open()
    return link


async def test_a_writers_question_is_asked_again_only_when_its_connection_was_lost() -> None:
    server = ScriptedServer(ConnectionResetError("gone"), 7, asyncpg.UndefinedTableError("x"), 8)
    link = await linked(server)
    assert await link.ask(ask) == 7
    with pytest.raises(StoreVersionError):
        await link.ask(ask)
    assert (ends(server), server.script) == (["terminated", ""], [8])


async def test_a_batch_that_was_undone_for_others_sake_is_sent_again_and_again() -> None:
    deadlocks = [asyncpg.DeadlockDetectedError("x")] * (DATABASE_ATTEMPTS_MAX - 1)
    server = ScriptedServer(*deadlocks, (3, [4]))
    assert await (await linked(server)).call("f_1") == 4
    assert ends(server) == [""]


async def test_a_batch_that_is_always_undone_is_given_up() -> None:
    server = ScriptedServer(*[asyncpg.DeadlockDetectedError("x")] * DATABASE_ATTEMPTS_MAX, (3, [4]))
    with pytest.raises(ServerFailedError) as failed:
        await (await linked(server)).call("f_1")
    assert isinstance(failed.value.error, asyncpg.DeadlockDetectedError)
    assert server.script == [(3, [4])], "it was not sent once more"


async def test_a_batch_whose_sender_gives_up_leaves_no_connection_in_the_middle_of_it() -> None:
    server = ScriptedServer(asyncio.CancelledError(), (3, [4]))
    link = await linked(server)
    with pytest.raises(asyncio.CancelledError):
        await link.call("f_1")
    assert await link.call("f_1") == 4
    assert ends(server) == ["terminated", ""]
