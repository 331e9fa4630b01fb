"""The frame around every command: its common options, its settings, its way to the product."""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from kelpie.cli.client import Api, connect
from kelpie.cli.errors import CommandError, bare_error
from kelpie.cli.output import Terminal
from kelpie.cli.world import World, real_world
from kelpie.core.errors import KelpieError
from kelpie.settings import Settings, load_settings

R = TypeVar("R")


class Frame:
    """What a command has at hand.

    Attributes:
        world: The process around it.
        terminal: Where it prints.
    """

    def __init__(
        self,
        world: World,
        terminal: Terminal,
        *,
        config: str | None = None,
        data_dir: str | None = None,
        url: str | None = None,
    ) -> None:
        self.world = world
        self.terminal = terminal
        self._config = config
        self._data_dir = data_dir
        # A flag is stronger than the environment: a directory that is named is the one meant.
        self._url = url or ("" if data_dir else world.environment.get("KELPIE_URL", ""))

    @property
    def as_json(self) -> bool:
        """Whether stdout carries JSON."""
        return self.terminal.as_json

    def settings(self, flags: Mapping[str, object] | None = None) -> Settings:
        """Return the settings; ``flags`` are the command's own, by dotted key.

        Raises:
            ConfigError: A layer is wrong.
        """
        return load_settings(
            environment=self.world.environment,
            cwd=self.world.cwd,
            home=self.world.home,
            config=self._config,
            flags={"data_dir": self._data_dir} | dict(flags or {}),
        )

    def path(self, text: str) -> Path:
        """Return a path of the command line, absolute, without following its last link."""
        return self.world.cwd / Path(text).expanduser()

    def ask(self, work: Callable[[Api], Awaitable[R]], *, drive: bool = False) -> R:
        """Connect, run ``work`` and return what it returns.

        With ``drive`` a product opened in this process also executes what is pending.
        """
        settings = self.settings()

        async def run() -> R:
            async with connect(
                self.world, settings, url=self._url, drive=drive, say=self.terminal.say
            ) as api:
                return await work(api)

        return run_async(run())


def run_async(work: Awaitable[R]) -> R:
    """Run one coroutine in a loop of its own; a lone error comes out of its task groups bare."""

    async def run() -> R:
        _wake_for_signals()
        return await work

    try:
        return asyncio.run(run())
    except BaseExceptionGroup as group:
        raise bare_error(group) from None


def _wake_for_signals() -> None:
    """Let a Ctrl-C end the loop's wait whenever it comes.

    asyncio's own handling of it misses one that arrives right before the loop begins to wait. A
    handler of any signal gives the loop a descriptor that every signal wakes it by.
    """
    if threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGCONT, lambda: None)


def framed(
    *, remote: bool = True, bad_input_status: int | None = None
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Give a command its `Frame` as first argument, and the options that every command has.

    Args:
        remote: Whether it talks to a server, and so takes ``--url``.
        bad_input_status: The exit status of wrong input, where 2 means something else.
    """

    def decorate(function: Callable[..., int | None]) -> Callable[..., int | None]:
        @click.pass_context
        def command(context: click.Context, /, *, as_json: bool, **rest: Any) -> int | None:
            world = context.obj if isinstance(context.obj, World) else real_world()
            terminal = Terminal(as_json=as_json, environment=world.environment)
            common = {name: rest.pop(name, None) for name in ("config", "data_dir", "url")}
            if common["url"] and common["data_dir"]:
                raise click.UsageError("give either --url or --data-dir: they name two stores")
            frame = Frame(world, terminal, **common)
            try:
                return function(frame, **rest)
            except KelpieError as error:
                raise _with_status(CommandError.of(error), bad_input_status) from None
            except CommandError as error:
                raise _with_status(error, bad_input_status) from None

        own: list[click.Parameter] = getattr(function, "__click_params__", [])
        described = cast("Any", functools.update_wrapper(command, function))
        # Click reads the list from its end: what comes first here stands last in the help.
        described.__click_params__ = [*_common_options(remote=remote), *own]
        return command

    return decorate


def _common_options(*, remote: bool) -> list[click.Parameter]:
    options: list[click.Parameter] = [
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON on stdout."),
        click.Option(
            ["--data-dir"],
            metavar="DIR",
            help="Where Kelpie keeps what it owns, as KELPIE_DATA_DIR.",
        ),
        click.Option(["--config"], metavar="FILE", help="Read FILE in place of ./kelpie.toml."),
    ]
    if remote:
        options.insert(1, click.Option(["--url"], metavar="URL", help="Talk to this server."))
    return options


def _with_status(error: CommandError, bad_input_status: int | None) -> CommandError:
    if bad_input_status is not None and error.status == 2:
        error.status = bad_input_status
    return error
