"""Which model the demonstration uses: the one that the environment names, or a scripted one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from kelpie.llm.providers import PROVIDERS

SCRIPTED_BANNER: Final = "SCRIPTED MODEL: no AI behind this demo"
SCRIPTED_HANDLE: Final = "openai/scripted"


class RealModel(NamedTuple):
    """A model that somebody configured: its handle, and the variables that lead to it."""

    handle: str
    variables: dict[str, str]


def find_real_model(environment: Mapping[str, str]) -> RealModel | None:
    """Return the model that ``KELPIE_MODEL`` names, if its provider has a key here."""
    handle = environment.get("KELPIE_MODEL", "")
    name = handle.partition("/")[0]
    own = f"KELPIE_PROVIDERS_{name.upper().replace('-', '_')}_"
    keys = {f"{own}API_KEY"}
    addresses = {f"{own}BASE_URL", f"{own}WIRE"}
    if name in PROVIDERS:
        keys.add(PROVIDERS[name].key_variable)
        addresses.add(PROVIDERS[name].base_url_variable)
    if not handle or not any(environment.get(key) for key in keys):
        return None
    names = [each for each in (*keys, *addresses) if environment.get(each)]
    # A key may be a reference to another variable.
    names += [
        environment[each].removeprefix("env:")
        for each in names
        if environment[each].startswith("env:")
    ]
    return RealModel(handle, {each: environment[each] for each in names if each in environment})


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without anything that configures Kelpie or a provider."""
    providers = {
        variable
        for known in PROVIDERS.values()
        for variable in (known.key_variable, known.base_url_variable)
    }
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(("KELPIE_", "OTEL_")) and name not in providers
    }
