"""Caps before algebra: the explosive ones are turned away, sensible ones pass."""

from __future__ import annotations

import pytest

from model.rewards.answers.bounds import within_bounds


@pytest.mark.parametrize(
    "expression",
    [
        "2^{10}",
        "x^{100}",
        "e^{-x^{2}}",
        "(10^9)^9",
        "2^{3^2}",
        "10^{10000}",
        "9999!",
        "7" * 400,
        "{" * 40,
        "",
    ],
)
def test_sensible_expressions_pass(expression: str) -> None:
    assert within_bounds(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "10^9^9",
        "10^{9^9}",
        "10**(9**9)",
        "2^{10001}",
        "2^{-99999999999}",
        "12345!",
        "7" * 401,
        "(" * 41,
        "x" * 2001,
    ],
)
def test_explosive_expressions_are_turned_away(expression: str) -> None:
    assert not within_bounds(expression)
