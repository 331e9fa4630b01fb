"""The composition root: settings -> world -> wiring.

Opens the product over whatever world it is given; the host's is its own.
"""
