"""Errors as responses: one body for every failure, in both dialects.

``error`` is Kelpie's own object; ``detail`` is where ``letta-client`` looks. Every response says by
``x-should-retry`` whether the client may repeat the request by itself, because clients otherwise
repeat every 409 and 5xx, and a repeated message would start a second run.

    KelpieError
    ├── MalformedBodyError     the body is not JSON in UTF-8
    ├── BodyTooLargeError      the body is larger than its limit
    ├── RouteNotFoundError     no operation has this path
    ├── MethodNotAllowedError  the path exists, the method does not
    ├── ForbiddenOriginError   a web page of another origin made the request
    ├── LocalOnlyError         the operation is for the Unix socket
    ├── KeyNeededError         the operation is for callers with a key, or for the Unix socket
    ├── PendingApprovalError   the agent waits for an approval
    ├── RunFailedError         the run ended with an error after its messages were accepted
    └── FollowingEndedError    the server shuts down while a caller follows a run that goes on
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kelpie.actors.described import describe
from kelpie.core.errors import (
    STATUS,
    ConflictError,
    InputError,
    InvalidFieldError,
    KelpieError,
    LimitExceededError,
)
from kelpie.core.limits import REQUEST_BODY_BYTES_MAX
from kelpie.core.quoting import quote_text
from kelpie.server.http import HeaderPairs, Response

RETRY_AFTER_S: Final = b"1"  # a full mailbox or queue moves within a second, or not soon

_encode: Final = msgspec.json.Encoder().encode


class MalformedBodyError(InputError):
    """The body is not JSON in UTF-8."""

    code = "invalid_json"

    def __init__(self, problem: str) -> None:
        super().__init__(f"body: {problem}; send one JSON object in UTF-8", field="body")


class BodyTooLargeError(InputError):
    """The body is larger than its limit."""

    code = "body_too_large"

    def __init__(self) -> None:
        limit = REQUEST_BODY_BYTES_MAX
        message = f"body is larger than its limit of {limit:,} bytes; send less at once"
        super().__init__(message, field="body", limit=limit, unit="bytes")


class RouteNotFoundError(InputError):
    """No operation has this path."""

    code = "route_not_found"

    def __init__(self, path: str) -> None:
        super().__init__(f"no route {quote_text(path)}; /docs lists them all", path=path[:200])


class MethodNotAllowedError(InputError):
    """The path exists, the method does not."""

    code = "method_not_allowed"

    def __init__(self, method: str, path: str, allowed: str) -> None:
        message = f"{method[:20]} is not allowed on {quote_text(path)}; use {allowed}"
        super().__init__(message, method=method[:20], path=path[:200], allowed=allowed)
        self.allowed = allowed


class ForbiddenOriginError(InputError):
    """A web page of another origin made the request."""

    code = "forbidden_origin"


class LocalOnlyError(InputError):
    """The operation is for the Unix socket."""

    code = "local_only"

    def __init__(self, path: str) -> None:
        message = f"{path} is served on the store's Unix socket only; use the kelpie command"
        super().__init__(message, path=path)


class KeyNeededError(InputError):
    """The operation is for callers with a key, or for the Unix socket."""

    code = "key_needed"

    def __init__(self, deed: str) -> None:
        message = f"only a caller with an API key, or on the store's Unix socket, may {deed}"
        super().__init__(f"{message}; set server.api_keys, or use the kelpie command")


class PendingApprovalError(ConflictError):
    """The agent waits for an approval; nothing of the request was kept."""

    code = "pending_approval"

    def __init__(self, request_id: str) -> None:
        message = "the agent waits for an approval; answer it before sending another message"
        super().__init__(message, pending_request_id=request_id)
        self.request_id = request_id


class RunFailedError(KelpieError):
    """The run ended with an error after its messages were accepted.

    Repeating the request would start another run.
    """

    code = "run_failed"

    def __init__(self, message: str, *, run_id: str, stop_reason: str) -> None:
        super().__init__(message, run_id=run_id, stop_reason=stop_reason)


class FollowingEndedError(KelpieError):
    """The server shuts down while a caller follows a run that goes on."""

    code = "following_ended"

    def __init__(self, run_id: str) -> None:
        message = f"the server is shutting down; run {run_id} goes on at the next start"
        super().__init__(f"{message}, and GET /v1/runs/{run_id} shows it", run_id=run_id)


EDGE_STATUS: Final[Mapping[str, int]] = {
    MalformedBodyError.code: 400,
    BodyTooLargeError.code: 413,
    RouteNotFoundError.code: 404,
    MethodNotAllowedError.code: 405,
    ForbiddenOriginError.code: 403,
    LocalOnlyError.code: 403,
    KeyNeededError.code: 403,
    PendingApprovalError.code: 409,
    RunFailedError.code: 502,
    FollowingEndedError.code: 503,
}
"""The statuses of the codes that only this room raises."""

assert not EDGE_STATUS.keys() & STATUS.keys(), "an edge code shadows a code of the house"

_OUTCOME_OPEN: Final = frozenset({"deadline_exceeded", "commit_unknown"})
"""Retriable in principle, but what was asked for may have happened."""


def http_status(code: str) -> int:
    """Return the HTTP status of an error code."""
    status = EDGE_STATUS.get(code)
    return status if status is not None else STATUS[code].http


def may_repeat(error: KelpieError, *, safe: bool) -> bool:
    """Return whether a client may repeat the request unasked.

    ``safe`` says that repeating it does no harm whatever became of the first.
    """
    return error.retriable and (safe or error.code not in _OUTCOME_OPEN)


def error_body(error: KelpieError) -> dict[str, Any]:
    """Return the JSON body of an error."""
    plain = describe(error)  # what an actor raises may have texts and fields that no JSON takes
    described = {
        "code": plain.code,
        "message": plain.message,
        "fields": plain.fields,
        "retriable": plain.retriable,
    }
    return {"error": described, "detail": _detail(error, plain.message)}


def error_response(error: KelpieError, *, safe: bool) -> Response:
    """Return the response that tells a caller about ``error``."""
    repeat = b"true" if may_repeat(error, safe=safe) else b"false"
    headers: HeaderPairs = [(b"x-should-retry", repeat)]
    if isinstance(error, MethodNotAllowedError):
        headers.append((b"allow", error.allowed.encode()))
    status = http_status(error.code)
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 429:
        headers.append((b"retry-after", RETRY_AFTER_S))
    return Response(body=_encode(error_body(error)), status=status, headers=headers)


def _detail(error: KelpieError, message: str) -> Any:
    match error:
        case PendingApprovalError():
            return {
                "code": "PENDING_APPROVAL",
                "message": message,
                "pending_request_id": error.request_id,
            }
        case InvalidFieldError() | LimitExceededError():
            field = str(error.fields.get("field", ""))
            return [{"loc": field.split("."), "msg": message, "type": error.code}]
        case _:
            return message
