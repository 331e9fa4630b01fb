"""The provider-neutral settings of a model call, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from kelpie.core.errors import InvalidFieldError
from kelpie.core.limits import TOKENS_PER_RUN_MAX
from kelpie.llm.model import ModelRequest


class Options(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What a caller may set; None leaves the provider's own default.

    ``tool_choice`` is ``auto``, ``required``, ``none`` or the name of an offered tool.
    """

    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=TOKENS_PER_RUN_MAX)] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: Annotated[str, msgspec.Meta(min_length=1)] | None = None


def read_options(options: Mapping[str, Any]) -> Options:
    """Return ``options`` typed.

    Raises:
        InvalidFieldError: A name is unknown, or a value has the wrong type or range.
    """
    try:
        return msgspec.convert(options, Options)
    except msgspec.ValidationError as error:
        known = ", ".join(Options.__struct_fields__)
        raise InvalidFieldError("options", f"{error}; known are {known}") from error


def read_request_options(request: ModelRequest) -> Options:
    """Return the options of ``request``, checked against the tools it offers.

    Raises:
        InvalidFieldError: As `read_options`, or a tool is demanded that is not offered.
    """
    options = read_options(request.options)
    choice = options.tool_choice
    if choice in {None, "auto", "none"}:
        return options
    names = [tool.name for tool in request.tools]
    if choice not in names and not (choice == "required" and names):
        offered = ", ".join(names) or "none"
        raise InvalidFieldError(
            "options.tool_choice", f"{choice!r} demands a tool that is not offered ({offered})"
        )
    return options
