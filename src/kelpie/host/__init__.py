"""The real world behind the ports: clocks, randomness, HTTP, processes, telemetry.

The only room that touches them; it decides nothing about the product.
"""
