"""The agent's part of the story: talk, read, ask, crash, go on.

Everything it says of effects is read from the server, the journal or the workspace; nothing is
taken from the words of a model.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

from letta_client import DefaultHttpxClient, Letta

from demo.cards import check_card, show_card
from demo.claims import Narrator
from demo.machine import find_running, is_alive
from demo.scene import Scene, read_tree, write_tree
from demo.stage import Stage

GRACE_S: Final = 10.0
SQLITE_MAGIC: Final = b"SQLite format 3\0"


class Told(NamedTuple):
    """What the agent's part leaves for the proofs at the end, as effect ids."""

    agent_id: str
    workspace: Path
    write: str
    once: str
    again: str
    landing: str


class AgentStory:
    """One agent with one workspace, across three crashes."""

    def __init__(self, stage: Stage, scene: Scene, narrator: Narrator) -> None:
        self._stage = stage
        self._scene = scene
        self._tell = narrator
        self._workspace = stage.root / "workspace"
        self._client = Letta(
            base_url=stage.url,
            api_key="none-needed",
            http_client=DefaultHttpxClient(trust_env=False),
            max_retries=0,
        )
        self._agent_id = ""

    def run(self) -> Told:
        """Tell it, and return what to prove.

        Raises:
            ClaimError: Something was not as claimed.
        """
        self._begin()
        self._converse()
        write = self._ask_to_write()
        self._survive_while_waiting(write)
        once = self._interrupt_once()
        again, landing = self._interrupt_again()
        self._finish()
        return Told(
            agent_id=self._agent_id,
            workspace=self._workspace,
            write=write["effect_id"],
            once=once,
            again=again,
            landing=landing,
        )

    # --- chapters -------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._tell.chapter("A server and a model, two processes")
        write_tree(self._workspace, self._scene.files)
        outside = self._stage.root / "outside.txt"
        outside.write_text("Nobody in the jail can read this.\n")
        (self._workspace / self._scene.reading.link).symlink_to(outside)
        self._tell.say(self._stage.start_model())
        seconds = self._stage.start_server()
        self._tell.say(
            f"kelpie serve is process {self._stage.server_pid} on {self._stage.url}, "
            f"up after {seconds:.1f} s"
        )
        with (self._stage.data_dir / "kelpie.db").open("rb") as store:
            head = store.read(len(SQLITE_MAGIC))
        self._tell.equal(
            "the server answers, and keeps its store in SQLite in the temporary directory",
            expected=SQLITE_MAGIC,
            seen=head,
        )

    def _converse(self) -> None:
        self._tell.chapter("A conversation, streamed through letta-client")
        agent = self._client.agents.create(
            name=self._scene.agent,
            memory_blocks=[{"label": "persona", "value": self._scene.persona}],
            extra_body={"workspace": str(self._workspace)},
        )
        self._agent_id = agent.id
        self._tell.equal(
            f"letta-client created the agent {self._scene.agent!r} with a workspace",
            expected=(self._scene.agent, [agent.id]),
            seen=(agent.name, [each.id for each in self._client.agents.list()]),
        )
        pieces, stop = self._stream(self._scene.reading.prompt)
        self._tell.true(
            f"the answer came as a stream, in {pieces} pieces, and ended its turn",
            pieces > 1 and stop == "end_turn",
            expected="more than one piece, then end_turn",
            seen=(pieces, stop),
        )
        self._check_reading()

    def _check_reading(self) -> None:
        path = self._scene.reading.path
        self._tell.chapter("Reading is green: it runs at once, in the jail")
        effects = self._effects()
        reads = [
            each
            for each in effects
            if each["kind"] == "files.read" and each["args"].get("path", "").endswith(path)
        ]
        self._tell.true(
            f"the agent read {path}, and found what is there",
            reads and self._scene.reading.holds in reads[0]["outcome"]["result"]["text"],
            expected=self._scene.reading.holds,
            seen=reads or [each["kind"] for each in effects],
        )
        states = self._states_of(reads[0]["effect_id"])
        self._tell.true(
            "policy said green; nobody was asked",
            reads[0]["verdict"]["color"] == "green" and "waiting" not in states,
            expected="green, and never waiting",
            seen=(reads[0]["verdict"], states),
        )
        link = self._scene.reading.link
        outside = [each for each in effects if each["args"].get("path", "").endswith(link)]
        self._tell.true(
            f"it ran in the jail: {link}, a link out of the workspace, leads nowhere there",
            outside and all(each["state"] == "failed" for each in outside),
            expected="a read of it that failed",
            seen=[(each["state"], each["outcome"]) for each in outside],
        )

    def _ask_to_write(self) -> dict[str, Any]:
        self._tell.chapter("Writing is red: it waits for a person")
        _, stop = self._stream(self._scene.task)
        effect = self._stage.waiting("files.apply")
        show_card(self._stage, self._tell, effect["effect_id"])
        path, rewrite = self._scene.rewrite.path, self._scene.rewrite
        card = effect["card"]
        self._tell.equal(
            "the stream ended because the effect needs approval",
            expected=("requires_approval", "red", "write_file"),
            seen=(stop, effect["verdict"]["color"], effect["tool"]),
        )
        self._tell.equal(
            "the card promises exactly the content that was asked for",
            expected=[(path, "update", _digest(rewrite.content))],
            seen=[(each["path"], each["change"], each["after"]) for each in card["files"]],
        )
        check_card(self._tell, effect, diff=True)
        self._tell.equal(
            "nothing has changed on disk",
            expected=self._scene.files,
            seen=read_tree(self._workspace),
        )
        return effect

    def _survive_while_waiting(self, effect: dict[str, Any]) -> None:
        self._tell.chapter("kill -9 while the card waits")
        self._kill()
        listed = self._stage.kelpie("approvals", "list", "--json")
        self._tell.true(
            "without any server, kelpie approvals list still finds the card on disk",
            listed.status == 0
            and effect["effect_id"] in [each["effect_id"] for each in listed.data()],
            expected=effect["effect_id"],
            seen=listed,
        )
        self._restart()
        after = self._stage.waiting("files.apply")
        self._tell.equal(
            "after the restart the same card waits: same id, same digest, same text",
            expected=(effect["effect_id"], effect["digest"], effect["card"]),
            seen=(after["effect_id"], after["digest"], after["card"]),
        )
        self._approve(after)
        done = self._stage.reach(effect["effect_id"], "done", "failed", "voided", "unknown")
        self._tell.equal(
            f"approved, {self._scene.rewrite.path} has the content that the card promised",
            expected=("done", self._scene.rewrite.content),
            seen=(done["state"], (self._workspace / self._scene.rewrite.path).read_text()),
        )

    def _interrupt_once(self) -> str:
        self._tell.chapter("kill -9 while a command runs that nobody may repeat")
        effect = self._ask_to_run(self._scene.once.argv, idempotent=False)
        self._kill_while_running(effect)
        self._restart()
        started = self._stage.effect(effect["effect_id"])
        self._tell.equal(
            "after the restart it is not run again: its one attempt may still be under way",
            expected=("started", 1),
            seen=(started["state"], started["attempt"]),
        )
        left_s = max(started["due_ms"] / 1000 - time.time(), 0)
        self._tell.say(
            f"Its last moment, which the first attempt was given, is {left_s:.0f} s away; "
            "waiting for it ..."
        )
        ended = self._stage.reach(
            effect["effect_id"], "unknown", "done", "failed", within_s=left_s + GRACE_S
        )
        self._tell.equal(
            "then its outcome is unknown: neither success nor failure is made up",
            expected=("unknown", 1),
            seen=(ended["state"], ended["attempt"]),
        )
        self._tell.equal(
            f"no {self._scene.once.leaves} appeared in the workspace",
            expected=False,
            seen=(self._workspace / self._scene.once.leaves).exists(),
        )
        return str(effect["effect_id"])

    def _interrupt_again(self) -> tuple[str, str]:
        self._tell.chapter("kill -9 while a command runs that is declared idempotent")
        effect = self._ask_to_run(self._scene.again.argv, idempotent=True)
        returns = [each.tool_return for each in self._messages("tool_return_message")]
        self._tell.true(
            "the model was told that the outcome before is unknown, and went on",
            any("Unknown outcome" in str(text) for text in returns),
            expected="a tool return that says: Unknown outcome",
            seen=returns,
        )
        self._kill_while_running(effect)
        self._restart()
        ended = self._stage.reach(effect["effect_id"], "done", "failed", "unknown")
        self._tell.equal(
            "after the restart it was run again: attempt 2 is done",
            expected=("done", 2),
            seen=(ended["state"], ended["attempt"]),
        )
        path = self._scene.again.path
        self._tell.equal(
            f"what it changed is held back: {path} is as it was",
            expected=self._scene.files[path],
            seen=(self._workspace / path).read_text(),
        )
        landing = self._stage.waiting("files.apply")
        show_card(self._stage, self._tell, landing["effect_id"])
        self._tell.equal(
            "its changes have a card of their own",
            expected=[(path, _digest(self._scene.again.content))],
            seen=[(each["path"], each["after"]) for each in landing["card"]["files"]],
        )
        check_card(self._tell, landing, diff=True)
        self._approve(landing)
        landed = self._stage.reach(landing["effect_id"], "done", "failed", "voided", "unknown")
        self._tell.equal(
            f"approved, {path} has the content that the card promised",
            expected=("done", self._scene.again.content),
            seen=(landed["state"], (self._workspace / path).read_text()),
        )
        return str(effect["effect_id"]), str(landing["effect_id"])

    def _finish(self) -> None:
        self._tell.chapter("The run ends")
        actor = f"agent/{self._agent_id}"

        def finished() -> list[dict[str, Any]]:
            events = self._stage.pages("/v1/events", "events", actor=actor)
            ends = [each["body"]["run"] for each in events if each["kind"] == "run.finished"]
            return ends if len(ends) > 1 else []

        runs = self._stage.wait(finished, "the run ends")
        self._tell.equal(
            "the run that was interrupted three times is completed",
            expected=["completed", "completed"],
            seen=[run["status"] for run in runs],
        )
        answers = self._messages("assistant_message")
        self._tell.say(f"{self._scene.agent}: {_text_of(answers[-1])}")
        asked = Counter(
            call.tool_call.tool_call_id
            for call in self._messages("tool_call_message", "approval_request_message")
        )
        returned = Counter(each.tool_call_id for each in self._messages("tool_return_message"))
        self._tell.true(
            f"each of the {len(asked)} tool calls has exactly one return in the transcript",
            set(asked) == set(returned) and set(returned.values()) == {1},
            expected=dict(asked),
            seen=dict(returned),
        )

    # --- steps ----------------------------------------------------------------------------------

    def _stream(self, prompt: str) -> tuple[int, str]:
        """Send a message, print the answer as it comes; return its pieces and the stop reason."""
        self._tell.say(f"you: {prompt}")
        pieces, stop, column = 0, "", 0
        stream = self._client.agents.messages.create(
            self._agent_id,
            messages=[{"role": "user", "content": prompt}],
            streaming=True,
            stream_tokens=True,
        )
        for message in stream:
            if message.message_type == "assistant_message":
                if not column:
                    self._tell.piece(f"  {self._scene.agent}: ")
                text = _text_of(message)
                self._tell.piece(text)
                column += len(text)
                pieces += 1
            elif message.message_type == "stop_reason":
                stop = message.stop_reason
        if column:
            self._tell.line()
        return pieces, stop

    def _ask_to_run(self, argv: list[str], *, idempotent: bool) -> dict[str, Any]:
        effect = self._stage.waiting("command.run")
        show_card(self._stage, self._tell, effect["effect_id"])
        self._tell.equal(
            "the card shows the very command, red, and whether it may be repeated",
            expected=(argv, "red", "repeatable" if idempotent else "once"),
            seen=(effect["card"]["argv"], effect["verdict"]["color"], effect["promise"]),
        )
        check_card(self._tell, effect, diff=False)
        self._approve(effect)
        return effect

    def _kill_while_running(self, effect: dict[str, Any]) -> None:
        server, argv = self._stage.server_pid, effect["card"]["argv"]
        pid = self._stage.wait(lambda: find_running(argv, below=server), "the command runs")
        started = self._stage.effect(effect["effect_id"])
        self._tell.equal(
            f"approved, the command runs in the jail, as process {pid} of this machine",
            expected=("started", 1),
            seen=(started["state"], started["attempt"]),
        )
        self._kill()
        self._stage.wait(lambda: not is_alive(pid), "the jail dies with its server", within_s=5)
        self._tell.equal("the jail died with its server", expected=False, seen=is_alive(pid))

    def _kill(self) -> None:
        pid = self._stage.server_pid
        self._tell.equal(
            f"kill -9 {pid}: the server is gone", expected=-9, seen=self._stage.kill_server()
        )

    def _restart(self) -> None:
        seconds = self._stage.start_server()
        self._tell.say(f"kelpie serve again, process {self._stage.server_pid}, {seconds:.1f} s")

    def _approve(self, effect: dict[str, Any]) -> None:
        done = self._stage.kelpie(
            *("approvals", "approve", effect["effect_id"], "--digest", effect["digest"])
        )
        self._tell.equal("kelpie approvals approve, bound to the digest", expected=0, seen=done[0])

    # --- looking --------------------------------------------------------------------------------

    def _effects(self) -> list[dict[str, Any]]:
        return self._stage.pages("/v1/effects", "effects", actor=f"agent/{self._agent_id}")

    def _states_of(self, effect_id: str) -> list[str]:
        return [
            event["body"]["state"]
            for event in self._stage.pages("/v1/events", "events", actor=f"agent/{self._agent_id}")
            if event["kind"].startswith("effect.") and event["body"]["effect_id"] == effect_id
        ]

    def _messages(self, *kinds: str) -> list[Any]:
        page = self._client.agents.messages.list(self._agent_id, order="asc", limit=200)
        return [each for each in page if each.message_type in kinds]


def _text_of(message: Any) -> str:
    content = message.content
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
