"""`kelpie chat` on a terminal: cards are read and answered inside the conversation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.support.scripts import AFTER, BEFORE, FILE, conversation
from tests.e2e.support.terminal import Terminal

if TYPE_CHECKING:
    from tests.e2e.support.node import Node

INTERRUPTED = 130
CTRL_C, CTRL_D = b"\x03", b"\x04"
QUESTION = "[a]pprove, [d]eny or [s]kip?"


def open_chat(node: Node, *words: str) -> Terminal:
    (node.workspace / FILE).write_text(BEFORE, encoding="utf-8")
    argv = [sys.executable, "-m", "kelpie.cli", "chat", *words]
    return Terminal(argv, environment=node.environment(), cwd=node.directory)


@pytest.mark.covers("kelpie chat")
@pytest.mark.parametrize("beside", [True, False], ids=["beside a server", "alone"])
@pytest.mark.parametrize(("answer", "after"), [("a", AFTER), ("d", BEFORE)])
def test_a_card_is_answered_where_it_appears(
    node: Node, beside: bool, answer: str, after: str
) -> None:
    node.script(*conversation())
    if beside:
        node.serve()
    with open_chat(node, "ada", "--workspace", "workspace") as terminal:
        terminal.await_text("you> ")
        terminal.type("hello")
        terminal.await_text("agent> Hello to you.")
        terminal.await_text("you> ")
        terminal.type("write")
        card = terminal.await_text(QUESTION)
        assert "| -before" in card
        assert "| +after" in card
        assert "| why" in card
        assert (node.workspace / FILE).read_text() == BEFORE
        terminal.type("what?")
        terminal.await_text(QUESTION)
        terminal.type(answer)
        terminal.await_text("agent> That is done.")
        terminal.await_text("you> ")
        terminal.press(CTRL_D)
        assert terminal.await_end() == 0
    assert (node.workspace / FILE).read_text() == after


def test_a_card_that_is_skipped_is_asked_again_in_the_next_chat(node: Node) -> None:
    node.script(*conversation())
    node.serve()
    with open_chat(node, "ada", "--workspace", "workspace") as terminal:
        terminal.await_text("you> ")
        terminal.type("write")
        terminal.await_text(QUESTION)
        terminal.type("s")
        terminal.await_text("kelpie approvals approve effect-")
        terminal.await_text("you> ")
        terminal.press(CTRL_C)
        terminal.await_text("Ctrl-C again leaves.")
        terminal.press(CTRL_C)
        assert terminal.await_end() == INTERRUPTED
    with open_chat(node, "ada") as terminal:
        terminal.await_text(QUESTION)
        terminal.type("approve")
        terminal.await_text("agent> That is done.")
        terminal.press(CTRL_D)
        assert terminal.await_end() == 0
    assert (node.workspace / FILE).read_text() == AFTER


def test_a_run_goes_on_when_its_terminal_leaves_the_server(node: Node) -> None:
    node.script(*conversation())
    node.serve()
    with open_chat(node, "ada") as terminal:
        terminal.await_text("you> ")
        terminal.type("slow")
        terminal.await_text("agent> one")
        terminal.press(CTRL_C)
        terminal.await_text("Ctrl-C again leaves.")
        terminal.press(CTRL_C)
        assert terminal.await_end() == INTERRUPTED
    answer = node.ok("messages", "send", "ada", "hello")
    assert answer["messages"][-1]["content"] == "Hello to you."
    contents = [row["content"] for row in node.ok("messages", "list", "ada")]
    assert contents == ["slow", "one two three four five six", "hello", "Hello to you."]
