"""The public actor API: a class with typed state and methods becomes a hosted actor type.

`definition` and `method` read the class, `context` is what a handler may do, `reference` makes
typed proxies, `hosting` turns the class into a machine, `gateway` is how a process calls it.
"""
