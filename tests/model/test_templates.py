"""Templates: what is rendered, when two templates differ, and how a completion is taken apart."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from model.errors import ModelFolderError
from model.templates import PromptTemplate, split_completion

TEMPLATE = PromptTemplate(
    name="think-answer",
    system="You answer.",
    prefill="<think>\n",
    stop=("</answer>",),
    shots=(("1 + 1?", "<think>\n2\n</think>\n<answer>2</answer>"),),
)


class ChatML:
    """A tokenizer's rendering side, in SmolLM2's and Qwen's form."""

    def __init__(self, opening: str = "", chat_template: str | None = "chatml") -> None:
        self.opening, self.chat_template = opening, chat_template

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> str:
        assert kwargs == {"tokenize": False, "add_generation_prompt": True}
        turns = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in conversation]
        return "".join(turns) + "<|im_start|>assistant\n" + self.opening


def test_a_prompt_is_system_then_worked_turns_then_the_question() -> None:
    assert TEMPLATE.messages("2 + 3?") == [
        {"role": "system", "content": "You answer."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "<think>\n2\n</think>\n<answer>2</answer>"},
        {"role": "user", "content": "2 + 3?"},
    ]


def test_the_student_sees_no_worked_turns() -> None:
    rendered = TEMPLATE.without_shots().render(ChatML(), "2 + 3?")
    assert rendered == (
        "<|im_start|>system\nYou answer.<|im_end|>\n<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_no_system_turn_without_a_system_message() -> None:
    assert replace(TEMPLATE, system=None).without_shots().messages("q") == [{"role": "user", "content": "q"}]


def test_a_chat_template_that_opens_the_thinking_itself_does_not_open_it_twice() -> None:
    plain, opening = ChatML(), ChatML(opening="<think>\n")
    assert TEMPLATE.render(opening, "q") == TEMPLATE.render(plain, "q")


def test_a_tokenizer_without_chat_template_is_refused() -> None:
    with pytest.raises(ModelFolderError, match="no chat template"):
        TEMPLATE.render(ChatML(chat_template=None), "q")


def test_the_fingerprint_is_stable_and_covers_every_field() -> None:
    # A changed value here changes every sample id of every dataset: that needs a CHANGELOG entry.
    assert TEMPLATE.fingerprint == "think-answer@c2fcb833"
    others = [
        replace(TEMPLATE, system="You reply."),
        replace(TEMPLATE, system=None),
        replace(TEMPLATE, prefill=""),
        replace(TEMPLATE, stop=()),
        TEMPLATE.without_shots(),
    ]
    assert len({template.fingerprint for template in [TEMPLATE, *others]}) == 6


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\n3 + 4 = 7\n</think>\n<answer>7</answer>", "3 + 4 = 7", "7"),
        ("<think>a</think><answer> \\frac{1}{2}\n</answer> bye", "a", "\\frac{1}{2}"),
        ("<think></think><answer></answer>", "", ""),
        ("<think>cut by max_tok", None, None),
        ("<think>a</think><answer>7", "a", None),
        ("<think>a</think> the answer is 7", "a", None),
        ("no tags at all", None, None),
        ("", None, None),
        ("<answer>7</answer>", None, None),
        ("a</think><answer>7</answer>", None, "7"),
        (
            "<think>I may write <answer>1</answer>.</think><answer>2</answer>",
            "I may write <answer>1</answer>.",
            "2",
        ),
        ("<think>only <answer>1</answer> inside</think>", "only <answer>1</answer> inside", None),
        ("<think>a</think>hm</think><answer>7</answer>", "a</think>hm", "7"),
        ("<think>a</think><answer>7</answer><answer>8</answer>", "a", "8"),
        ("<think>a</think><answer>7</answer></think>", "a", "7"),
        ("</answer><answer><think></think>", "", None),
        ("</think><think>", None, None),
    ],
)
def test_split_completion(text: str, reasoning: str | None, answer: str | None) -> None:
    assert split_completion(text) == (reasoning, answer)


@pytest.mark.parametrize("tag", ["<think>", "</think>", "<answer>", "</answer>", "<answer></answer>", "<", "</think"])
def test_splitting_takes_linear_time_whatever_a_model_writes(tag: str) -> None:
    text = tag * (2_000_000 // len(tag))
    start = time.perf_counter()
    split_completion("<think>" + text)
    assert time.perf_counter() - start < 1.0
