"""The greeting of two nodes: which version, which cluster, and that both know its secret.

Pure: frames in, frames out, and at the end a `Peer`. The side that connected proves itself first,
so that a stranger learns nothing from which a secret could be guessed.

A proof is an HMAC-SHA256 under the cluster's secret of the prover's side, both nodes' greetings as
they were sent (versions, cluster, names, nonces, the dialled address) and the name that the channel
proves. One side's proof is never the other's, and none fits another connection.

With certificates alone the secret is empty: then the transport has proven each side's name, and
the greeting only compares.

Invariants: nobody becomes a peer without its proof; each step happens once, in order.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from kelpie.cluster.messages import (
    VERSIONS,
    Challenge,
    GreetingRefusal,
    Hello,
    MalformedError,
    Proof,
    Versions,
    decode_greeting,
    encode,
)
from kelpie.core.errors import ConfigError, UnauthorizedError
from kelpie.core.limits import CLUSTER_SECRET_BYTES_MIN, FRAME_STRANGER_BYTES_MAX, NAME_CHARS_MAX

NONCE_BYTES: Final = 32
TEXT_CHARS_MAX: Final = 500  # of what a stranger gives as its reason
_CONTEXT: Final = b"kelpie node greeting\x00"

Side = Literal["connected", "dialled"]
Reason = Literal[
    "malformed", "order", "version", "cluster", "target", "name", "proof", "certificate", "refused"
]


class GreetingError(UnauthorizedError):
    """The other side is refused, or refuses.

    Attributes:
        reason: Why, as one of a few words.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message, reason=reason)
        self.reason = reason


class Peer(NamedTuple):
    """The node at the other end, once it has proven itself."""

    node: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a node says of itself, and what it demands.

    Attributes:
        cluster: The cluster's id; two clusters never talk.
        node: The node's name.
        secret: The cluster's secret; empty where certificates prove the nodes.
        needs_certificate: Whether the other side's certificate must prove its name.
        addresses: Where it may be dialled; empty if it does not know, then none is refused.
        versions: What it speaks.
    """

    cluster: str
    node: str
    secret: bytes = b""
    needs_certificate: bool = False
    addresses: Collection[str] = ()
    versions: Versions = VERSIONS

    def __post_init__(self) -> None:
        if not self.secret and not self.needs_certificate:
            raise ConfigError("a cluster needs a secret or certificates; give one of them")
        if self.secret and len(self.secret) < CLUSTER_SECRET_BYTES_MIN:
            bound = CLUSTER_SECRET_BYTES_MIN
            raise ConfigError(f"the cluster's secret has to have at least {bound} bytes")
        assert self.cluster, "a cluster has an id"
        assert 0 < len(self.node) <= NAME_CHARS_MAX, "a node has a name"
        assert 1 <= self.versions.low <= self.versions.high, "a node speaks some version"

    def __repr__(self) -> str:
        """Return who it is, without the secret."""
        return f"Identity(cluster={self.cluster!r}, node={self.node!r})"


class GreetingStep(NamedTuple):
    """What follows from a frame: what to send, and the peer once it is known."""

    frames: tuple[bytes, ...]
    peer: Peer | None


class ConnectingSide:
    """The greeting as the side that connected sees it."""

    def __init__(self, identity: Identity, *, target: str, proven: str, nonce: bytes) -> None:
        assert len(nonce) == NONCE_BYTES, "a nonce is fresh and long"
        versions = identity.versions
        self._identity = identity
        self._proven = proven
        self._hello = encode(
            Hello(
                low=versions.low,
                high=versions.high,
                cluster=identity.cluster,
                node=identity.node,
                target=target,
                nonce=nonce,
            )
        )
        assert len(self._hello) <= FRAME_STRANGER_BYTES_MAX, "a greeting fits a stranger's frame"
        self._nonce = nonce
        self._expected = b""
        self._peer: Peer | None = None
        self._is_over = False

    def begin(self) -> bytes:
        """Return the first frame."""
        return self._hello

    def receive(self, frame: bytes) -> GreetingStep:
        """Take the other side's next frame.

        Raises:
            GreetingError: The other side refuses, or is refused.
        """
        assert not self._is_over, "a greeting that ended takes no frame"
        said = _decode(frame)
        match said:
            case GreetingRefusal():
                raise GreetingError("refused", f"refused: {_shown(said)}")
            case Challenge() if self._peer is None:
                return self._answer(said, frame)
            case Proof() if self._peer is not None:
                _require_proof(said, self._expected)
                self._is_over = True
                return GreetingStep((), self._peer)
            case _:
                raise _out_of_order(said)

    def _answer(self, said: Challenge, frame: bytes) -> GreetingStep:
        low, high = self._identity.versions
        if not low <= said.version <= high:
            text = f"the other side speaks version {said.version}, this node {low} to {high}"
            raise GreetingError("version", text)
        _require_nonce(said.nonce, self._nonce)
        _require_name(self._identity, said.node, self._proven)
        parts = (self._hello, frame)
        secret, node = self._identity.secret, self._identity.node
        mine = make_proof(secret, "connected", node, parts)
        self._expected = make_proof(secret, "dialled", said.node, parts)
        self._peer = Peer(said.node, said.version)
        return GreetingStep((encode(Proof(mine)),), None)


class DialledSide:
    """The greeting as the side that was dialled sees it."""

    def __init__(self, identity: Identity, *, proven: str, nonce: bytes) -> None:
        assert len(nonce) == NONCE_BYTES, "a nonce is fresh and long"
        self._identity = identity
        self._proven = proven
        self._nonce = nonce
        self._expected = b""
        self._mine = b""
        self._peer: Peer | None = None
        self._is_over = False

    def receive(self, frame: bytes) -> GreetingStep:
        """Take the other side's next frame.

        Raises:
            GreetingError: The other side is refused.
        """
        assert not self._is_over, "a greeting that ended takes no frame"
        said = _decode(frame)
        match said:
            case Hello() if self._peer is None:
                return self._challenge(said, frame)
            case Proof() if self._peer is not None:
                _require_proof(said, self._expected)
                self._is_over = True
                return GreetingStep((encode(Proof(self._mine)),), self._peer)
            case _:
                raise _out_of_order(said)

    def _challenge(self, said: Hello, frame: bytes) -> GreetingStep:
        identity = self._identity
        if said.cluster != identity.cluster:
            raise GreetingError("cluster", "this is another cluster")
        low, high = identity.versions
        version = min(high, said.high)
        if version < max(low, said.low):
            text = f"this node speaks versions {low} to {high}, not {said.low} to {said.high}"
            raise GreetingError("version", text)
        if identity.addresses and said.target not in identity.addresses:
            raise GreetingError("target", "another node's address was dialled")
        _require_nonce(said.nonce, self._nonce)
        _require_name(identity, said.node, self._proven)
        answer = encode(Challenge(version=version, node=identity.node, nonce=self._nonce))
        parts = (frame, answer)
        self._expected = make_proof(identity.secret, "connected", said.node, parts)
        self._mine = make_proof(identity.secret, "dialled", identity.node, parts)
        self._peer = Peer(said.node, version)
        return GreetingStep((answer,), None)


def make_refusal(error: GreetingError) -> bytes:
    """Return the frame that tells the other side why it is refused."""
    return encode(GreetingRefusal(error.reason, error.message[:TEXT_CHARS_MAX]))


def make_proof(secret: bytes, side: Side, node: str, parts: tuple[bytes, bytes]) -> bytes:
    """Return a side's proof over both greetings as they were sent."""
    digest = hmac.new(secret, _CONTEXT, hashlib.sha256)
    for part in (side.encode(), node.encode(), *parts):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()


def _decode(frame: bytes) -> Hello | Challenge | Proof | GreetingRefusal:
    try:
        return decode_greeting(frame)
    except MalformedError:
        raise GreetingError("malformed", "what came is no greeting of a node") from None


def _require_proof(said: Proof, expected: bytes) -> None:
    if not hmac.compare_digest(said.proof, expected):
        raise GreetingError("proof", "the cluster's secret is another one")


def _require_nonce(theirs: bytes, mine: bytes) -> None:
    if len(theirs) != NONCE_BYTES or theirs == mine:
        raise GreetingError("malformed", "a nonce is fresh, and of one length")


def _require_name(identity: Identity, name: str, proven: str) -> None:
    if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        raise GreetingError("malformed", "a node has a name that can be read")
    if name == identity.node:
        raise GreetingError("name", f"two nodes are called {name!r}")
    if identity.needs_certificate and proven != name:
        raise GreetingError("certificate", "the certificate is another node's")


def _out_of_order(said: object) -> GreetingError:
    return GreetingError("order", f"{type(said).__name__} came out of order")


def _shown(said: GreetingRefusal) -> str:
    text = f"{said.text} ({said.reason})"[:TEXT_CHARS_MAX]
    return "".join(letter if letter.isprintable() else "?" for letter in text)
