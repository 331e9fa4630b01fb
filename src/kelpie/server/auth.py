"""Who is asking, and whether they may ask at all.

Keys are compared by digest, all of them, in constant time. Without keys every local program is
let in, but no web page of another origin is: a browser says where a request comes from, and a
name that resolves to this host by somebody else's DNS is not this host.
"""

from __future__ import annotations

import hmac
from typing import Final

from kelpie.core.digests import digest_bytes
from kelpie.core.errors import UnauthorizedError
from kelpie.core.quoting import quote_text
from kelpie.server.errors import ForbiddenOriginError
from kelpie.server.http import Scope, header
from kelpie.server.ports import ApiKey

LOCAL_SCOPE: Final = "kelpie.local"
"""Set in the scope of requests that came over the Unix socket, which only its owner can open."""

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def authenticate(scope: Scope, keys: tuple[ApiKey, ...]) -> str:
    """Return the caller's identity for the record.

    Raises:
        UnauthorizedError: Keys are configured and none of them came.
        ForbiddenOriginError: No key protects the server and a foreign web page asks.
    """
    if scope.get(LOCAL_SCOPE):
        return "local"
    if not keys:
        _refuse_foreign_pages(scope)
        return "anonymous"
    given = header(scope, b"authorization") or b""
    scheme, _, token = given.partition(b" ")
    digest = digest_bytes(token.strip())
    found = ""
    for key in keys:
        if hmac.compare_digest(digest, key.digest):
            found = key.name
    if not found or scheme.lower() != b"bearer":
        raise UnauthorizedError("send a valid API key as 'Authorization: Bearer <key>'")
    return f"key:{found}"


def _refuse_foreign_pages(scope: Scope) -> None:
    origin = header(scope, b"origin")
    if origin is None and header(scope, b"sec-fetch-site") is None:
        return
    host = (header(scope, b"host") or b"").decode("latin-1")
    if _host_name(host) not in _LOOPBACK:
        raise ForbiddenOriginError(f"{quote_text(host)} is not a name of this host; set an API key")
    if origin is None:
        return
    page = origin.decode("latin-1").lower()
    if page.partition("://")[2] != host.lower():
        raise ForbiddenOriginError(
            f"pages of {quote_text(page)} may not call this server; set an API key"
        )


def _host_name(host: str) -> str:
    """Return the name in ``name:port`` or ``[address]:port``, with or without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
