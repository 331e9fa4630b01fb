"""What the product asks of a store beyond its protocol, and how settings choose the engine."""

from __future__ import annotations

from typing import Protocol

from kelpie.core.errors import KelpieError
from kelpie.storage.blobs import BlobStore
from kelpie.storage.cluster import ClusterStore
from kelpie.storage.protocol import Store
from kelpie.storage.soundness import CheckReport


class NodeStore(Store, ClusterStore, Protocol):
    """A store that nodes share, with the blobs that its rows name, and a word on its own health."""

    @property
    def blobs(self) -> BlobStore:
        """The store's blobs. Put one before the commit that names it."""
        ...

    @property
    def failure(self) -> KelpieError | None:
        """Why nothing is written any more; None while all is well."""
        ...

    async def check(self) -> CheckReport:
        """Read everything, compare every checksum and verify every audit chain."""
        ...


class SharedNodeStore(NodeStore, Protocol):
    """A node's side of a store that several nodes write to."""

    async def cluster_identity(self, secret: bytes) -> tuple[str, bytes]:
        """Return the cluster's id and secret; ``secret`` becomes it if there is none yet."""
        ...

    async def message_horizon(self) -> int:
        """Return an id up to which every message that will ever be is visible."""
        ...
