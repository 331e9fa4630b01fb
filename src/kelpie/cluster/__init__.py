"""Several nodes over one store, and actors that move: who is a member, who owns which shard."""
