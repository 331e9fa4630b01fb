"""What is checked before a server starts."""

from __future__ import annotations

import pytest

from kelpie.core.errors import ConfigError
from kelpie.settings import require_safe_address, require_startable
from tests.unit.settings.world import ValuePlace


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(place: ValuePlace, host: str) -> None:
    settings = place.load(flags={"server.host": host})
    require_startable(settings, {})
    assert settings.server.api_keys == ()


@pytest.mark.requirement("SERVER-KEYS")
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example", "::ffff:10.0.0.1"])
def test_an_address_beyond_loopback_is_refused_without_a_key(place: ValuePlace, host: str) -> None:
    with pytest.raises(ConfigError, match="set KELPIE_API_KEY") as caught:
        require_safe_address(place.load(flags={"server.host": host}))
    assert caught.value.fields["field"] == "server.host"


def test_a_key_in_the_environment_opens_other_addresses(place: ValuePlace) -> None:
    environment = {"KELPIE_API_KEY": "secret"}
    settings = place.load(environment, flags={"server.host": "0.0.0.0"})
    require_startable(settings, environment)
    assert str(settings.origin("server.api_keys")) == "discovered KELPIE_API_KEY"


def test_keys_that_cannot_be_found_stop_the_start(place: ValuePlace) -> None:
    place.write_project("[server]\napi_keys = ['env:GONE']\n[providers.openai]\n")
    with pytest.raises(ConfigError, match=r"server\.api_keys\[0\]: env:GONE is not set"):
        require_startable(place.load(), {})
    place.write_project("[providers.openai]\napi_key = 'env:GONE'\n")
    with pytest.raises(ConfigError, match=r"providers\.openai\.api_key: env:GONE is not set"):
        require_startable(place.load(), {})


def test_a_model_without_its_provider_stops_the_start(place: ValuePlace) -> None:
    with pytest.raises(ConfigError, match=r"needs the provider openai.* are: none"):
        require_startable(place.load({"KELPIE_MODEL": "openai/x"}), {})


@pytest.mark.requirement("K-05")
def test_a_root_that_is_no_directory_stops_the_start(place: ValuePlace) -> None:
    with pytest.raises(ConfigError, match=r"workspaces\.roots: .* is not a directory"):
        require_startable(place.load({"KELPIE_WORKSPACES_ROOTS": "absent"}), {})


def test_roots_bound_workspaces_and_none_allows_all(place: ValuePlace) -> None:
    assert place.load().workspaces.allows(place.home)
    workspaces = place.load({"KELPIE_WORKSPACES_ROOTS": str(place.home)}).workspaces
    assert workspaces.allows(place.home / "a")
    assert not workspaces.allows(place.home.parent / "homer")
