"""The seal: what reaches for the real world is named; what does not is left alone."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from time import monotonic_ns

import pytest

from kelpie.sim.escape import sealed
from kelpie.sim.loop import EscapedSimulationError, SimulatedLoop

pytestmark = pytest.mark.requirement("SIM-SEALED")


class Moment(datetime):
    """A moment of a user's own."""


ESCAPES: dict[str, Callable[[], object]] = {
    "time.time": lambda: time.time(),  # noqa: PLW0108  looked up when it is called
    "time.monotonic": lambda: time.monotonic(),  # noqa: PLW0108
    "time.sleep": lambda: time.sleep(0),
    "os.urandom": lambda: os.urandom(8),
    "random.random": lambda: random.random(),  # noqa: PLW0108
    "random.SystemRandom": lambda: random.SystemRandom().random(),
    "uuid.uuid4": lambda: uuid.uuid4(),  # noqa: PLW0108
    "secrets.token_hex": lambda: secrets.token_hex(),  # noqa: PLW0108
    "socket.socket": lambda: socket.socket(),  # noqa: PLW0108
    "threading.Thread": lambda: threading.Thread(target=print).start(),
    "subprocess.Popen": lambda: subprocess.run(["true"], check=True),
    "a name imported from time": lambda: monotonic_ns(),  # noqa: PLW0108
    "datetime.now": lambda: datetime.now(UTC),
    "datetime.utcnow": lambda: datetime.utcnow(),  # type: ignore[deprecated]  # noqa: DTZ003, PLW0108
    "datetime.today": lambda: datetime.today(),  # noqa: DTZ002, PLW0108
    "date.today": lambda: date.today(),  # noqa: DTZ011, PLW0108
    "a class below datetime": lambda: Moment.now(UTC),
    "os.system": lambda: os.system("true"),
}
LATE_BOUND = sorted(ESCAPES)
assert monotonic_ns() > 0


@pytest.mark.parametrize("name", LATE_BOUND)
def test_what_reaches_the_real_world_is_named_with_its_place(name: str) -> None:
    with sealed(), pytest.raises(EscapedSimulationError) as caught:
        ESCAPES[name]()
    text = str(caught.value)
    assert __name__.rpartition(".")[2] in text, text
    assert "<lambda>" in text, text


def test_the_present_moment_is_back_after_the_seal() -> None:
    before = datetime.now(UTC)
    with sealed():
        assert datetime.fromtimestamp(0, UTC) < before, "a moment that is known is no escape"
    assert datetime.now(UTC) >= before
    assert isinstance(Moment.now(UTC), Moment)


def test_a_thread_pool_cannot_start_its_threads() -> None:
    with sealed(), ThreadPoolExecutor() as pool, pytest.raises(EscapedSimulationError):
        pool.submit(print)


def test_the_world_is_as_before_after_the_seal() -> None:
    before = (time.time, os.urandom, random.random, socket.socket.__init__, asyncio.wait)
    with pytest.raises(ZeroDivisionError), sealed():
        raise ZeroDivisionError
    after = (time.time, os.urandom, random.random, socket.socket.__init__, asyncio.wait)
    assert after == before
    assert time.time() > 0


def test_another_thread_never_notices() -> None:
    ready, seen = threading.Event(), list[float]()

    def other() -> None:
        ready.wait()
        seen.append(time.monotonic())

    thread = threading.Thread(target=other)
    thread.start()
    with sealed():
        ready.set()
        thread.join()
    assert len(seen) == 1


def test_seeded_numbers_files_and_logs_stay_possible(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with sealed():
        assert random.Random(1).random() == random.Random(1).random()
        (tmp_path / "file").write_text("real")
        logging.getLogger("sim").warning("a log looks at the clock")
    assert (tmp_path / "file").read_text() == "real"
    assert "a log looks" in caplog.text


def test_sets_of_futures_are_read_in_the_order_given() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[int]] = [loop.create_future() for _ in range(40)]
        for number, future in enumerate(futures[:20]):
            future.set_result(number)
        done, pending = await asyncio.wait(futures, timeout=1)
        assert list(done) == futures[:20]
        assert list(pending) == futures[20:]
        assert done.pop() is futures[0]
        assert list(done) == futures[1:20]
        works = [asyncio.sleep(0.1, number) for number in range(20)]
        assert [await each for each in asyncio.as_completed(works)] == list(range(20))

    loop = SimulatedLoop()
    with sealed():
        loop.run_until_complete(main())
        loop.abandon()
    assert loop.is_closed()
