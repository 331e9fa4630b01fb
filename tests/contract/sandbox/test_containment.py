"""What a command in a jail can see and reach."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from kelpie.core.digests import digest_bytes

if TYPE_CHECKING:
    from tests.contract.sandbox.conftest import Seat


def test_a_command_sees_its_input_and_reports_both_streams_and_its_status(seat: Seat) -> None:
    result = seat.shell("cat; echo oops >&2; exit 7", stdin="hello")
    assert (result["stdout"], result["stderr"], result["exit_status"]) == ("hello", "oops\n", 7)
    assert result["stopped_by"] == ""


def test_output_is_streamed_in_pieces_as_it_is_printed(seat: Seat) -> None:
    answer = seat.act("stream", argv=["sh", "-c", "echo one; sleep 0.2; echo two >&2"])
    assert answer["pieces"] == ["stdout:one\n", "stderr:two\n"]


def test_a_signal_is_reported_as_a_negative_status(seat: Seat) -> None:
    assert seat.shell("kill -11 $$")["exit_status"] == -11


def test_a_program_that_does_not_exist_ends_with_127(seat: Seat) -> None:
    assert seat.run("no-such-program")["exit_status"] == 127


def test_private_files_of_a_private_workspace_are_readable_inside(seat: Seat) -> None:
    seat.write("secret.txt", "mine", 0o600)
    result = seat.shell("cat secret.txt; pwd")
    assert result["stdout"] == "mine/workspace\n"


@pytest.mark.requirement("SANDBOX-WORKSPACE-UNTOUCHED")
def test_read_access_cannot_change_the_workspace(seat: Seat) -> None:
    path = seat.write("note", "old")
    result = seat.shell("echo new > note; rm note; touch other; chmod 777 note")
    assert result["exit_status"] != 0
    assert path.read_text() == "old"
    assert [entry.name for entry in seat.workspace.iterdir()] == ["note"]


@pytest.mark.requirement("SANDBOX-MOUNTS")
def test_nothing_of_the_host_is_visible_beyond_the_system_and_the_workspace(seat: Seat) -> None:
    result = seat.shell(
        f"ls /; cat /etc/shadow {seat.base}/x; ls /root /home /var; cat /etc/passwd"
    )
    top = set(result["stdout"].split()[:20])
    assert not top & {"root", "home", "var", "work", "srv", "mnt", "opt", "sys", "run", "boot"}
    assert "shadow: No such file" in result["stderr"]
    assert "root:x:0:0:jail" in result["stdout"]


@pytest.mark.requirement("SANDBOX-MOUNTS")
def test_the_environment_of_the_host_is_not_passed_on(seat: Seat) -> None:
    result = seat.shell("env; cat /proc/1/environ /proc/self/environ", environment={"GIVEN": "yes"})
    assert "hunter2" not in result["stdout"]
    assert "GIVEN=yes" in result["stdout"]


@pytest.mark.requirement("SANDBOX-MOUNTS")
def test_processes_of_the_host_are_invisible(seat: Seat) -> None:
    result = seat.shell("ls -d /proc/[0-9]*")
    assert len(result["stdout"].split()) <= 4


@pytest.mark.requirement("SANDBOX-MOUNTS")
def test_no_descriptor_of_the_host_is_inherited(seat: Seat) -> None:
    result = seat.shell("ls /proc/self/fd")
    assert result["stdout"].split() == ["0", "1", "2", "3"]


@pytest.mark.requirement("SANDBOX-NETWORK")
def test_the_loopback_of_the_host_is_unreachable(seat: Seat) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        result = seat.run("/usr/bin/python3", "-c", script)
        assert result["exit_status"] == 1
        assert "Connection refused" in result["stderr"]
        server.settimeout(0)
        try:
            server.accept()
        except BlockingIOError:
            return
    raise AssertionError("the jail reached the host")


@pytest.mark.requirement("SANDBOX-NETWORK")
def test_sockets_that_ignore_network_namespaces_are_refused(seat: Seat) -> None:
    script = (
        "import socket\n"
        "for family in (40, 38, 17):\n"
        "    try:\n"
        "        socket.socket(family, socket.SOCK_STREAM)\n"
        "    except OSError as error:\n"
        "        print(error.errno)\n"
        "socket.socketpair()\n"
    )
    result = seat.run("/usr/bin/python3", "-c", script)
    assert result["stdout"].split() == ["97", "97", "97"]
    assert result["exit_status"] == 0


def test_dangerous_system_calls_are_refused(seat: Seat) -> None:
    script = (
        "import ctypes, platform\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "arm = platform.machine() == 'aarch64'\n"
        "calls = (97, 40, 117, 219, 280, 425) if arm else (272, 165, 101, 250, 321, 425)\n"
        "for number in calls:\n"
        "    print(libc.syscall(number, 0x10000000, 0, 0, 0, 0), ctypes.get_errno())\n"
    )
    result = seat.run("/usr/bin/python3", "-c", script)
    assert result["stdout"].split() == ["-1", "1"] * 6


def test_no_further_namespace_can_be_made(seat: Seat) -> None:
    result = seat.shell("unshare --user true; unshare --net true; cat /proc/self/status")
    assert result["stderr"].count("Operation not permitted") == 2
    assert "NoNewPrivs:\t1" in result["stdout"]
    assert "Seccomp:\t2" in result["stdout"]


def test_a_command_runs_as_an_unprivileged_id_of_the_host(seat: Seat) -> None:
    outside = seat.shell("cat /proc/self/uid_map")["stdout"].split()[1]
    assert outside == ("1895825408" if seat.user_id == 0 else str(seat.user_id))


def test_system_directories_and_devices_cannot_be_written(seat: Seat) -> None:
    result = seat.shell("touch /x /usr/x /dev/x /etc/x; mknod /tmp/d c 1 1; ls /tmp")
    assert result["stderr"].count("touch: cannot touch") == 4
    assert result["stdout"] == ""


@pytest.mark.requirement("SANDBOX-WORKSPACE-UNTOUCHED")
def test_overlay_reports_every_kind_of_change_and_leaves_the_workspace_alone(seat: Seat) -> None:
    seat.write("kept", "same")
    seat.write("edited", "old")
    seat.write("gone", "bye")
    (seat.workspace / "tree").mkdir()
    seat.own(seat.workspace / "tree", 0o755)
    seat.write("tree/leaf", "leaf")
    script = (
        "echo new > edited; rm gone; rm -r tree; mkdir made; echo in > made/file;"
        "ln -s /etc/passwd link; touch kept; chmod 755 made/file; mkfifo pipe"
    )
    result = seat.shell(script, access="overlay")
    changes = result["changes"]
    assert sorted(changes) == ["edited", "gone", "link", "made", "made/file", "tree", "tree/leaf"]
    assert changes["edited"]["before"] == digest_bytes(b"old")
    assert changes["edited"]["after"] == digest_bytes(b"new\n")
    assert not changes["gone"]["after"]
    assert not changes["tree/leaf"]["after"]
    assert changes["link"]["kind"] == "link"
    assert changes["made"]["kind"] == "directory"
    assert changes["made/file"]["mode"] == 0o755
    assert result["left_out"] == ["pipe"]
    assert (seat.workspace / "edited").read_text() == "old"
    assert (seat.workspace / "tree" / "leaf").exists()
    assert not (seat.workspace / "made").exists()


def test_a_directory_that_was_replaced_shows_what_it_lost(seat: Seat) -> None:
    (seat.workspace / "tree").mkdir()
    seat.own(seat.workspace / "tree", 0o755)
    seat.write("tree/old", "old")
    result = seat.shell("rm -r tree; mkdir tree; echo x > tree/new", access="overlay")
    changes = result["changes"]
    assert sorted(changes) == ["tree/new", "tree/old"]
    assert not changes["tree/old"]["after"]


def test_a_command_without_writes_reports_no_change(seat: Seat) -> None:
    seat.write("note", "old")
    result = seat.shell("cat note; touch note; chmod 600 note", access="overlay")
    assert result["changes"] == {}


def test_names_that_cannot_travel_are_named_and_everything_is_removed(seat: Seat) -> None:
    script = (
        "import os\n"
        "open(b'bad\\xff', 'w').close()\n"
        "for _ in range(1500):\n"
        "    os.mkdir('d'); os.chdir('d')\n"
        "open('deep', 'w').close()\n"
        "os.chmod('/workspace/d', 0)\n"
    )
    result = seat.run("/usr/bin/python3", "-c", script, access="overlay")
    assert result["exit_status"] == 0
    assert result["left_out"][0] == "bad\\xff"


def test_the_working_directory_is_one_of_the_workspace(seat: Seat) -> None:
    (seat.workspace / "inner").mkdir(mode=0o755)
    assert seat.run("pwd", directory="inner")["stdout"] == "/workspace/inner\n"
    assert seat.run("pwd", directory="nowhere")["error"] == "InvalidFieldError"
    assert seat.run("pwd", directory="../..")["error"] == "InvalidFieldError"
