"""What a command may use, and that nothing survives it."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from kelpie.sandbox.orphans import MARK_VARIABLE, make_mark
from tests.contract.sandbox.conftest import as_user, processes_with
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.contract.sandbox.conftest import Seat

MIB = 1024 * 1024
FORK_BOMB = (
    "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
)


@pytest.mark.requirement("SANDBOX-LIMITS")
def test_a_command_is_killed_at_its_deadline(seat: Seat) -> None:
    result = seat.shell("setsid sleep 100 & sleep 100", bounds={"timeout_ms": 400})
    assert result["stopped_by"] == "time"
    assert result["exit_status"] == -9
    assert 400 <= result["duration_ms"] < 4_000


@pytest.mark.requirement("SANDBOX-LIMITS")
def test_an_output_flood_is_cut_and_ended(seat: Seat) -> None:
    result = seat.run("yes", bounds={"output_bytes": 1_000, "timeout_ms": 20_000})
    assert result["output_cut"]
    assert result["stopped_by"] == "output"
    assert len(result["stdout"]) == 1_000


def test_output_within_the_bound_is_not_cut(seat: Seat) -> None:
    result = seat.shell("printf 1234567890", bounds={"output_bytes": 10})
    assert (result["stdout"], result["output_cut"]) == ("1234567890", False)


@pytest.mark.requirement("SANDBOX-LIMITS")
def test_a_fork_bomb_is_ended(seat: Seat) -> None:
    bounds = {"processes": 20, "timeout_ms": 15_000}
    result = seat.run("/usr/bin/python3", "-c", FORK_BOMB, bounds=bounds)
    assert result["stopped_by"] == "processes"


def test_processes_within_the_bound_run(seat: Seat) -> None:
    result = seat.shell("for i in 1 2 3 4 5 6; do sleep 0.1 & done; wait; echo ok")
    assert result["stdout"] == "ok\n"


def test_a_memory_bomb_of_one_process_is_ended_or_refused(seat: Seat) -> None:
    script = "x = bytearray(400 << 20)\nprint('survived')"
    bounds = {"memory_bytes": 100 * MIB, "timeout_ms": 15_000}
    result = seat.run("/usr/bin/python3", "-c", script, bounds=bounds)
    assert "survived" not in result["stdout"]
    assert result["stopped_by"] == "memory" or "MemoryError" in result["stderr"]


@pytest.mark.requirement("SANDBOX-LIMITS")
def test_a_memory_bomb_of_many_processes_is_ended(seat: Seat) -> None:
    script = (
        "import os, time\n"
        "for _ in range(8):\n"
        "    if os.fork() == 0:\n"
        "        x = bytearray(os.urandom(1)) * (60 << 20)\n"
        "        time.sleep(30)\n"
        "time.sleep(30)\n"
    )
    bounds = {"memory_bytes": 150 * MIB, "timeout_ms": 20_000}
    result = seat.run("/usr/bin/python3", "-c", script, bounds=bounds)
    assert result["stopped_by"] == "memory"


def test_shared_memory_counts_too(seat: Seat) -> None:
    script = (
        "import mmap, time\n"
        "x = mmap.mmap(-1, 300 << 20)\n"
        "for page in range(0, 300 << 20, 4096):\n"
        "    x[page] = 1\n"
        "time.sleep(30)\n"
    )
    bounds = {"memory_bytes": 100 * MIB, "timeout_ms": 20_000}
    result = seat.run("/usr/bin/python3", "-c", script, bounds=bounds)
    assert result["stopped_by"] == "memory"


def test_one_file_larger_than_the_scratch_is_refused(seat: Seat) -> None:
    result = seat.run(
        "dd", "if=/dev/zero", "of=big", "bs=1M", "count=64",
        access="overlay", bounds={"scratch_bytes": 4 * MIB},
    )  # fmt: skip
    assert result["stopped_by"] == "scratch"


@pytest.mark.requirement("SANDBOX-LIMITS")
def test_many_files_larger_than_the_scratch_are_ended(seat: Seat) -> None:
    script = "i=0; while :; do i=$((i+1)); head -c 1000000 /dev/zero > f$i; sleep 0.01; done"
    bounds = {"scratch_bytes": 8 * MIB, "timeout_ms": 20_000}
    result = seat.shell(script, access="overlay", bounds=bounds)
    assert result["stopped_by"] == "scratch"
    assert result["changes"] == {}
    assert not list((seat.base / "blobs").iterdir()), "what is discarded is not stored"


def test_memory_files_are_bounded(seat: Seat) -> None:
    result = seat.run("dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=100")
    assert "No space left" in result["stderr"] or result["stopped_by"] == "memory"


@pytest.mark.requirement("K-20", "SANDBOX-NOTHING-SURVIVES")
def test_a_cancelled_command_leaves_nothing(seat: Seat) -> None:
    script = "setsid sleep 1000 & echo started; touch x; sleep 1000"
    answer = seat.act("cancel", argv=["sh", "-c", script], access="overlay")
    assert answer == {"cancelled": True}
    assert seat.leftovers() == []


@pytest.mark.requirement("SANDBOX-NOTHING-SURVIVES")
def test_a_jail_dies_with_the_process_that_started_it(seat: Seat) -> None:
    word = f"987{os.getpid()}"
    script = f"setsid sleep {word} & sleep {word}"
    driver = seat.start("run", argv=["sh", "-c", script], bounds={"timeout_ms": 60_000})
    with driver:
        eventually(
            lambda: len(processes_with(f"sleep\0{word}")) == 2,
            within_s=20, what="the jail runs",
        )  # fmt: skip
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    eventually(lambda: not processes_with(word), within_s=10, what="the jail is dead")
    assert seat.act("reap") == {"killed": 0}


@pytest.mark.requirement("K-20", "SANDBOX-NOTHING-SURVIVES")
@pytest.mark.parametrize("stage", ["launcher.py", "bwrap", "sleep\x00444"])
def test_a_kill_during_the_start_leaves_no_process_either(seat: Seat, stage: str) -> None:
    mark = make_mark(seat.base / "scratch")
    driver = seat.start("run", argv=["sleep", "444"], access="overlay")
    with driver:
        eventually(
            lambda: [line for line in processes_with(mark) if stage in line],
            within_s=20,
            what=f"{stage} appears",
        )
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    eventually(lambda: not processes_with(mark), within_s=10, what="the jail is dead")
    assert seat.act("reap") == {"killed": 0}


@pytest.mark.requirement("SANDBOX-NOTHING-SURVIVES")
def test_orphans_of_an_earlier_session_are_killed_and_their_scratch_removed(seat: Seat) -> None:
    mark = make_mark(seat.base / "scratch")
    (seat.base / "scratch").mkdir()
    seat.own(seat.base / "scratch", 0o700)
    layer = seat.base / "scratch" / "jail-left"
    (layer / "upper" / "closed").mkdir(parents=True)
    for path in (layer, layer / "upper", layer / "upper" / "closed"):
        seat.own(path, 0o700)
    (layer / "upper" / "closed").chmod(0)
    waiting = "import signal; signal.pause()"
    command = ["/usr/bin/python3", "-c", waiting, MARK_VARIABLE, f"{mark}-0"]
    with subprocess.Popen(command, **as_user(seat.user_id)) as process:
        eventually(lambda: processes_with(f"{mark}-0"), within_s=10, what="the orphan runs")
        assert seat.act("reap") == {"killed": 1}
        assert process.wait(10) == -9
    assert not layer.exists()


def test_a_missing_bubblewrap_is_named_with_the_command_that_installs_it(seat: Seat) -> None:
    answer = seat.run("true", options={"search_path": "/nowhere"})
    assert answer["error"] == "UnavailableError"
    assert "apt-get install bubblewrap" in answer["message"]
    report = seat.act("probe", options={"search_path": "/nowhere"})
    assert report["works"] is False
    assert "apt-get install bubblewrap" in report["detail"]


def test_the_probe_really_starts_a_command_and_says_what_is_enforced(seat: Seat) -> None:
    report = seat.act("probe")
    assert report["works"] is True
    assert "memory by" in report["detail"]
    assert "processes by" in report["detail"]


@pytest.mark.parametrize("bound", ["memory_bytes", "processes", "timeout_ms", "output_bytes"])
def test_a_bound_of_zero_is_refused(seat: Seat, bound: str) -> None:
    assert seat.run("true", bounds={bound: 0})["error"] == "InvalidFieldError"
