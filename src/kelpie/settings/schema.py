"""Every setting, once: its key, its kind, its default, its variable, its meaning.

The loader, the TOML writer and ``docs/reference/settings.md`` all read this table, so that a
setting cannot exist in one of them alone.
"""

from __future__ import annotations

import difflib
import re
from typing import Final, NamedTuple

from kelpie.core import limits
from kelpie.settings.values import (
    Choice,
    Flag,
    Handle,
    Host,
    Integer,
    NodeName,
    PathList,
    PathValue,
    PeerAddress,
    Secret,
    SecretList,
    StoreAddress,
    Url,
    ValueKind,
)
from kelpie.storage.cluster import NODE_NAME_DEFAULT


class Setting(NamedTuple):
    """One setting; ``default`` is TOML, or words where the default is computed.

    ``variable`` is the environment variable of the environment layer.
    """

    key: str
    kind: ValueKind
    default: str
    variable: str
    meaning: str


SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        "data_dir",
        PathValue(),
        "`$XDG_DATA_HOME/kelpie`, else `~/.local/share/kelpie`",
        "KELPIE_DATA_DIR",
        "Where Kelpie keeps what it owns.",
    ),
    Setting(
        "node",
        NodeName(),
        f'`"{NODE_NAME_DEFAULT}"`',
        "KELPIE_NODE",
        "This node's name among those that share a store. Each has one of its own.",
    ),
    Setting(
        "model",
        Handle(),
        "the first configured provider's own",
        "KELPIE_MODEL",
        "Model of agents that name none, as `provider/name`.",
    ),
    Setting("server.host", Host(), '`"127.0.0.1"`', "KELPIE_SERVER_HOST", "Address to listen on."),
    Setting(
        "server.port",
        Integer(least=1, most=65_535),
        f"`{limits.PORT_DEFAULT}`",
        "KELPIE_SERVER_PORT",
        "Port to listen on.",
    ),
    Setting(
        "server.api_keys",
        SecretList(),
        "`[]`; `env:KELPIE_API_KEY` when that variable is set",
        "KELPIE_SERVER_API_KEYS",
        "Keys that callers must present, one of them. Without keys only loopback is served.",
    ),
    Setting(
        "store.path",
        PathValue(),
        "`kelpie.db` in `data_dir`",
        "KELPIE_STORE_PATH",
        "The embedded store's file; its lock and its blobs lie beside it. With a database in "
        "`store.url`, the file beside which this node's lock and socket lie; by default in "
        "`data_dir`, in a directory with the node's name.",
    ),
    Setting(
        "store.url",
        StoreAddress(),
        "none: the embedded store at `store.path`",
        "KELPIE_STORE",
        "Where the store is, as `--store`: `postgresql://user@host/database`, or a path of the "
        "embedded store, which then counts as `store.path`. A password in it is never shown; "
        "better keep it in the server's password file (`~/.pgpass`).",
    ),
    Setting(
        "cluster.listen",
        PeerAddress(),
        '`"127.0.0.1:0"`: any free port of this machine',
        "KELPIE_CLUSTER_LISTEN",
        "Where other nodes of the same database reach this one. Beyond loopback it needs "
        "`cluster.secret` or `cluster.certificates`.",
    ),
    Setting(
        "cluster.join",
        PeerAddress(),
        "none",
        "KELPIE_CLUSTER_JOIN",
        "Where another node answers HTTP, as `--join`: a hint that it should be there. Who is a "
        "member is written in the database.",
    ),
    Setting(
        "cluster.secret",
        Secret(),
        "one that is kept in the database, for nodes on loopback",
        "KELPIE_CLUSTER_SECRET",
        "Where the secret is by which nodes know each other; the same for all of them.",
    ),
    Setting(
        "cluster.certificates",
        PathValue(),
        "none",
        "KELPIE_CLUSTER_CERTIFICATES",
        "The directory of `ca.pem`, `NODE.pem` and `NODE.key`, as `kelpie cluster certs` makes "
        "them; nodes then talk over TLS alone.",
    ),
    Setting(
        "cluster.lease_ttl_ms",
        Integer(least=limits.LEASE_TTL_MS_MIN, most=limits.LEASE_TTL_MS_MAX),
        f"`{limits.LEASE_TTL_MS}`",
        "KELPIE_CLUSTER_LEASE_TTL_MS",
        "How long a node may be silent before the others take its shards.",
    ),
    Setting(
        "workspaces.roots",
        PathList(),
        "`[]`",
        "KELPIE_WORKSPACES_ROOTS",
        "Directories that workspaces must lie in. Without any, a caller on the Unix socket may "
        "name every directory, and a caller over TCP none.",
    ),
    Setting(
        "log.level",
        Choice(("debug", "info", "warning", "error")),
        '`"info"`',
        "KELPIE_LOG",
        "The least severity that is logged.",
    ),
    Setting(
        "log.format",
        Choice(("auto", "text", "json")),
        '`"auto"`',
        "KELPIE_LOG_FORMAT",
        "How log lines look; `auto` is text on a terminal and JSON elsewhere.",
    ),
    Setting(
        "telemetry.endpoint",
        Url(optional=True),
        '`OTEL_EXPORTER_OTLP_ENDPOINT` when set, else `""`',
        "KELPIE_TELEMETRY_ENDPOINT",
        "Where spans are exported to; empty exports nothing.",
    ),
    Setting(
        "telemetry.prompts",
        Flag(),
        "`false`",
        "KELPIE_TELEMETRY_PROMPTS",
        "Whether spans carry the text of prompts and answers.",
    ),
    Setting(
        "approvals.ttl_ms",
        Integer(least=1_000, most=limits.APPROVAL_TTL_MS_MAX),
        f"`{limits.APPROVAL_TTL_MS}`",
        "KELPIE_APPROVALS_TTL_MS",
        "Milliseconds a question waits for a person; then it counts as denied.",
    ),
    Setting(
        "sandbox.tier",
        Choice(("bubblewrap",)),
        '`"bubblewrap"`',
        "KELPIE_SANDBOX_TIER",
        "The lowest sandbox tier that commands may run in.",
    ),
)

PROVIDER_SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        "wire",
        Choice(("openai", "anthropic")),
        "the known provider's",
        "KELPIE_PROVIDERS_NAME_WIRE",
        "Which protocol the provider speaks.",
    ),
    Setting(
        "base_url",
        Url(optional=False),
        "the known provider's variable, else its public address",
        "KELPIE_PROVIDERS_NAME_BASE_URL",
        "The address that the protocol's paths are appended to.",
    ),
    Setting(
        "api_key",
        Secret(),
        "the known provider's variable when set, else no key",
        "KELPIE_PROVIDERS_NAME_API_KEY",
        "Where the provider's key is.",
    ),
)
"""The settings of one ``[providers.NAME]`` table."""

FLAGS: Final = {"store.url": "--store", "cluster.join": "--join"}
"""Flags that are not named after the last part of their setting's key."""

CLIENT_VARIABLES: Final = {
    "KELPIE_CONFIG": "The project file to read in place of `./kelpie.toml`, as `--config`.",
    "KELPIE_URL": "The server that commands talk to, as `--url`.",
    "KELPIE_API_KEY": "The key that commands present, and that the server asks for by default.",
}
"""Variables with Kelpie's prefix that are no setting."""

_PROVIDER_KEY: Final = re.compile(r"providers\.([a-z0-9-]{1,64})\.([a-z_]+)\Z")
_PROVIDER_VARIABLE: Final = re.compile(
    r"KELPIE_PROVIDERS_([A-Z0-9_]{1,64})_(WIRE|BASE_URL|API_KEY)\Z"
)
_BY_KEY: Final = {setting.key: setting for setting in SETTINGS}
_BY_PROVIDER_FIELD: Final = {setting.key: setting for setting in PROVIDER_SETTINGS}
_BY_VARIABLE: Final = {setting.variable: setting.key for setting in SETTINGS}
_TABLES: Final = frozenset(key.rpartition(".")[0] for key in _BY_KEY if "." in key) | {"providers"}


def find_setting(key: str) -> Setting | None:
    """Return the setting of a dotted key, a provider's included."""
    if match := _PROVIDER_KEY.match(key):
        return _BY_PROVIDER_FIELD.get(match[2])
    return _BY_KEY.get(key)


def flag_of(key: str) -> str:
    """Return the flag that sets a dotted key."""
    return FLAGS.get(key) or "--" + key.rpartition(".")[2].replace("_", "-")


def is_table(key: str) -> bool:
    """Return whether a dotted key names a table of settings."""
    head, _, name = key.partition(".")
    return key in _TABLES or (head == "providers" and bool(re.fullmatch(r"[a-z0-9-]{1,64}", name)))


def key_of_variable(variable: str) -> str | None:
    """Return the dotted key that an environment variable sets, if it sets one."""
    if match := _PROVIDER_VARIABLE.match(variable):
        name = match[1].lower().replace("_", "-")
        return f"providers.{name}.{match[2].lower()}"
    return _BY_VARIABLE.get(variable)


def nearest_key(key: str) -> str:
    """Return the known key that is written most like ``key``."""
    known = list(_BY_KEY)
    head, _, tail = key.partition(".")
    provider = tail.partition(".")[0]
    if head == "providers" and provider:
        known += [f"providers.{provider}.{field}" for field in _BY_PROVIDER_FIELD]
    known += sorted(_TABLES)
    return difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]


def nearest_variable(variable: str) -> str:
    """Return the known variable that is written most like ``variable``."""
    known = [*_BY_VARIABLE, *CLIENT_VARIABLES]
    return difflib.get_close_matches(variable, known, n=1, cutoff=0.0)[0]
