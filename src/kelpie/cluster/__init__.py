"""Several nodes over one store, and actors that move between stores."""
