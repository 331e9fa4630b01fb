"""Several nodes over one store: who is a member, who owns which shard, how they talk and forward.

Actors that move between stores are packed and unpacked here as well. Everything takes the world as
ports, so that a simulation runs the same code.
"""
