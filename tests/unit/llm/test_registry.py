"""A handle finds its provider, and a wrong one finds out what there is."""

from __future__ import annotations

import pytest

from kelpie.core.errors import ConfigError, InvalidFieldError
from kelpie.llm.providers import PROVIDERS
from kelpie.llm.registry import ProviderRegistry, ResolvedProvider
from tests.unit.llm.worlds import FakeClock, FakeNetwork, FakeRng, FakeTelemetry


def registry(*names: str) -> ProviderRegistry:
    clock = FakeClock()
    return ProviderRegistry(
        [ResolvedProvider(name=name, wire="openai", base_url="http://h") for name in names],
        network=FakeNetwork(clock=clock),
        clock=clock,
        rng=FakeRng(),
        telemetry=FakeTelemetry(),
    )


def test_a_handle_finds_its_provider_and_its_name_may_hold_slashes() -> None:
    both = registry("openai", "openrouter")
    assert both.names == ["openai", "openrouter"]
    assert both.resolve("openrouter/meta/llama") is both.provider("openrouter")


@pytest.mark.parametrize(
    ("handle", "problem"),
    [
        ("gpt", "'gpt' must read <provider>/<name>"),
        ("/gpt", "must read"),
        ("openai/", "must read"),
        ("acme/x", "'acme' is unknown .configured: openai; known: anthropic, .*vllm"),
        ("anthropic/x", "is not configured .configured: openai.; set ANTHROPIC_API_KEY"),
        ("openai-proxy/x", "set OPENAI_PROXY_BASE_URL"),
    ],
)
def test_a_wrong_handle_is_told_what_there_is(handle: str, problem: str) -> None:
    with pytest.raises(InvalidFieldError, match=problem):
        registry("openai").resolve(handle)


@pytest.mark.parametrize(
    ("wire", "given", "used"),
    [
        ("openai", "http://h:1", "http://h:1/v1"),
        ("openai", "http://h/v1/", "http://h/v1"),
        ("openai", "https://h/api/openai", "https://h/api/openai"),
        ("anthropic", "https://h/anthropic", "https://h/anthropic/v1"),
        ("anthropic", "https://h/v1", "https://h/v1"),
        ("openai", "http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_a_base_url_is_completed(wire: str, given: str, used: str) -> None:
    settings = ResolvedProvider(
        name="p", wire="anthropic" if wire == "anthropic" else "openai", base_url=given
    )
    assert settings.base_url == used


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "h/v1",
        "ftp://h",
        "http://",
        "http://u:p@h",
        "http://h?x=1",
        "http://h:99999",
        "http://[::",
    ],
)
def test_a_base_url_that_cannot_work_is_refused(base_url: str) -> None:
    with pytest.raises(ConfigError, match="base URL of provider 'p'"):
        ResolvedProvider(name="p", wire="openai", base_url=base_url)


@pytest.mark.parametrize("api_key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_cannot_be_a_header_is_refused_and_never_shown(api_key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ResolvedProvider(name="p", wire="openai", base_url="http://h", api_key=api_key)
    assert api_key not in str(caught.value)


def test_a_key_is_not_printed_with_its_settings() -> None:
    settings = ResolvedProvider(name="p", wire="openai", base_url="http://h", api_key="hush")
    assert "hush" not in repr(settings)


def test_every_default_endpoint_makes_valid_settings() -> None:
    for name, defaults in PROVIDERS.items():
        if defaults.base_url:
            made = ResolvedProvider(name=name, wire=defaults.wire, base_url=defaults.base_url)
            assert made.base_url == defaults.base_url
        assert defaults.key_variable
        assert defaults.base_url_variable
