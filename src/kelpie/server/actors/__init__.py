"""The edge of user-defined actors: calls by name, care of single actors, dead letters."""
