"""The embedded engine of the Store protocol: one SQLite file, one holder, group commit.

``engine`` opens connections, ``transaction`` runs batches, ``commits`` and ``rows`` write,
``writer`` queues, ``reads`` (with ``log_reads`` and ``page_reads``) read, ``store`` is all of it
as one object.
"""
