"""The list of an endpoint's models, which all wires write alike."""

from __future__ import annotations

from typing import Final

import msgspec

from kelpie.core.errors import ModelError
from kelpie.llm.refusals import UNDECODABLE


class _ListedModel(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ListedModel]


_decoder: Final = msgspec.json.Decoder(_ModelList)


def decode_models(body: bytes) -> list[str]:
    """Return the model names in a list's body.

    Raises:
        ModelError: The body is not such a list (reason ``malformed``).
    """
    try:
        return [model.id for model in _decoder.decode(body).data]
    except UNDECODABLE as error:
        raise ModelError("malformed", f"the list of models is malformed: {error}") from error
