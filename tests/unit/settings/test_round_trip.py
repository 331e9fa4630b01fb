"""Settings to TOML and back."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kelpie.core.dsn import Dsn
from kelpie.core.limits import APPROVAL_TTL_MS_MAX, LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN
from kelpie.settings import SecretRef, Settings, dump_toml
from kelpie.settings.model import (
    ApprovalSettings,
    ClusterSettings,
    LogSettings,
    ProviderSettings,
    SandboxSettings,
    ServerSettings,
    StoreSettings,
    TelemetrySettings,
    WorkspaceSettings,
)
from tests.unit.settings.world import make_place

_names = st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True)
_texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20
)
_paths = _texts.map(lambda text: Path("/") / text)
_urls = st.from_regex(r"https?://[a-z]{1,8}(:[1-9][0-9]{0,3})?(/[a-z]{1,4})?", fullmatch=True)
_handles = st.builds("{}/{}".format, _names, st.from_regex(r"[!-~]{1,20}", fullmatch=True))
_secrets = st.one_of(
    st.builds(
        SecretRef, source=st.just("env"), target=st.from_regex(r"[A-Z_]{1,9}", fullmatch=True)
    ),
    st.builds(SecretRef, source=st.just("file"), target=_paths.map(str)),
)
_providers = st.builds(
    ProviderSettings,
    name=_names,
    wire=st.sampled_from(["openai", "anthropic"]),
    base_url=_urls,
    api_key=st.none() | _secrets,
)
_addresses = st.from_regex(r"[a-z0-9.]{1,9}:[1-9][0-9]{0,3}", fullmatch=True)
_databases = st.from_regex(r"postgresql://[a-z]{1,9}(:[1-9]{1,4})?/[a-z]{1,9}", fullmatch=True).map(
    Dsn
)
_settings = st.builds(
    Settings,
    data_dir=_paths,
    node=st.from_regex(r"[A-Za-z0-9_-]{1,9}", fullmatch=True),
    model=st.just("") | _handles,
    server=st.builds(
        ServerSettings,
        host=st.from_regex(r"[a-z0-9.:]{1,20}", fullmatch=True),
        port=st.integers(1, 65_535),
        api_keys=st.lists(_secrets, max_size=3).map(tuple),
    ),
    store=st.builds(StoreSettings, path=_paths, url=st.none() | _databases),
    cluster=st.builds(
        ClusterSettings,
        listen=_addresses,
        join=st.none() | _addresses,
        secret=st.none() | _secrets,
        certificates=st.none() | _paths,
        lease_ttl_ms=st.integers(LEASE_TTL_MS_MIN, LEASE_TTL_MS_MAX),
    ),
    workspaces=st.builds(WorkspaceSettings, roots=st.lists(_paths, max_size=3).map(tuple)),
    log=st.builds(
        LogSettings,
        level=st.sampled_from(["debug", "info", "warning", "error"]),
        format=st.sampled_from(["auto", "text", "json"]),
    ),
    telemetry=st.builds(TelemetrySettings, endpoint=st.just("") | _urls, prompts=st.booleans()),
    approvals=st.builds(ApprovalSettings, ttl_ms=st.integers(1_000, APPROVAL_TTL_MS_MAX)),
    sandbox=st.just(SandboxSettings(tier="bubblewrap")),
    providers=st.lists(_providers, max_size=3, unique_by=lambda provider: provider.name).map(
        lambda providers: tuple(sorted(providers, key=lambda provider: provider.name))
    ),
)


@given(settings=_settings)
def test_settings_survive_the_way_through_toml(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = make_place(Path(directory))
        place.write_project(dump_toml(settings))
        assert place.load() == settings


def test_the_dump_reads_like_a_file_a_person_wrote(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    settings = place.load({"OPENAI_API_KEY": "k", "KELPIE_DATA_DIR": "/d", "KELPIE_MODEL": "a/b"})
    text = dump_toml(settings)
    assert text.startswith(
        'data_dir = "/d"\nnode = "local"\nmodel = "a/b"\n\n[server]\nhost = "127.0.0.1"\n'
    )
    assert '[providers.openai]\nwire = "openai"\n' in text
    assert 'api_key = "env:OPENAI_API_KEY"\n' in text
