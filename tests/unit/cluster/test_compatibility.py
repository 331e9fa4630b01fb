"""What may go on on another machine."""

from __future__ import annotations

import pytest

from kelpie.cluster.compatibility import (
    compare_architectures,
    compare_images,
    describe_difference,
)

pytestmark = pytest.mark.requirement("TELEPORT-FITS")


@pytest.mark.parametrize(
    ("packed", "here", "verdict"),
    [
        ("", "1.2.3", "same"),
        ("1.2.3", "1.2.3", "same"),
        ("1.2.3", "1.2.4", "warn"),
        ("1.2", "1.2.0", "same"),
        ("1.2", "1.2.1", "warn"),
        ("1.2.3-rc1", "1.2.3", "same"),
        ("1.2.3.dev7", "1.2.3", "same"),
        ("1.2.3", "1.3.3", "refuse"),
        ("2.2.3", "1.2.3", "refuse"),
        ("custom", "custom", "same"),
        ("custom", "1.2.3", "refuse"),
        ("1.2.3", "", "refuse"),
        ("1.02.3", "1.2.3", "refuse"),
    ],
)
def test_major_and_minor_decide_and_a_patch_warns(packed: str, here: str, verdict: str) -> None:
    assert compare_images(packed, here) == verdict


@pytest.mark.parametrize(
    ("packed", "here", "verdict"),
    [
        ("x86_64", "x86_64", "same"),
        ("amd64", "x86_64", "same"),
        ("ARM64", "aarch64", "same"),
        ("", "riscv64", "same"),
        ("x86_64", "aarch64", "refuse"),
    ],
)
def test_another_processor_is_refused_under_any_name(packed: str, here: str, verdict: str) -> None:
    assert compare_architectures(packed, here) == verdict


def test_a_difference_is_told_without_what_a_terminal_obeys() -> None:
    told = describe_difference("version", "1\x1b[2J", "2")
    assert "\x1b" not in told
    assert "version" in told
