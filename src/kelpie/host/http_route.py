"""Where a request goes: the host in its URL, and the proxy that the environment names for it.

Pure: reads a mapping, opens nothing. Loopback is never proxied.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit

from kelpie.core.errors import InvalidFieldError, UnavailableError

_PORTS: Final = {"http": 80, "https": 443}
_PRINTABLE: Final = "".join(map(chr, range(0x21, 0x7F)))


class Route(NamedTuple):
    """One end of a connection; connections are shared by requests with equal routes."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        """Return ``scheme://host:port``, which never holds a credential."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def authority(self) -> str:
        """``host:port``."""
        return str(self).partition("://")[2]


class Place(NamedTuple):
    """A URL taken apart: where to connect, what to ask for, and under which names."""

    route: Route
    target: str
    host_header: str
    authorization: str


class Proxy(NamedTuple):
    """An HTTP proxy; ``authorization`` is empty without credentials in its URL."""

    route: Route
    authorization: str


def parse_url(url: str) -> Place:
    """Take an ``http`` or ``https`` URL apart.

    Raises:
        InvalidFieldError: It cannot be parsed, or has no host.
    """
    try:
        parts = urlsplit(url)
        route = _route(parts)
    except ValueError as error:
        raise InvalidFieldError("url", f"cannot be parsed: {error}") from error
    target = quote(parts.path or "/", safe=_PRINTABLE)
    if parts.query:
        target += f"?{quote(parts.query, safe=_PRINTABLE)}"
    is_default = route.port == _PORTS[route.scheme]
    host = route.authority.rpartition(":")[0] if is_default else route.authority
    return Place(route, target, host, _basic(parts))


class ProxyRules:
    """The proxies that an environment's ``http_proxy``, ``https_proxy`` and ``no_proxy`` name."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._proxies = {scheme: _lookup(environment, f"{scheme}_proxy") for scheme in _PORTS}
        self._default = _lookup(environment, "all_proxy")
        excluded = _lookup(environment, "no_proxy").lower().split(",")
        self._excluded = [name.strip() for name in excluded if name.strip()]

    def find(self, route: Route) -> Proxy | None:
        """Return the proxy for ``route``, None to connect to it directly.

        Raises:
            UnavailableError: The environment names a proxy that is not spoken to over plain HTTP.
        """
        url = self._proxies[route.scheme] or self._default
        if not url or _is_loopback(route.host) or self._is_excluded(route):
            return None
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            proxy = Proxy(_route(parts), _basic(parts))
        except ValueError:
            proxy = None
        if proxy is None or proxy.route.scheme != "http":
            raise UnavailableError(
                f"the environment's proxy for {route.scheme} is not an http:// URL; only those are "
                f"supported; name one in {route.scheme}_proxy, or list the host in no_proxy"
            )
        return proxy

    def _is_excluded(self, route: Route) -> bool:
        return any(_excludes(pattern, route) for pattern in self._excluded)


def _route(parts: SplitResult) -> Route:
    """Return where a URL leads.

    Raises:
        ValueError: It leads nowhere.
    """
    if parts.scheme not in _PORTS:
        raise ValueError("it must begin with http:// or https://")
    host = (parts.hostname or "").encode("idna").decode("ascii")
    if not host or set(host) - set(_PRINTABLE) or set(host) & set("/?#@\\"):
        raise ValueError("it has no host")
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    return Route(parts.scheme, host, port)


def _basic(parts: SplitResult) -> str:
    if parts.username is None:
        return ""
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _lookup(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or environment.get(name.upper()) or ""


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _excludes(pattern: str, route: Route) -> bool:
    """Whether an entry of ``no_proxy`` (a name, its suffix, an address or a network) fits."""
    if pattern == "*" or pattern in {route.host, route.authority}:
        return True
    address = _address(route.host)
    if address is not None:
        try:
            return address in ipaddress.ip_network(pattern, strict=False)
        except ValueError:
            return False
    name, _, port = pattern.partition(":")
    if port and port != str(route.port):
        return False
    suffix = name.lstrip("*").lstrip(".")
    return bool(suffix) and (route.host == suffix or route.host.endswith(f".{suffix}"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
