"""Values by key, the strongest layer's last."""

from __future__ import annotations

from typing import Any, NamedTuple

from kelpie.settings.model import Origin


class SettingEntry(NamedTuple):
    """One parsed value and who said it."""

    key: str
    value: Any
    origin: Origin


class Values:
    """Parsed values by dotted key; a later ``put`` is of a stronger layer and wins."""

    def __init__(self) -> None:
        self._entries: dict[str, SettingEntry] = {}

    def put(self, entry: SettingEntry) -> None:
        """Set a key, whoever set it before."""
        self._entries[entry.key] = entry

    def fill(self, key: str, value: Any, origin: Origin) -> None:
        """Set a key that nobody has set."""
        self._entries.setdefault(key, SettingEntry(key, value, origin))

    def get(self, key: str, default: Any = None) -> Any:
        """Return a key's value."""
        entry = self._entries.get(key)
        return default if entry is None else entry.value

    def provider_names(self) -> list[str]:
        """Return the names under ``providers``, sorted."""
        keys = (key.split(".") for key in self._entries)
        return sorted({parts[1] for parts in keys if parts[0] == "providers"})

    def origins(self) -> dict[str, Origin]:
        """Return who said each key, by key."""
        return {key: self._entries[key].origin for key in sorted(self._entries)}
