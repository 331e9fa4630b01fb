"""Secrets are references, and their text appears nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from kelpie.core.errors import ConfigError
from kelpie.settings import SecretRef
from tests.unit.settings.world import ValuePlace


@pytest.mark.requirement("SETTINGS-SECRETS")
@pytest.mark.parametrize(
    "literal", ["sk-live-1234", "env:", "env:A B", "file:", "vault:x", "", "9"]
)
def test_a_literal_secret_is_refused_without_repeating_it(place: ValuePlace, literal: str) -> None:
    place.write_project(f"[server]\napi_keys = ['{literal}']\n")
    with pytest.raises(ConfigError) as caught:
        place.load()
    assert "server.api_keys: a secret is written as a reference, env:NAME" in caught.value.message
    assert "sk-live" not in caught.value.message


def test_a_secret_of_another_type_is_refused(place: ValuePlace) -> None:
    place.write_project("[providers.openai]\napi_key = 5\n")
    with pytest.raises(ConfigError, match=r"providers\.openai\.api_key: must be a secret's refer"):
        place.load()


def test_a_file_reference_starts_at_the_file_that_names_it(place: ValuePlace) -> None:
    user = place.write_user("[providers.openai]\napi_key = 'file:key.txt'\n")
    (user.parent / "key.txt").write_text("  abc\n")
    provider = place.load().provider("openai")
    assert provider is not None
    assert provider.api_key is not None
    assert provider.api_key.resolve({}, field="f") == "abc"


def test_a_secret_that_is_not_there_names_its_setting_and_reference(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="f: env:NOPE is not set"):
        SecretRef(source="env", target="NOPE").resolve({"NOPE": " "}, field="f")
    with pytest.raises(ConfigError, match=r"f: file:.* cannot be read: No such file"):
        SecretRef(source="file", target=str(tmp_path / "x")).resolve({}, field="f")


@pytest.mark.parametrize(
    ("content", "problem"), [(b" \n", "is empty"), (b"\xff", "UTF-8"), (b"x" * 20_000, "larger")]
)
def test_a_file_that_is_no_secret_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        SecretRef(source="file", target=str(path)).resolve({}, field="f")
