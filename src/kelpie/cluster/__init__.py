"""Several nodes over one store: who is a member, and who owns which shard."""
