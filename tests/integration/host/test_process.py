from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kelpie.core.errors import UnavailableError
from kelpie.host.process import HostProcess, HostProcesses
from kelpie.ports.process import ProcessRequest
from tests.waiting import eventually, eventually_async

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def shell(script: str, **fields: object) -> ProcessRequest:
    return ProcessRequest(argv=("sh", "-c", script), environment=ENVIRONMENT, **fields)  # type: ignore[arg-type]


async def collect(process: HostProcess) -> dict[str, bytes]:
    found = {"stdout": b"", "stderr": b""}
    async for stream, data in process.output():
        found[stream] += data
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def is_known(pid: int) -> bool:
    """Returns whether the kernel still holds the process, as a zombie at least."""
    return Path(f"/proc/{pid}").exists()


async def test_input_output_and_status_pass_through() -> None:
    async with HostProcesses().start(shell("cat; echo err >&2; exit 3", stdin=b"in")) as process:
        assert await collect(process) == {"stdout": b"in", "stderr": b"err\n"}
        assert await process.wait() == 3
        assert await process.wait() == 3


async def test_a_signal_is_a_negative_status() -> None:
    async with HostProcesses().start(shell("kill -TERM $$")) as process:
        assert await process.wait() == -signal.SIGTERM


async def test_the_environment_is_exactly_what_was_asked_for() -> None:
    async with HostProcesses().start(shell("env; pwd", directory="/usr")) as process:
        words = (await collect(process))["stdout"].split()
    assert set(words) - {b"_=/usr/bin/env"} == {b"PATH=/usr/bin:/bin", b"PWD=/usr", b"/usr"}


@pytest.mark.requirement("K-21")
async def test_leaving_the_context_kills_the_whole_group() -> None:
    async with HostProcesses().start(shell("sleep 1000 & echo $!; exit 0")) as process:
        assert await process.wait() == 0
        child = int((await anext(process.output())).data)
        assert is_alive(child)
    eventually(lambda: not is_alive(child), within_s=5, what="the background child is dead")


async def test_cancelling_kills_and_reaps() -> None:
    started: list[int] = []

    async def wait_for_ever() -> None:
        async with HostProcesses().start(shell("sleep 1000 & wait")) as process:
            started.append(process.pid)
            await process.wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(wait_for_ever())
        await eventually_async(lambda: asyncio.sleep(0, started), within_s=5, what="it started")
        task.cancel()
    assert task.cancelled()
    assert not is_known(started[0])


@pytest.mark.requirement("K-21")
async def test_killing_an_ended_process_is_harmless() -> None:
    async with HostProcesses().start(shell("exit 0")) as process:
        await process.wait()
        process.kill()
        process.kill()
    process.kill()
    assert await process.wait() == 0


async def test_a_reader_that_waits_holds_the_process_back() -> None:
    script = "head -c 20000000 /dev/zero; echo done >&2"
    async with HostProcesses().start(shell(script)) as process:
        output = process.output()
        await anext(output)
        size = 0
        async for chunk in output:
            size += len(chunk.data) if chunk.stream == "stdout" else 0
        assert await process.wait() == 0
    assert 19_000_000 < size < 20_000_000


async def test_a_missing_program_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="no-such-program"):
        async with HostProcesses().start(ProcessRequest(argv=("no-such-program",))):
            raise AssertionError("it cannot start")


async def test_a_missing_directory_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="cannot start"):
        async with HostProcesses().start(shell("true", directory="/no/where")):
            raise AssertionError("it cannot start")


async def test_another_user_is_for_root_alone() -> None:
    request = shell("id -u; id -g; id -G", user_id=65_533, group_id=65_532)
    if os.geteuid() != 0:
        with pytest.raises(UnavailableError, match="root"):
            async with HostProcesses().start(request):
                raise AssertionError("it cannot start")
        return
    async with HostProcesses().start(request) as process:
        assert (await collect(process))["stdout"].split() == [b"65533", b"65532", b"65532"]


async def test_descriptors_are_passed_on() -> None:
    read, write = os.pipe()
    try:
        async with HostProcesses().start(
            shell(f"echo hi > /proc/self/fd/{write}", pass_fds=(write,))
        ) as process:
            assert await process.wait() == 0
        assert os.read(read, 10) == b"hi\n"
    finally:
        os.close(read)
        os.close(write)


def test_a_process_dies_with_its_parent() -> None:
    program = textwrap.dedent("""
        import asyncio
        from kelpie.host.process import HostProcesses
        from kelpie.ports.process import ProcessRequest

        async def main():
            request = ProcessRequest(argv=("/bin/sleep", "1000"))
            async with HostProcesses().start(request) as process:
                print(process.pid, flush=True)
                await process.wait()

        asyncio.run(main())
    """)
    source = Path(__file__).parents[3] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        eventually(
            lambda: b"sleep" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0],
            within_s=5, what="the program runs",
        )  # fmt: skip
        parent.kill()
    eventually(lambda: not is_alive(child), within_s=5, what="the child is dead")
