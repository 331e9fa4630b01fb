"""The simulated world: a seeded event loop with virtual time, and ports that live in it.

Holds a scheduler, ports and faults, never a copy of product logic: what runs here is the code that
ships, opened by `kelpie.app` over another world. Nothing below imports this room.
"""
