"""The HTTP edge: an ASGI callable over the runtime and the store, and what serves it.

`app` turns a request into one operation of a table; `letta` and `ops` hold the operations; `serve`
puts the callable on sockets. Wire types live here and nowhere below. The simulator enters at the
ASGI callable, so nothing but `serve` knows a socket, and nothing here decides: every change is a
message to an actor.
"""
