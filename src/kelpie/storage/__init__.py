"""The Store: what is durable, and in which transaction.

`records` holds the rows, `protocol` the promise, `sqlite` the embedded engine.
"""
