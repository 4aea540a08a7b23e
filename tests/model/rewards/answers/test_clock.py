"""Times of day: what is one, and which two are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.rewards.answers.clock import clock, is_same_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2:30", 9_000),
        ("14:30", 52_200),
        ("2:30 p.m.", 52_200),
        ("2:30PM", 52_200),
        ("2:30 \\text{ p.m.}", 52_200),
        ("2 pm", 50_400),
        ("12 a.m.", 0),
        ("12:00 p.m.", 43_200),
        ("0:30", 1_800),
        ("02:30:15", 9_015),
    ],
)
def test_times_are_read(text: str, seconds: int) -> None:
    found = clock(text)
    assert found is not None
    assert found.seconds == seconds


@pytest.mark.parametrize("text", ["2", "3:2", "25:00", "2:60", "13 pm", "2:30 x", "", "2:30:75", "2:3"])
def test_what_is_no_time_is_none(text: str) -> None:
    assert clock(text) is None


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2:30", "02:30", True),
        ("2:30", "2:30 p.m.", True),
        ("2:30", "2:30 a.m.", True),
        ("14:30", "2:30 p.m.", True),
        ("12:15", "12:15 a.m.", True),
        ("14:30", "2:30", False),
        ("14:30", "2:30 a.m.", False),
        ("2:30 a.m.", "2:30 p.m.", False),
        ("2:30", "2:45", False),
        ("0:30", "12:30 p.m.", False),
    ],
)
def test_the_half_of_the_day_counts_where_both_say_it(one: str, other: str, is_same: bool) -> None:
    first, second = clock(one), clock(other)
    assert first is not None
    assert second is not None
    assert is_same_time(first, second) is is_same_time(second, first) is is_same


@pytest.mark.parametrize(("text", "is_clock"), [("2:30", True), ("7:05", True), ("5 pm", True), ("7:32", False)])
def test_a_ratio_in_lowest_terms_may_be_one(text: str, is_clock: bool) -> None:
    found = clock(text)
    assert found is not None
    assert found.is_clock is is_clock


@given(st.text(alphabet="0123456789:apm. \\~{}tex", max_size=20))
def test_no_text_makes_it_raise(text: str) -> None:
    clock(text)
