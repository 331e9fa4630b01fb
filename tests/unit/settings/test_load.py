"""Layers: who wins, where values come from, and what a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from kelpie.core.dsn import Dsn
from kelpie.core.errors import ConfigError
from kelpie.settings import SecretRef
from kelpie.settings.toml_text import dump_toml
from tests.unit.settings.world import ValuePlace


def test_without_any_layer_the_defaults_hold(place: ValuePlace) -> None:
    settings = place.load()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8283)
    assert settings.data_dir == place.home / ".local/share/kelpie"
    assert settings.store.path == settings.data_dir / "kelpie.db"
    assert (settings.model, settings.providers, settings.server.api_keys) == ("", (), ())
    assert str(settings.origin("server.port")) == "default"


def test_each_layer_wins_over_the_weaker_ones(place: ValuePlace) -> None:
    place.write_user("[server]\nport = 1001\nhost = '127.0.0.2'\n[log]\nlevel = 'debug'\n")
    place.write_project("[server]\nport = 1002\nhost = '127.0.0.3'\n")
    assert place.load().log.level == "debug"
    assert place.load().server.port == 1002
    environment = {"KELPIE_SERVER_PORT": "1003", "KELPIE_SERVER_HOST": "127.0.0.4"}
    assert place.load(environment).server.port == 1003
    settings = place.load(environment, flags={"server.port": "1004", "server.host": None})
    assert settings.server.port == 1004
    assert settings.server.host == "127.0.0.4"


def test_an_origin_names_the_layer_and_the_line_variable_or_flag(place: ValuePlace) -> None:
    user = place.write_user("[log]\n\nlevel = 'debug'\n")
    project = place.write_project("# first\nworkspaces = {roots = ['a']}\n")
    settings = place.load({"KELPIE_MODEL": "x/y"}, flags={"server.port": 1})
    assert str(settings.origin("log.level")) == f"user {user}:3"
    assert str(settings.origin("workspaces.roots")) == f"project {project}:2"
    assert str(settings.origin("model")) == "environment KELPIE_MODEL"
    assert str(settings.origin("server.port")) == "flag --port"


def test_a_named_project_file_replaces_the_one_in_the_directory(place: ValuePlace) -> None:
    place.write_project("model = 'a/b'\n")
    (place.project / "other.toml").write_text("model = 'c/d'\n")
    assert place.load(config="other.toml").model == "c/d"
    assert place.load({"KELPIE_CONFIG": "other.toml"}).model == "c/d"
    with pytest.raises(ConfigError, match=r"absent\.toml: No such file"):
        place.load(config="absent.toml")


def test_xdg_directories_are_used_when_absolute(place: ValuePlace, tmp_path: Path) -> None:
    config = tmp_path / "xdg" / "kelpie" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("model = 'a/b'\n")
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "XDG_DATA_HOME": "/data"}
    settings = place.load(environment)
    assert (settings.model, settings.data_dir) == ("a/b", Path("/data/kelpie"))
    assert place.load({"XDG_DATA_HOME": "data"}).data_dir.is_relative_to(place.home)


def test_paths_start_at_the_file_that_names_them_and_tilde_is_home(place: ValuePlace) -> None:
    user = place.write_user("[workspaces]\nroots = ['w', '~/v', '/u']\n")
    settings = place.load({"KELPIE_STORE_PATH": "here.db"}, flags={"data_dir": "there"})
    assert settings.workspaces.roots == (user.parent / "w", place.home / "v", Path("/u"))
    assert settings.store.path == place.project / "here.db"
    assert settings.data_dir == place.project / "there"


def test_a_store_is_a_file_or_a_database(place: ValuePlace) -> None:
    for written in ("here.db", "sqlite:here.db"):
        store = place.load(flags={"store.url": written}).store
        assert (store.path, store.url) == (place.project / "here.db", None)
    settings = place.load({"KELPIE_STORE": "postgresql://a:b@host/k", "KELPIE_NODE": "n2"})
    assert settings.store.url == Dsn("postgresql://a:b@host/k")
    assert settings.store.place == "postgresql://a:***@host/k"
    # Nodes of one machine share their data, but neither lock nor socket.
    assert settings.store.path.is_relative_to(settings.data_dir)
    assert settings.store.path.parent.name == "n2"
    assert str(place.load(flags={"store.url": "/x"}).origin("store.url")) == "flag --store"


def test_a_password_shows_in_no_representation_of_the_settings(place: ValuePlace) -> None:
    settings = place.load({"KELPIE_STORE": "postgresql://ada:hunter2@host/kelpie"})
    assert "hunter2" not in repr(settings)
    assert 'url = "postgresql://ada:***@host/kelpie"' in dump_toml(settings)
    for wrong in ("mysql://ada:hunter2@host/k", "postgresql://ada:hunter2@host"):
        with pytest.raises(ConfigError) as caught:
            place.load({"KELPIE_STORE": wrong})
        assert caught.value.message.startswith("KELPIE_STORE: store.url: must")
        assert "hunter2" not in f"{caught.value.message} {caught.value.fields}"


@pytest.mark.parametrize(
    ("text", "key", "nearest", "line"),
    [
        ("[server]\nprot = 1\n", "server.prot", "server.port", 2),
        ("models = 'a/b'\n", "models", "model", 1),
        ("[provider.openai]\n", "provider", "providers", 1),
        ("[providers.openai]\nbaseurl = ''\n", "providers.openai.baseurl", "base_url", 2),
        ("a = 1\n\n[serverr]\n", "a", "", 1),
    ],
)
def test_an_unknown_key_names_file_line_key_and_the_nearest_known_key(
    place: ValuePlace, text: str, key: str, nearest: str, line: int
) -> None:
    path = place.write_project(text)
    with pytest.raises(ConfigError) as caught:
        place.load()
    assert caught.value.message.startswith(f"{path}:{line}: {key} is not a setting; did you mean")
    assert nearest in str(caught.value.fields["nearest"])
    assert caught.value.fields["field"] == key


@pytest.mark.requirement("K-05")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server = 3\n", "server: must be a table"),
        ("[model]\n", "model: must be a string, not a table"),
        ("[server]\nport = 'x'\n", "server.port: must be a whole number, not 'x'"),
        ("[server]\nport = true\n", "server.port: must be a whole number, not true or false"),
        ("[server]\nport = 70000\n", "server.port: must be from 1 to 65535, not 70000"),
        ("[server]\nhost = 'a b'\n", "server.host: must be an address"),
        ("[log]\nlevel = 'loud'\n", "log.level: must be one of debug, info, warning, error"),
        ("[telemetry]\nprompts = 1\n", "telemetry.prompts: must be true or false, not a number"),
        ("[telemetry]\nendpoint = 'ftp://x'\n", "telemetry.endpoint: must be an http or https"),
        ("[telemetry]\nendpoint = 'http://x:y/'\n", "telemetry.endpoint: must be an http or"),
        ("[telemetry]\nendpoint = 'http://u:p@x'\n", "must not carry a user"),
        ("[telemetry]\nendpoint = 'http://x?a'\n", "must not carry a query"),
        ("node = 'a b'\n", "node: must be 1 to 64 letters"),
        ("model = 'gpt'\n", "model: must read provider/name"),
        ("data_dir = ''\n", "data_dir: must be a path of 1 to"),
        ("[workspaces]\nroots = 'a'\n", "workspaces.roots: must be a list, not a string"),
        ("[approvals]\nttl_ms = 1.5\n", "must be a whole number, not a fraction"),
        ("[approvals]\nttl_ms = 1979-05-27\n", "must be a whole number, not a date or time"),
        ("[providers.local]\nwire = 'openai'\n", "providers.local.base_url: is missing"),
        ("[providers.local]\nbase_url = 'http://x'\n", "providers.local.wire: is missing"),
        ("a = \n", "Invalid value"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_key(
    place: ValuePlace, text: str, problem: str
) -> None:
    place.write_project(text)
    with pytest.raises(ConfigError) as caught:
        place.load()
    assert problem in caught.value.message


def test_a_broken_value_in_a_weaker_layer_is_still_refused(place: ValuePlace) -> None:
    place.write_user("[server]\nport = 0\n")
    with pytest.raises(ConfigError, match=r"config\.toml:2: server\.port"):
        place.load(flags={"server.port": 8000})


def test_a_variable_and_a_flag_are_named_when_their_text_does_not_fit(place: ValuePlace) -> None:
    with pytest.raises(ConfigError, match=r"KELPIE_SERVER_PORT: server\.port: must be a whole"):
        place.load({"KELPIE_SERVER_PORT": "many"})
    with pytest.raises(ConfigError, match=r"--port: server\.port: must be from 1"):
        place.load(flags={"server.port": "0"})
    with pytest.raises(ConfigError, match="is not a setting"):
        place.load(flags={"server.prot": "1"})


def test_variables_carry_numbers_truth_values_and_lists(place: ValuePlace) -> None:
    settings = place.load(
        {
            "KELPIE_TELEMETRY_PROMPTS": "TRUE",
            "KELPIE_WORKSPACES_ROOTS": "/a:b",
            "KELPIE_SERVER_API_KEYS": "env:A, file:k",
            "KELPIE_SERVER_HOST": "",
        }
    )
    assert settings.telemetry.prompts is True
    assert settings.workspaces.roots == (Path("/a"), place.project / "b")
    assert [str(key) for key in settings.server.api_keys] == ["env:A", f"file:{place.project}/k"]
    assert settings.server.host == "127.0.0.1", "an empty variable counts as unset"


def test_an_unknown_variable_is_reported_and_not_fatal(place: ValuePlace) -> None:
    settings = place.load({"KELPIE_SERVER_PROT": "1", "KELPIE_URL": "http://x"})
    assert settings.notices == (
        "KELPIE_SERVER_PROT is not a setting and is ignored; the nearest is KELPIE_SERVER_PORT",
    )


def test_a_file_beyond_its_limit_or_not_text_is_refused(place: ValuePlace) -> None:
    path = place.write_project("#" * 300_000)
    with pytest.raises(ConfigError, match="at most 262,144 bytes"):
        place.load()
    path.write_bytes(b"# \xff\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        place.load()


def test_a_key_in_the_environment_is_all_a_known_provider_needs(place: ValuePlace) -> None:
    settings = place.load({"OPENAI_API_KEY": "sk-live"})
    provider = settings.provider("openai")
    assert provider is not None
    assert (provider.wire, provider.base_url) == ("openai", "https://api.openai.com/v1")
    assert provider.api_key == SecretRef(source="env", target="OPENAI_API_KEY")
    assert settings.model.startswith("openai/")
    assert str(settings.origin("model")) == "discovered providers.openai"
    assert "sk-live" not in repr(settings)


def test_a_providers_address_variable_moves_it_and_files_win_over_it(place: ValuePlace) -> None:
    environment = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1/", "OPENAI_API_KEY": "k"}
    provider = place.load(environment).provider("openai")
    assert provider is not None
    assert provider.base_url == "http://127.0.0.1:9/v1"
    place.write_project("[providers.openai]\nbase_url = 'http://127.0.0.1:7'\n")
    provider = place.load(environment).provider("openai")
    assert provider is not None
    assert provider.base_url == "http://127.0.0.1:7"
    environment["KELPIE_PROVIDERS_OPENAI_BASE_URL"] = "http://127.0.0.1:8"
    provider = place.load(environment).provider("openai")
    assert provider is not None
    assert provider.base_url == "http://127.0.0.1:8"


def test_a_malformed_address_variable_is_named(place: ValuePlace) -> None:
    with pytest.raises(ConfigError, match=r"OPENAI_BASE_URL: providers\.openai\.base_url: must"):
        place.load({"OPENAI_BASE_URL": "localhost"})


def test_any_provider_can_be_described_in_a_file(place: ValuePlace) -> None:
    place.write_project("[providers.local]\nwire = 'openai'\nbase_url = 'http://127.0.0.1:9'\n")
    settings = place.load({"KELPIE_MODEL": "local/tiny"})
    provider = settings.provider("local")
    assert provider is not None
    assert provider.api_key is None
    assert settings.model == "local/tiny"


def test_an_explicitly_empty_model_stays_empty(place: ValuePlace) -> None:
    place.write_project("model = ''\n")
    assert place.load({"OPENAI_API_KEY": "k"}).model == ""


def test_lines_are_found_behind_multi_line_strings(place: ValuePlace) -> None:
    path = place.write_project("model = '''\nx/y'''\n[server]\nprot = 1\n")
    with pytest.raises(ConfigError) as caught:
        place.load()
    assert caught.value.message.startswith(f"{path}:4: server.prot")
