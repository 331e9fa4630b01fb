"""A client that wants its answer: it repeats a keyed request until somebody says what became of it.

Knows only what it was told, as a real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from kelpie.ports.network import NetworkError
from kelpie.sim.edge import HttpAnswer
from kelpie.sim.host import SimulatedHost

RETRY_S: Final = 0.2
ATTEMPTS_MAX: Final = 5_000
_PATIENCE_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 507})


class GaveUpError(AssertionError):
    """No answer came that says what happened, however often the client asked."""


async def insist(
    host: SimulatedHost,
    method: str,
    target: str,
    body: Any = None,
    *,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> HttpAnswer:
    """Return the first answer that is final, asking again under the same key until there is one.

    Only for what may be repeated: reads, and changes with a key.

    Raises:
        GaveUpError: There was none.
    """
    assert key is not None or method == "GET", "only keyed changes may be repeated"
    answer = None
    for _ in range(ATTEMPTS_MAX):
        try:
            answer = await host.request(method, target, body, key=key, headers=headers)
        except NetworkError:
            answer = None
        if answer is not None and not is_passing(answer):
            return answer
        await asyncio.sleep(RETRY_S)
    raise GaveUpError(f"{method} {target} has no answer: {answer}")


def is_passing(answer: HttpAnswer) -> bool:
    """Whether the same request may be answered otherwise later."""
    if answer.status < 400:
        return False
    return answer.status in _PATIENCE_STATUSES or bool(answer.json()["error"]["retriable"])
