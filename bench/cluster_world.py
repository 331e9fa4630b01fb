"""What both ends of the benchmark of the lines between nodes share."""

from __future__ import annotations

from kelpie.cluster.handshake import Identity

SECRET = b"the benchmark's own, on loopback"


def identity_of(node: str) -> Identity:
    """Return a node of the benchmark's cluster."""
    return Identity(cluster="bench", node=node, secret=SECRET)
