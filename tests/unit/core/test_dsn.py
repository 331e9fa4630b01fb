"""A database's address shows everything but its password."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.core.dsn import Dsn, DsnError, hide_password, is_dsn, parse_dsn

SECRET = "s3cret-w0rd"
passwords = st.text("abcXYZ0189-._~!$&'()*+,;=:@%", min_size=1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://host/kelpie", "postgresql://host/kelpie"),
        ("postgres://ada@[::1]:5432/kelpie", "postgres://ada@[::1]:5432/kelpie"),
        (f"postgresql://ada:{SECRET}@host:1/k?ssl=on", "postgresql://ada:***@host:1/k?ssl=on"),
        (f"postgresql://ada:{SECRET}@{SECRET}@host/k", "postgresql://ada:***@host/k"),
        (f"postgresql://:{SECRET}@host/k", "postgresql://:***@host/k"),
        (f"postgresql://host/k?a=b&password={SECRET}", "postgresql://host/k?a=b&password=***"),
        (f"postgresql://host/k?sslpassword={SECRET}&c", "postgresql://host/k?sslpassword=***&c"),
    ],
)
def test_an_address_is_shown_without_its_password(text: str, shown: str) -> None:
    dsn = parse_dsn(text)
    assert (str(dsn), dsn.text) == (shown, text)
    assert SECRET not in f"{dsn} {dsn!r}"


@given(password=passwords)
def test_no_password_is_ever_shown(password: str) -> None:
    dsn = Dsn(f"postgresql://ada:{password}@host/kelpie")
    assert str(dsn) == "postgresql://ada:***@host/kelpie"


def test_an_address_inside_a_message_loses_its_password_too() -> None:
    message = f"could not reach postgresql://ada:{SECRET}@host/k, nor postgres://b:{SECRET}@c/d"
    assert hide_password(message) == (
        "could not reach postgresql://ada:***@host/k, nor postgres://b:***@c/d"
    )


@pytest.mark.parametrize(
    "text",
    [
        f"mysql://ada:{SECRET}@host/k",
        f"postgresql://ada:{SECRET}@host",
        f"postgresql://ada:{SECRET}@host:x/k",
        f"postgresql://ada:{SECRET}@host:0/k",
        f"postgresql://ada:{SECRET}/@host/k",
        f"postgresql://ada:{SECRET}#@host/k",
        f"postgresql://ada:{SECRET} @host/k",
    ],
)
def test_a_text_that_is_no_address_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(DsnError) as caught:
        parse_dsn(text)
    assert SECRET not in str(caught.value)


def test_a_path_is_not_taken_for_an_address() -> None:
    assert is_dsn("postgresql://x")
    assert is_dsn("POSTGRES://x")
    assert not is_dsn("postgres/data.db")
    assert not is_dsn("sqlite:/a/b")
