"""Where a request goes: URLs taken apart, and the environment's rules for proxies."""

from __future__ import annotations

import pytest

from kelpie.core.errors import InvalidFieldError, UnavailableError
from kelpie.host.http_route import ProxyRules, Route, parse_url

PROXY = {"http_proxy": "http://proxy:3128", "https_proxy": "http://user:p%40ss@proxy:3129"}


@pytest.mark.parametrize(
    ("url", "route", "target", "host"),
    [
        ("http://Example.com", Route("http", "example.com", 80), "/", "example.com"),
        (
            "https://example.com/a?b=c#d",
            Route("https", "example.com", 443),
            "/a?b=c",
            "example.com",
        ),
        ("http://example.com:8080/", Route("http", "example.com", 8080), "/", "example.com:8080"),
        ("https://[::1]:8443/x", Route("https", "::1", 8443), "/x", "[::1]:8443"),
        ("https://[::1]/x", Route("https", "::1", 443), "/x", "[::1]"),
        (
            "http://bücher.example/",
            Route("http", "xn--bcher-kva.example", 80),
            "/",
            "xn--bcher-kva.example",
        ),
    ],
)
def test_a_url_leads_to_a_host_and_a_target(url: str, route: Route, target: str, host: str) -> None:
    place = parse_url(url)
    assert (place.route, place.target, place.host_header) == (route, target, host)
    assert place.authorization == ""


def test_credentials_in_a_url_become_a_header_and_stay_out_of_the_name() -> None:
    place = parse_url("https://user:p%40ss@example.com/")
    assert place.authorization == "Basic dXNlcjpwQHNz"
    assert str(place.route) == "https://example.com:443"


@pytest.mark.parametrize("url", ["", "example.com", "ws://a/", "http://a b/", "http://a..b/"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidFieldError):
        parse_url(url)


def test_each_scheme_has_its_own_proxy() -> None:
    rules = ProxyRules(PROXY)
    plain, secure = (
        rules.find(parse_url(f"{each}://a.example").route) for each in ("http", "https")
    )
    assert plain is not None
    assert secure is not None
    assert (plain.route.port, plain.authorization) == (3128, "")
    assert (secure.route.port, secure.authorization) == (3129, "Basic dXNlcjpwQHNz")


def test_upper_case_names_and_a_common_proxy_count_too() -> None:
    route = parse_url("https://a.example").route
    assert ProxyRules({"HTTPS_PROXY": "proxy:1"}).find(route) is not None
    assert ProxyRules({"ALL_PROXY": "http://proxy:1"}).find(route) is not None
    assert ProxyRules({}).find(route) is None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.0.1", "[::1]"])
def test_the_loopback_is_never_proxied(host: str) -> None:
    assert ProxyRules(PROXY).find(parse_url(f"http://{host}:8000/").route) is None


@pytest.mark.parametrize(
    ("excluded", "host", "is_direct"),
    [
        ("*", "a.example", True),
        ("a.example", "a.example", True),
        (".example", "a.example", True),
        ("*.example", "a.example", True),
        ("example", "a.example", True),
        ("ample", "a.example", False),
        ("b.example, a.example", "a.example", True),
        ("a.example:80", "a.example", True),
        ("a.example:81", "a.example", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("a.example", "10.1.2.3", False),
        ("", "a.example", False),
    ],
)
def test_no_proxy_names_what_is_reached_directly(excluded: str, host: str, is_direct: bool) -> None:
    rules = ProxyRules({**PROXY, "no_proxy": excluded})
    assert (rules.find(parse_url(f"http://{host}/").route) is None) == is_direct


@pytest.mark.parametrize(
    "url", ["socks5://x:1080", "https://x:secret@y", "http://", "http://x:secret"]
)
def test_a_proxy_that_is_not_supported_says_so_without_its_secret(url: str) -> None:
    rules = ProxyRules({"https_proxy": url})
    with pytest.raises(UnavailableError, match="no_proxy") as caught:
        rules.find(parse_url("https://a.example").route)
    assert "secret" not in caught.value.message
