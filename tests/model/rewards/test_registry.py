"""Every name builds a check that judges an ordinary sample; unknown names are refused with the nearest."""

from __future__ import annotations

import pytest

from model.errors import CheckError
from model.records import Status
from model.rewards.check import Scored
from model.rewards.registry import CHECKS, build_checks
from model.rewards.settings import CheckSettings

ITEM = Scored(text="<think>\nThree and four are seven.\n</think>\n<answer>7</answer>", gold="7", completion_tokens=20)


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_has_its_name_and_version_and_does_not_fail_a_good_sample(name: str) -> None:
    (check,) = build_checks([name])
    assert check.name == name
    assert check.version.isdigit(), "the default settings add nothing to the number of the rules"
    check.warm_up()
    assert check(ITEM).verdict in (Status.PASS, Status.UNSCORABLE)


def test_the_order_of_the_names_is_kept() -> None:
    assert [check.name for check in build_checks(["math", "finish", "format"], CheckSettings())] == [
        "math",
        "finish",
        "format",
    ]


@pytest.mark.parametrize(("name", "said"), [
    ("fromat", "did you mean 'format'"), ("no.such:Check", "cannot be imported"),
    ("model.rewards.math:Nothing", "cannot be imported"),
])  # fmt: skip
def test_unknown_checks_are_refused(name: str, said: str) -> None:
    with pytest.raises(CheckError, match=said):
        build_checks([name])
