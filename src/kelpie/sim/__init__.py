"""The simulated world: a seeded event loop with virtual time, and ports that live in it.

Holds a scheduler, ports and faults, never a copy of product logic: everything above `kelpie.ports`
that runs here is the code that ships.
"""
