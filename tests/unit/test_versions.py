# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of versions: what DKMS gets wrong, what it gets right, and that it is an order at all."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodhookd.observe.recipes import compare_releases
from kmodhookd.plan.versions import compare, key

ASCENDING = [
    ["1.0~beta", "1.0-rc1", "1.0", "1.0-1", "1.0.1", "1.0.2", "1.0.10", "1.1", "2"],
    ["1.0.r999", "1.0.r1000"],  # DKMS: the other way round
    ["1.0-rc1", "1.0"],  # DKMS: the other way round
    ["1.0-alpha2", "1.0-beta1", "1.0-rc1", "1.0-rc2", "1.0-rc10", "1.0"],
    ["1.0~git1", "1.0", "1.0^git2", "1.0.1"],
    ["0.9", "0.12.7", "0.12.7-2", "0.13.2"],
    ["1.12.0", "1.12.0+dfsg", "1.12.0+dfsg-2", "1.12.1"],
    ["535.183.01", "550.54.14", "550.163.01"],
    ["2.2.9", "2.2.9a", "2.2.10"],
    ["20230101", "20240101.git1234abc"],
    ["1.0rc1", "1.0"],
    ["1.1", "v2.0", "3.0"],
    ["v1.1", "1.2", "V1.3"],
    ["1.0.rc", "1.0.rcfoo"],  # a word that merely begins like one
    ["9" * 100, "1" + "0" * 100],
]
PIECES = st.sampled_from(
    ["0", "1", "9", "10", "010", "999", "1000", ".", "-", "~", "+", "_", "rc", "beta", "a", "r", "Z"]
)
VERSIONS = st.lists(PIECES, max_size=6).map("".join)


@pytest.mark.parametrize("versions", ASCENDING, ids=lambda versions: versions[0][:20])
def test_in_ascending_order(versions: list[str]) -> None:
    for older, newer in itertools.combinations(versions, 2):
        assert compare(older, newer) == -1, (older, newer)
        assert compare(newer, older) == 1, (older, newer)


def test_only_equal_strings_are_equal() -> None:
    assert compare("1.0", "1.0") == 0
    assert compare("1.0", "1.00") != 0


@given(VERSIONS, VERSIONS, VERSIONS)
def test_is_a_total_order(a: str, b: str, c: str) -> None:
    assert compare(a, b) == -compare(b, a)
    assert (compare(a, b) == 0) == (a == b)
    if compare(a, b) <= 0 and compare(b, c) <= 0:
        assert compare(a, c) <= 0


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_can_be_ordered(a: str, b: str) -> None:
    assert sorted([a, b], key=key) == sorted([b, a], key=key)
    assert compare_releases(a, b) == -compare_releases(b, a)


@pytest.mark.parametrize(
    ("kernel", "other", "expected"),
    [
        ("6.1.0-56-amd64", "6.1", 1),
        ("6.1.0-56-amd64", "6.12", -1),
        ("6.13.0-rc1", "6.13", 1),  # what changes in 6.13 is in its first candidate
        ("6.13-rc1", "6.13", 1),
        ("5.18", "5.18", 0),
        ("5.15.0-1056-aws", "5.15.0-999-aws", 1),  # four digits: DKMS says the opposite
        ("4.19.0-9-amd64", "4.19.0-10-amd64", -1),
    ],
)
def test_kernel_releases(kernel: str, other: str, expected: int) -> None:
    assert compare_releases(kernel, other) == expected
