"""Several nodes over one store: how they talk, and who answers for which actor.

Everything here takes the world as ports, so that a simulation runs the same code.
"""
