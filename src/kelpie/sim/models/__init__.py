"""What the model checker explores: one module per subject, over the transition functions that ship.

A module adds an environment (people, executors, clocks, crashes, a network) and laws that look at
what was done, not at what the product thinks of it. Each takes a saboteur, which breaks the product
in one way, so that a test can show that the laws would notice.
"""
