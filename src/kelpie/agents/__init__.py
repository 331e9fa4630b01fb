"""The agent actor: its state, its loop as a pure machine, and its model calls.

`model` holds the words, `machine` the entry, `loop` what a run does, `calls` what its tool calls
do, `draft` the turn in progress, `model_executor` the hands.
"""
