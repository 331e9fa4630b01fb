"""The greeting: who becomes a peer, and who is refused for which reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.cluster.handshake import GreetingError, Identity, make_refusal
from kelpie.cluster.messages import Challenge, GreetingRefusal, Hello, Proof, Versions, encode
from kelpie.core.errors import ConfigError
from tests.unit.cluster.nodes import ADDRESS, VERSION_TWO, connecting, dialled, greet, identity


@pytest.mark.requirement("CLUSTER-PEERS-PROVEN")
def test_two_nodes_that_know_the_secret_become_peers() -> None:
    met, met_by = greet(connecting(identity("n1")), dialled(identity("n2")))
    assert met == ("n2", 1)
    assert met_by == ("n1", 1)


@pytest.mark.requirement("CLUSTER-ROLLING-UPGRADE")
@pytest.mark.parametrize(
    ("one", "other", "spoken"),
    [
        (VERSION_TWO, Versions(1, 1), 1),
        (Versions(1, 1), VERSION_TWO, 1),
        (VERSION_TWO, Versions(2, 3), 2),
        (Versions(2, 5), Versions(1, 4), 4),
    ],
)
def test_two_versions_speak_the_highest_that_both_know(
    one: Versions, other: Versions, spoken: int
) -> None:
    met, met_by = greet(
        connecting(identity("n1", versions=one)), dialled(identity("n2", versions=other))
    )
    assert met.version == met_by.version == spoken


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (identity("n2", cluster="c2"), "cluster"),
        (identity("n2", versions=Versions(2, 3)), "version"),
        (identity("n2", addresses=("10.0.0.3:7000",)), "target"),
        (identity("n1"), "name"),
    ],
)
def test_a_greeting_that_does_not_fit_is_refused_with_its_reason(
    other: Identity, reason: str
) -> None:
    with pytest.raises(GreetingError) as caught:
        dialled(other).receive(connecting(identity("n1")).begin())
    assert caught.value.reason == reason
    with pytest.raises(GreetingError, match="refused") as told:
        connecting(identity("n1")).receive(make_refusal(caught.value))
    assert told.value.reason == "refused"


@pytest.mark.requirement("CLUSTER-PEERS-PROVEN")
def test_another_secret_is_refused_before_the_dialled_side_proves_anything() -> None:
    one = connecting(identity("n1", secret=b"quite another secret"))
    other = dialled(identity("n2"))
    proof = one.receive(other.receive(one.begin()).frames[0])
    with pytest.raises(GreetingError) as caught:
        other.receive(proof.frames[0])
    assert caught.value.reason == "proof"


def test_a_node_that_only_reflects_proofs_is_no_peer() -> None:
    one = connecting(identity("n1"))
    one.begin()
    challenge = encode(Challenge(version=1, node="n2", nonce=bytes(32)))
    mine = one.receive(challenge).frames[0]
    with pytest.raises(GreetingError) as caught:
        one.receive(mine)
    assert caught.value.reason == "proof"


def test_a_challenge_with_ones_own_nonce_is_refused() -> None:
    one = connecting(identity("n1"), nonce=7)
    with pytest.raises(GreetingError) as caught:
        one.receive(encode(Challenge(version=1, node="n2", nonce=bytes([7]) * 32)))
    assert caught.value.reason == "malformed"
    other = dialled(identity("n2"), nonce=1)
    with pytest.raises(GreetingError):
        other.receive(connecting(identity("n1"), nonce=1).begin())


def test_a_proof_fits_no_other_connection() -> None:
    one, earlier = connecting(identity("n1")), dialled(identity("n2"))
    proof = one.receive(earlier.receive(one.begin()).frames[0]).frames[0]
    later = dialled(identity("n2"), nonce=3)
    later.receive(one.begin())
    with pytest.raises(GreetingError) as caught:
        later.receive(proof)
    assert caught.value.reason == "proof"


def test_a_step_out_of_order_is_refused() -> None:
    other = dialled(identity("n2"))
    with pytest.raises(GreetingError) as early:
        other.receive(encode(Proof(bytes(32))))
    other.receive(connecting(identity("n1")).begin())
    with pytest.raises(GreetingError) as twice:
        other.receive(connecting(identity("n1")).begin())
    one = connecting(identity("n1"))
    with pytest.raises(GreetingError) as wrong:
        one.receive(encode(Proof(bytes(32))))
    assert {early.value.reason, twice.value.reason, wrong.value.reason} == {"order"}


def test_a_certificate_must_prove_the_name_that_the_node_gives() -> None:
    strict = {"secret": b"", "needs_certificate": True}
    met, met_by = greet(
        connecting(identity("n1", **strict), proven="n2"),
        dialled(identity("n2", **strict), proven="n1"),
    )
    assert (met.node, met_by.node) == ("n2", "n1")
    for proven in ("", "n3"):
        with pytest.raises(GreetingError) as caught:
            dialled(identity("n2", **strict), proven=proven).receive(
                connecting(identity("n1", **strict)).begin()
            )
        assert caught.value.reason == "certificate"


def test_an_identity_without_any_proof_or_with_a_short_secret_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a secret or certificates"):
        identity("n1", secret=b"")
    with pytest.raises(ConfigError, match="at least 16 bytes"):
        identity("n1", secret=b"short")
    assert "sixteen" not in repr(identity("n1"))


def test_a_refusal_shows_no_control_characters_and_is_cut() -> None:
    frame = encode(GreetingRefusal("proof", "\x1b[2J" + "x" * 2_000))
    with pytest.raises(GreetingError) as caught:
        connecting(identity("n1")).receive(frame)
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 600


def valid_frames() -> list[bytes]:
    one, other = connecting(identity("n1")), dialled(identity("n2"))
    hello = one.begin()
    challenge = other.receive(hello).frames[0]
    proof = one.receive(challenge).frames[0]
    return [hello, challenge, proof, other.receive(proof).frames[0]]


@pytest.mark.requirement("CLUSTER-FRAMES-FUZZED")
@given(
    index=st.integers(0, 3),
    position=st.integers(0, 10_000),
    flip=st.integers(1, 255),
    cut=st.booleans(),
)
def test_no_changed_greeting_makes_a_peer(index: int, position: int, flip: int, cut: bool) -> None:
    frame = bytearray(valid_frames()[index])
    if cut:
        del frame[position % len(frame) :]
    else:
        frame[position % len(frame)] ^= flip
    changed = bytes(frame)

    def meet(step: int, honest: bytes) -> bytes:
        return changed if step == index else honest

    def go_through() -> None:
        one, other = connecting(identity("n1")), dialled(identity("n2"))
        answer = other.receive(meet(0, one.begin())).frames[0]
        proof = one.receive(meet(1, answer)).frames[0]
        last = other.receive(meet(2, proof)).frames[0]
        one.receive(meet(3, last))

    with pytest.raises(GreetingError):
        go_through()


@pytest.mark.requirement("CLUSTER-FRAMES-FUZZED")
@given(frame=st.binary(max_size=200))
def test_arbitrary_bytes_are_a_refused_greeting(frame: bytes) -> None:
    for receive in (connecting(identity("n1")).receive, dialled(identity("n2")).receive):
        check_refused(receive, frame)


def check_refused(receive: Callable[[bytes], object], frame: bytes) -> None:
    with pytest.raises(GreetingError):
        receive(frame)


def test_a_newer_node_may_say_more_in_its_greeting() -> None:
    hello = connecting(identity("n1")).begin()
    # An array of seven items (tag and six fields) becomes one of eight.
    assert hello[0] == 0x97
    longer = b"\x98" + hello[1:] + encode("more")
    assert dialled(identity("n2")).receive(longer).frames
    assert isinstance(Hello(1, 1, "c", "n", ADDRESS, b""), Hello)
