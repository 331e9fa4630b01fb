"""Time travel over a run that happened: read from a store, lived through again, and forked.

Never writes to the store, never asks a model, never starts a program, never touches a workspace.
"""
