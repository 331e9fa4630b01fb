"""What an agent can call: the registry, the built-in tools, and the executors of their effects.

A tool is pure: it turns a call into an answer or into the wish for an effect, and an effect's
record into an answer. Executors are the hands; only the dispatcher calls them.
"""
