"""Plan and apply: desired state from a file, actual state from a target, effects in between."""
