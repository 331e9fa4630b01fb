"""The demonstration: one story told with real processes, in which every claim is checked.

Owns its processes and its temporary directory, and removes both. Reaches the product only as a user
does: the `kelpie` command, the HTTP API, `letta-client`. From its sources it takes the names of the
variables that hold providers' keys, and nothing else.
"""
