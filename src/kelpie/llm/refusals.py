"""What a provider's refusal means: its body read, its reason named, its words made safe to repeat.

Pure functions. A message built here never holds the key, and never more than
``MODEL_ERROR_CHARS_MAX`` characters of the provider's own words.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from kelpie.core.errors import ModelError
from kelpie.core.limits import MODEL_ERROR_CHARS_MAX

UNDECODABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What decoding raises over bytes that are no JSON of the wanted shape; nesting is bounded too."""

_KINDS: Final[dict[str, str]] = {
    "insufficient_quota": "quota",
    "billing_hard_limit_reached": "quota",
    "billing_error": "quota",
    "rate_limit_exceeded": "rate_limited",
    "rate_limit_error": "rate_limited",
    "context_length_exceeded": "too_large",
    "request_too_large": "too_large",
    "exceed_context_size_error": "too_large",
    "invalid_api_key": "auth",
    "authentication_error": "auth",
    "permission_error": "auth",
    "invalid_request_error": "bad_request",
    "not_found_error": "bad_request",
    "overloaded_error": "server",
    "api_error": "server",
    "server_error": "server",
    "timeout_error": "timeout",
}
"""The error types and codes that say more than the HTTP status does."""

_STATUSES: Final[dict[int, str]] = {
    401: "auth",
    402: "quota",
    403: "auth",
    408: "timeout",
    413: "too_large",
    429: "rate_limited",
    504: "timeout",
    524: "timeout",
}

_OVERFLOWS: Final = (
    "context length",
    "context_length",
    "context window",
    "context size",
    "maximum context",
    "prompt is too long",
    "input is too long",
    "too many tokens",
    "reduce the length",
)
"""How providers without a code of their own say that the conversation does not fit."""

_NEXT_STEPS: Final[dict[str, str]] = {
    "auth": "check the provider's API key",
    "quota": "check the account's quota and billing",
    "rate_limited": "try again later",
    "timeout": "try again later",
    "unreachable": "check the base URL and that the endpoint is up",
    "server": "try again later",
    "too_large": "shorten the conversation or choose a model with a larger context",
    "bad_request": "check the model's name and settings",
    "malformed": "check that the base URL is the provider's API",
}

_TRANSIENT: Final = frozenset({"rate_limited", "timeout", "server", "unreachable"})


class _ErrorFields(msgspec.Struct):
    code: Any = None
    type: Any = None
    message: Any = None
    detail: Any = None


class _ErrorBody(_ErrorFields):
    """An error body; providers use ``{"error": {…}}``, ``{"error": "…"}`` and the fields bare."""

    error: _ErrorFields | str | None = None


_AnyError = _ErrorBody | list[_ErrorBody] | str
_error_decoder: Final[msgspec.json.Decoder[_AnyError]] = msgspec.json.Decoder(_AnyError)


class TransientModelError(ModelError):
    """A provider failed in a way that may pass: a rate limit, a 5xx, a broken connection.

    Attributes:
        retry_after_ms: How long the provider asks to wait, None where it does not say.
    """

    code = "model_failed"
    retriable = True

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        status: int | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(reason, message, status=status)
        self.retry_after_ms = retry_after_ms


class Refusal(NamedTuple):
    """What a provider said: its own error types and codes, and its message."""

    kinds: tuple[str, ...]
    message: str


def read_refusal(body: bytes) -> Refusal:
    """Return what an error body of any shape says; never fails."""
    try:
        value = _error_decoder.decode(body)
    except UNDECODABLE:
        return Refusal((), body.decode("utf-8", "replace"))
    if isinstance(value, list):  # one provider wraps its errors in a list
        value = value[0] if value else ""
    said = (value.error or value) if isinstance(value, _ErrorBody) else value
    if isinstance(said, str):
        return Refusal((), said)
    kinds = tuple(str(kind) for kind in (said.code, said.type) if kind is not None)
    message = said.message or said.detail or ""
    text = message if isinstance(message, str) else msgspec.json.encode(message).decode()
    return Refusal(kinds, text)


def reason_of(refusal: Refusal, *, status: int | None) -> str:
    """Return the `ModelError` reason of a refusal that came with ``status``, or in a stream."""
    named = [_KINDS[kind] for kind in refusal.kinds if kind in _KINDS]
    specific = [reason for reason in named if reason != "bad_request"]
    if specific:
        return specific[0]
    if status is None:
        codes = [int(kind) for kind in refusal.kinds if kind.isascii() and kind.isdecimal()]
        status = codes[0] if codes else None
    if status in _STATUSES:
        return _STATUSES[status]
    if named or (status is not None and 400 <= status < 500):
        words = refusal.message.lower()
        return "too_large" if any(phrase in words for phrase in _OVERFLOWS) else "bad_request"
    return "malformed" if status is not None and status < 500 else "server"


def error_of(
    refusal: Refusal, *, status: int | None = None, retry_after_ms: int | None = None
) -> ModelError:
    """Return the typed error of a refusal; transient ones as `TransientModelError`."""
    reason = reason_of(refusal, status=status)
    said = " ".join(refusal.message.split()) or "no explanation"
    message = said if status is None else f"answered {status}: {said}"
    if reason in _TRANSIENT:
        return TransientModelError(reason, message, status=status, retry_after_ms=retry_after_ms)
    return ModelError(reason, message, status=status)


def describe(error: ModelError, *, provider: str, secret: str) -> str:
    """Return the error's message for people: who failed, what it said, what to do next.

    The provider's words are cut to ``MODEL_ERROR_CHARS_MAX`` characters, after ``secret`` is
    removed from them.
    """
    words = error.message
    if secret:
        words = words.replace(secret, "[key]")
    if len(words) > MODEL_ERROR_CHARS_MAX:
        words = words[:MODEL_ERROR_CHARS_MAX] + "…"
    step = _NEXT_STEPS.get(error.reason)
    if isinstance(error, TransientModelError) and error.retry_after_ms:
        step = f"it asks to wait {error.retry_after_ms / 1000:g} s"
    return f"{provider}: {words}; {step}" if step else f"{provider}: {words}"
