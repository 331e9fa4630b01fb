"""Kelpie: durable, contained and accountable AI agents.

Owns the version and nothing else: importing the package costs nothing and has no side effect.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
