"""Requirements and their alternatives, by hand."""

from __future__ import annotations

import pytest

from model.rewards.check import errored, failed, passed, unscorable
from model.rewards.rule import checks_of, first_loss, limited_to

JUDGED = {
    "format": passed("full"),
    "math": failed("not_equal"),
    "code": unscorable("other_domain"),
    "judge": errored("not_json"),
    "language": failed("other_language"),
}


@pytest.mark.parametrize(
    ("require", "lost"),
    [
        ([], None),
        (["format"], None),
        (["format", "math", "language"], ("math", "not_equal")),
        (["format|math"], None),  # one alternative passes
        (["code|math"], ("code|math", "not_equal")),  # the one that failed says why, wherever it stands
        (["code | judge"], ("code | judge", "not_json")),  # an error outweighs what does not apply
        (["math|language"], ("math|language", "not_equal")),  # of two that failed, the first
        (["code"], ("code", "other_domain")),
    ],
)
def test_first_loss(require: list[str], lost: tuple[str, str] | None) -> None:
    found = first_loss(require, JUDGED)
    assert (found and (found[0], found[1].reason)) == lost


def test_a_missing_judgement_is_not_taken_for_a_pass() -> None:
    with pytest.raises(KeyError):
        first_loss(["format", "repetition"], JUDGED)


def test_names_and_limits() -> None:
    rule = ("finish", "math|code", "math|judge", "duplicate")
    assert checks_of(rule) == ["finish", "math", "code", "judge", "duplicate"]
    assert limited_to(rule, {"math", "finish"}) == ("finish", "math", "math")
