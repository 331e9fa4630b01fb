"""The agent actor: its state, its loop as a pure machine, and its model calls."""
