"""What Kelpie needs from a world: time, randomness, network, processes, telemetry.

`kelpie.host` is the real world, `kelpie.sim` the simulated one; no other room reads a clock, draws
a random number, opens a connection or starts a process.
"""
