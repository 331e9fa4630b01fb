"""The program itself: what it imports, how it ends, what it says."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import kelpie
from kelpie.cli import COMMANDS, main, root
from kelpie.cli.errors import report
from kelpie.core.errors import NotFoundError
from tests.unit.cli.product import Desk, Refusal

SOURCE = str(Path(kelpie.__file__).parents[1])
HEAVY = ("asyncio", "pydantic", "fastapi", "mcp", "httpx", "msgspec", "starlette", "yaml")


def _python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": SOURCE, "HOME": "/nowhere"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def _imported(code: str) -> set[str]:
    """The modules that are imported once ``code`` has run."""
    result = _python("-c", f"{code}\nimport sys; print('\\n' + ' '.join(sys.modules))")
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split())


def test_importing_the_room_imports_click_and_nothing_of_ours() -> None:
    modules = _imported("import kelpie.cli")
    assert {name for name in modules if name.startswith("kelpie")} == {"kelpie", "kelpie.cli"}


@pytest.mark.parametrize("words", [["version"], ["--help"]])
def test_cheap_commands_import_no_heavy_module(words: list[str]) -> None:
    modules = _imported(f"from kelpie.cli import main; main({words!r})")
    assert not modules & set(HEAVY)
    assert "kelpie.core.errors" not in modules


def test_version_needs_little_more_cpu_than_importing_click() -> None:
    """The budget is 1.5 times; the best of several runs keeps a noisy machine out of it."""
    code = "import kelpie.cli, sys; kelpie.cli.main(['version'])"
    ours = min(_cpu_seconds(code) for _ in range(7))
    click_alone = min(_cpu_seconds("import click") for _ in range(7))
    assert ours <= 1.5 * click_alone


def _cpu_seconds(code: str) -> float:
    probe = f"{code}\nimport time; print(time.process_time())"
    return float(_python("-c", probe).stdout.splitlines()[-1])


def test_version_prints_text_or_json() -> None:
    assert _python("-m", "kelpie.cli", "version").stdout == f"kelpie {kelpie.__version__}\n"
    value = json.loads(_python("-m", "kelpie.cli", "version", "--json").stdout)
    assert value == {"version": kelpie.__version__}


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_an_option_too(desk: Desk, option: str) -> None:
    outcome = desk.type(option)
    assert (outcome.status, outcome.stdout) == (0, f"kelpie {kelpie.__version__}\n")


def test_a_shell_can_complete_commands_and_states() -> None:
    def complete(words: str, word: int) -> list[str]:
        asked = {"_KELPIE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(word)}
        code = "import sys; from kelpie.cli import main; sys.exit(main())"
        return _python("-c", code, **asked).stdout.split()

    assert complete("kelpie ag", 1) == ["plain,agents"]
    assert complete("kelpie approvals list --state wai", 4) == ["plain,waiting"]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["agnts"], "kelpie agents?"),
        (["approve", "effect-1"], "kelpie approvals approve?"),
        (["agents", "lst"], "'list'?"),
        (["agents", "list", "--jsn"], "'--json'?"),
    ],
)
def test_a_mistyped_word_gets_the_one_that_was_meant(
    desk: Desk, words: list[str], meant: str
) -> None:
    outcome = desk.type(*words)
    assert outcome.status == 64
    assert f"Did you mean {meant}" in outcome.stderr


def test_a_word_like_no_other_gets_no_guess(desk: Desk) -> None:
    outcome = desk.type("qqqqq")
    assert outcome.status == 64
    assert "No such command 'qqqqq'.\n" in outcome.stderr


def test_an_option_before_its_command_is_told_its_place(desk: Desk) -> None:
    assert "kelpie COMMAND --url" in desk.type("--url", "http://x", "agents", "list").stderr
    error = desk.type("agents", "--json", "list").error()
    assert error["message"] == "--json follows the command: kelpie agents COMMAND --json"
    assert "No such option '--nonsense'" in desk.type("--nonsense").stderr


def test_the_overview_says_what_each_commands_help_says() -> None:
    for name, (place, line) in COMMANDS.items():
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(f"kelpie.cli.commands.{module}"), attribute)
        assert command.name == name
        assert command.help is not None
        assert command.help.splitlines()[0] == line


def list_leaves(
    group: click.Group, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from list_leaves(command, (*words, name))
        else:
            yield (*words, name), command


@pytest.mark.parametrize("words", [words for words, _ in list_leaves(root, ())], ids=" ".join)
def test_every_command_takes_json_and_explains_itself(desk: Desk, words: tuple[str, ...]) -> None:
    command = dict(list_leaves(root, ()))[words]
    options = {name for parameter in command.params for name in parameter.opts}
    assert "--json" in options
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help
    outcome = desk.type(*words, "--help")
    assert outcome.status == 0
    assert outcome.stdout.startswith(f"Usage: kelpie {' '.join(words)}")


@pytest.mark.parametrize(
    "words", [["nonsense"], ["agents", "nonsense"], ["version", "--nonsense"], ["agents", "show"]]
)
def test_a_wrong_command_line_exits_64(desk: Desk, words: list[str]) -> None:
    outcome = desk.type(*words)
    assert outcome.status == 64
    assert "Usage: kelpie" in outcome.stderr
    error = desk.type(*words, "--json").error()
    assert (error["code"], error["exit_status"]) == ("usage", 64)
    assert error["next"].endswith("--help")


def test_without_a_command_the_overview_is_shown_and_64_returned(desk: Desk) -> None:
    outcome = desk.type()
    assert outcome.status == 64
    assert "Commands:" in outcome.stderr + outcome.stdout


def test_a_failure_names_the_next_command(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/agents/"] = Refusal(401, "unauthorized", "send a key")
    outcome = desk.type("agents", "list")
    assert outcome.status == 6
    assert outcome.stderr.startswith("kelpie: send a key\n  next: KELPIE_API_KEY=")


def test_typed_errors_system_errors_and_defects_have_their_own_statuses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert report(NotFoundError("agent", "x\x1b"), as_json=False) == 4
    assert "x\\x1b" in capsys.readouterr().err
    assert report(FileNotFoundError(2, "No such file", "/x"), as_json=False) == 74
    assert capsys.readouterr().err == "kelpie: /x: No such file\n"
    assert report(OSError(28, "No space left on device"), as_json=False) == 74
    assert "free some space where the store lies\n  next: kelpie doctor" in capsys.readouterr().err
    assert report(FileExistsError(17, "File exists", "/x"), as_json=False) == 74
    assert "/x: File exists; a directory is needed there" in capsys.readouterr().err
    assert report(ValueError("a bug"), as_json=True) == 70
    text = capsys.readouterr().err
    assert "Traceback" in text or "ValueError: a bug" in text
    assert json.loads(text.splitlines()[-1])["error"]["code"] == "internal"


def test_optimised_python_is_refused() -> None:
    result = _python("-O", "-m", "kelpie.cli", "version")
    assert (result.returncode, result.stdout) == (78, "")
    assert "assertions" in result.stderr


def test_a_reader_that_leaves_is_no_error_message() -> None:
    code = (
        "import os, sys; from kelpie.cli import main\n"
        "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)\n"
        "sys.exit(main(['config', 'show']))"
    )
    result = _python("-c", code)
    assert (result.returncode, result.stderr) == (141, "")


def test_ctrl_c_exits_130_with_one_line() -> None:
    code = (
        "import os, signal, sys, kelpie.cli.commands.version as v\n"
        "from kelpie.cli import main\n"
        "v.version.callback = lambda **_: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(main(['version']))"
    )
    result = _python("-c", code)
    assert result.returncode == 130
    assert result.stderr.strip() == "kelpie: interrupted"


def test_the_real_world_is_read_when_none_is_handed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KELPIE_SERVER_PORT", "9999")
    monkeypatch.chdir(tmp_path)
    assert main(["config", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["server.port"] == 9999
