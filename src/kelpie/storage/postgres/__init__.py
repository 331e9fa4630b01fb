"""The PostgreSQL engine: one store that several nodes share.

Writes go through a fixed handful of connections, each with its own queue; reads through a pool.
"""
