"""Virtual actors: activation, turns, the output gate, messages, reminders, event logs.

`machine` says what an actor is (a pure transition function), `commands` what it may ask for,
`engine` hosts it.
"""
