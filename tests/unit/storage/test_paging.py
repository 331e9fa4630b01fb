"""The SQL of a page."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st

from kelpie.core.ids import TENANT_DEFAULT
from kelpie.storage.paging import SortPlace, slice_page
from kelpie.storage.records import Page

keys = st.integers(0, 4)
rows = st.lists(keys, min_size=1, max_size=12)


@given(rows, st.integers(1, 5), st.booleans(), st.data())
def test_pages_forward_and_back_cover_every_row_once(
    sort_keys: list[int], limit: int, descending: bool, data: st.DataObject
) -> None:
    table = [(key, f"{ordinal:02}") for ordinal, key in enumerate(sort_keys)]
    ordered = sorted(table, reverse=descending)
    page = Page(tenant=TENANT_DEFAULT, limit=limit, descending=descending)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (k, i)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", table)

        def fetch(after: SortPlace | None, before: SortPlace | None) -> list[tuple[int, str]]:
            sliced = slice_page(page, ("k", "i"), after, before)
            query = f"SELECT k, i FROM t WHERE 1{sliced.where}{sliced.order}"
            found = connection.execute(query, sliced.values).fetchall()
            return found[::-1] if sliced.is_reversed else found

        forward: list[tuple[int, str]] = []
        while piece := fetch(SortPlace(*forward[-1]) if forward else None, None):
            assert len(piece) <= limit
            forward += piece
        assert forward == ordered
        start = data.draw(st.integers(0, len(ordered) - 1))
        assert fetch(None, SortPlace(*ordered[start])) == ordered[max(0, start - limit) : start]
