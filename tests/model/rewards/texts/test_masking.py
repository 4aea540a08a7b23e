"""What is blanked before words are looked at, and that an opening without an end costs nothing."""

from __future__ import annotations

import pytest

from model.rewards.texts.masking import mask, paragraphs


@pytest.mark.parametrize(("text", "kept"), [
    ("<think>a $x + y$ b \\(c\\) d ```e``` f `g` https://j.org \\[k\\] $$l$$</think>", "a b d f"),
    ("before \\begin{align*} x &= 1 \\\\ y \\end{align*} after", "before after"),
    ("a [asy] draw(A); [/asy] b ~~~\ncode\n~~~ c", "a b c"),
    ("\\frac{h}{i} and \\alpha", "{h}{i} and"),
    ("an open ``` fence stays, an open $ too", "an open ``` fence stays, an open $ too"),
])  # fmt: skip
def test_maths_code_tags_and_links_are_blanked(text: str, kept: str) -> None:
    assert mask(text).split() == kept.split()


def test_masking_again_changes_nothing() -> None:
    once = mask("So $x$ is `f(x)`, see \\[y\\] and \\begin{cases}a\\end{cases}.")
    assert mask(once) == once


def test_paragraphs_are_the_lines_that_say_something() -> None:
    assert list(paragraphs("one\n\n \t\ntwo\n")) == ["one", "two"]
