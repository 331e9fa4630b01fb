"""The spine: every change outside an actor is an effect with a life, a verdict and a record.

`model` holds the words, `lifecycle` the transitions, `gate` the machine that hosts them beside an
actor's own, `policy` the verdicts, `dispatcher` the hands.
"""
