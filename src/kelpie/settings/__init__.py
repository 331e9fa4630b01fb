"""What a person configures: one TOML, five layers, one immutable value.

`schema` names every setting once, `load` merges flags > environment > project file > user file >
defaults, `model` is the result, `secret` the only form a secret may have, `start` what must hold
before a server starts. The room reads the files that its arguments name and nothing else: the
environment, the working directory and the home directory are passed in.
"""

from kelpie.settings.load import load_settings
from kelpie.settings.model import Origin, Settings
from kelpie.settings.secret import SecretRef
from kelpie.settings.start import require_safe_address, require_startable
from kelpie.settings.toml_text import dump_toml

__all__ = [
    "Origin",
    "SecretRef",
    "Settings",
    "dump_toml",
    "load_settings",
    "require_safe_address",
    "require_startable",
]
