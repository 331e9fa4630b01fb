"""Pages by cursor: the SQL for one direction, and the order of its rows.

A cursor is an item's id; its place is the pair (sort key, id), looked up first. With ``after`` a
page begins there; with ``before`` alone it is the page that ends there.
"""

from __future__ import annotations

from typing import NamedTuple

from kelpie.core.errors import InvalidFieldError, LimitExceededError
from kelpie.storage.records import Page


class SortPlace(NamedTuple):
    """Where an item stands in its order."""

    sort_key: str | int
    item_id: str


class Slice(NamedTuple):
    """SQL for one page: append ``where`` and ``order`` to a query, bind ``values``."""

    where: str
    order: str
    values: tuple[str | int, ...]
    is_reversed: bool


def slice_page(
    page: Page, columns: tuple[str, str], after: SortPlace | None, before: SortPlace | None
) -> Slice:
    """Return the SQL of ``page`` over two ordering ``columns``.

    The rows come in page order unless ``is_reversed``; then the reader turns them around.
    """
    pair = f"({columns[0]}, {columns[1]})"
    forward, backward = ("<", ">") if page.descending else (">", "<")
    where = ""
    values: tuple[str | int, ...] = ()
    if after is not None:
        where += f" AND {pair} {forward} (?, ?)"
        values += after
    if before is not None:
        where += f" AND {pair} {backward} (?, ?)"
        values += before
    is_reversed = before is not None and after is None
    direction = "DESC" if page.descending != is_reversed else "ASC"
    order = f" ORDER BY {columns[0]} {direction}, {columns[1]} {direction} LIMIT ?"
    return Slice(where, order, (*values, page.limit), is_reversed)


def require_limit(limit: int, limit_max: int) -> int:
    """Return ``limit`` if it lies in 1 to ``limit_max``.

    Raises:
        InvalidFieldError: It is below 1.
        LimitExceededError: It is above.
    """
    if limit < 1:
        raise InvalidFieldError("limit", f"{limit} must be 1 or more")
    if limit > limit_max:
        raise LimitExceededError("limit", actual=limit, limit=limit_max, unit="rows")
    return limit
