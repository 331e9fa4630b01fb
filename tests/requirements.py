"""Every promise that Kelpie makes, by id. A test names the promises it keeps:

    @pytest.mark.requirement("EFFECT-ONCE-UNKNOWN")

tests/tidy fails on a promise without a test and on a test that names no promise listed here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One promise, in a sentence that a person can check.

    `critical` promises are the ones whose loss would cost a user data, money or trust.
    """

    text: str
    critical: bool = False


REQUIREMENTS: dict[str, Requirement] = {
    "ACTOR-OUTPUT-GATE": Requirement(
        text="A reply or query result leaves only when everything that it read is durable.",
        critical=True,
    ),
    "CRASH-ANY-STEP": Requirement(
        text="A process that dies at any step loses nothing acknowledged, repeats nothing that "
        "must not be repeated, and resumes what it began.",
        critical=True,
    ),
    "DEV-TEST-GROUPS": Requirement(
        text="./dev names the suites that exist when it is asked for one that does not."
    ),
    "PACKAGE-WHEEL": Requirement(
        text="The wheel installed into an empty environment with its declared dependencies runs "
        "`kelpie version`."
    ),
    "TIDY-BITES": Requirement(text="Every rule of the style program finds a planted offence."),
    # --- end to end ------------------------------------------------------------------------------
    "ANSWER-ONCE": Requirement(
        text="Of several answers to one question exactly one counts; the others are told so.",
        critical=True,
    ),
    "CRASH-SIGKILL": Requirement(
        text="A server that is killed at any moment goes on at the next start: each effect keeps "
        "its kind's promise, no acknowledged message is lost, every tool call has its return.",
        critical=True,
    ),
    "DISK-FULL": Requirement(
        text="A full disk is a typed error; nothing that was acknowledged is lost, and the store "
        "takes writes again once there is room.",
        critical=True,
    ),
    "DRAIN": Requirement(
        text="On SIGTERM new requests get a typed 503; what runs finishes, or goes on at the next "
        "start.",
        critical=True,
    ),
    "LETTA-CLIENT": Requirement(
        text="letta-client, as it is published, creates, sends, streams, lists, changes, approves "
        "and deletes, and reads its own types back."
    ),
    "MODEL-GARBAGE": Requirement(
        text="A model that fails or answers garbage ends the step with a typed error, and the "
        "conversation stays usable."
    ),
    "RESTORE-HELD": Requirement(
        text="A restored store starts held: nothing pending is executed before its release, and "
        "what may have run since the copy is unknown.",
        critical=True,
    ),
    "START-WHOLE": Requirement(
        text="A start that fails leaves nothing listening and the store as sound as it was."
    ),
}
