"""The composition root: settings -> world -> wiring.

The only place that picks the host or a simulation.
"""
