"""The embedded engine of the Store protocol: one SQLite file, one holder, group commit.

``engine`` opens connections, ``transaction`` runs batches, ``commits`` and ``rows`` write,
``reads`` read, ``writer`` queues, ``store`` is all of it as one object.
"""
