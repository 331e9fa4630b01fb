"""The command line: every verb is a request to the product, and this room renders the answer.

Importing it costs click and nothing else: a command's module is imported when the command runs.
Data goes to stdout, everything else to stderr. Never contains product logic, and never reaches
the store past the HTTP edge (`restore`, which needs a store that nobody has open, is the
exception).
"""

from __future__ import annotations

import os
import sys

import click

from kelpie import __version__

USAGE_STATUS = 64
INTERNAL_STATUS = 70
CONFIG_STATUS = 78
INTERRUPTED_STATUS = 130
BROKEN_PIPE_STATUS = 141

COMMANDS = {
    "serve": ("serve:serve", "Run the server until it is told to stop."),
    "chat": ("chat:chat", "Talk with an agent, and answer what it asks."),
    "agents": ("agents:agents", "Create, list, show, change and delete agents."),
    "actors": ("actors:actors", "Call actors of your own classes, and care for them."),
    "calls": ("calls:calls", "See what became of submitted calls, and take them back."),
    "messages": ("messages:messages", "Send messages to an agent, and read its conversation."),
    "approvals": ("approvals:approvals", "See what waits for a person, and answer it."),
    "effects": ("effects:effects", "See what was done outside, and settle what is unknown."),
    "events": ("events:events", "Follow the event log."),
    "plan": ("plan:plan", "Show what a workspace FILE would change; change nothing."),
    "apply": ("apply:apply", "Carry out a workspace FILE once a person has approved it."),
    "config": ("config:config", "Show the settings and where each came from."),
    "doctor": ("doctor:doctor", "Check the host, the store, the sandbox, the model, the gate."),
    "backup": ("backup:backup", "Copy the whole store, beside a running server too."),
    "restore": ("backup:restore", "Make a store from a backup; it starts held."),
    "store": ("store:store", "Release, measure, check and compact the store."),
    "cluster": ("cluster:cluster", "See the nodes and their shards, and move work between them."),
    "audit": ("audit:audit", "Verify the audit chains."),
    "sim": ("sim:sim", "Run simulated worlds under seeded faults, and look into them."),
    "version": ("version:version", "Print the version."),
}
"""Where each command lives below `kelpie.cli.commands`, and its line in the overview."""


class LazyGroup(click.Group):
    """The root command: knows its commands by name and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names, in the order of the overview."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command, importing its module; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        import importlib  # noqa: PLC0415 - only what runs is imported

        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"kelpie.cli.commands.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names.

        Raises:
            click.UsageError: There is none; the message names what could have been meant.
        """
        name = args[0]
        if name in COMMANDS or name.startswith("-"):
            return super().resolve_command(ctx, args)
        near = [f"kelpie {command}" for command in self._guess(ctx, name)]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise click.UsageError(f"No such command {name!r}.{hint}", ctx)

    def _guess(self, ctx: click.Context, name: str) -> list[str]:
        """Return the groups' commands of exactly this name, else what is written like it."""
        import difflib  # noqa: PLC0415 - only a mistake pays for it

        groups = [(group, self.get_command(ctx, group)) for group in COMMANDS]
        found = [
            f"{group} {name}"
            for group, command in groups
            if isinstance(command, click.Group) and name in command.commands
        ]
        return found or difflib.get_close_matches(name, COMMANDS)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the overview without importing a single command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command takes --json. Exit statuses are listed in docs/reference/cli.md.",
)
@click.version_option(
    __version__, "-V", "--version", message="kelpie %(version)s", help="Print the version."
)
def root() -> None:
    """Run AI agents that can be trusted with real machines."""


def main(arguments: list[str] | None = None, *, world: object = None) -> int:
    """Run one command line and return its exit status.

    ``world`` is what stands for the process around it, a `kelpie.cli.world.World`; None for the
    real one.
    """
    if sys.flags.optimize:
        text = "kelpie: python -O removes the assertions that guard the store; run without it"
        print(text, file=sys.stderr)
        return CONFIG_STATUS
    words = sys.argv[1:] if arguments is None else arguments
    try:
        status = root.main(args=list(words), prog_name="kelpie", standalone_mode=False, obj=world)
        sys.stdout.flush()
    except BrokenPipeError:
        return close_broken_pipe()
    except (click.Abort, KeyboardInterrupt):
        # A terminal has echoed ^C where the cursor was.
        print("\n" * sys.stderr.isatty() + "kelpie: interrupted", file=sys.stderr)
        return INTERRUPTED_STATUS
    except Exception as error:  # noqa: BLE001 - the process's own supervisor
        from kelpie.cli.errors import report  # noqa: PLC0415 - only what runs is imported

        return report(error, as_json="--json" in words)
    return status if isinstance(status, int) else 0


def close_broken_pipe() -> int:
    """Make the interpreter's own last flush harmless once the reader of stdout has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE_STATUS
