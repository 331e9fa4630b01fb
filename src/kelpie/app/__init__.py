"""The composition root: settings -> world -> wiring.

The only place that picks the host or a simulation; nothing imports it but the command line, the
demo and tests.
"""

from kelpie.app.care import probe_model, probe_sandboxes, restore_store
from kelpie.app.process import run_server
from kelpie.app.wiring import Node, open_node

__all__ = [
    "App",
    "open_node",
    "probe_model",
    "probe_sandboxes",
    "restore_store",
    "run_server",
]
