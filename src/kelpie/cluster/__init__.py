"""Several nodes over one store: who is a member, who owns which shard, how they talk and forward.

Everything here takes the world as ports, so that a simulation runs the same code.
"""
