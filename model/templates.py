"""How a problem becomes a prompt, and how a completion falls apart into reasoning and answer.

A template is a system message, worked turns ("shots") that only the teacher sees, and a prefill: the first
characters of every assistant message, given for free so that the model starts to think. Rendering uses the
tokenizer's own chat template. Completions are split on their text, not on token ids, since `<think>` is one
token in some vocabularies and several in others.

Not promised: some chat templates (Qwen3, DeepSeek-R1) cut `<think>…</think>` out of earlier assistant turns,
so worked turns reach such a model without their reasoning.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from model.errors import ModelFolderError
from model.records import content_hash

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

Message = dict[str, str]


class ChatTokenizer(Protocol):
    """What a template needs of a Hugging Face tokenizer."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """What teacher and student see around a problem.

    `system` None leaves the system turn out (a chat template may then put its own default there). `stop`
    strings end a completion and stay in its text. `shots` are (user, assistant) pairs in the order they are
    shown; the assistant side is the whole message, prefill included.
    """

    name: str
    system: str | None = None
    prefill: str = ""
    stop: tuple[str, ...] = ()
    shots: tuple[tuple[str, str], ...] = ()

    @property
    def fingerprint(self) -> str:
        """`name@` and 8 hex digits over all fields: another wording is another template."""
        return f"{self.name}@{content_hash('template', asdict(self), digits=8)}"

    def without_shots(self) -> PromptTemplate:
        """The student's view: the same template with no worked turns."""
        return replace(self, shots=())

    def messages(self, prompt: str) -> list[Message]:
        """The conversation in OpenAI form, ending with the user's turn."""
        turns: list[Message] = []
        if self.system is not None:
            turns.append({"role": "system", "content": self.system})
        for user, assistant in self.shots:
            turns.append({"role": "user", "content": user})
            turns.append({"role": "assistant", "content": assistant})
        return [*turns, {"role": "user", "content": prompt}]

    def render(self, tokenizer: ChatTokenizer, prompt: str) -> str:
        """The text before the assistant message, without the prefill; tokenise with
        `add_special_tokens=False`.

        Where a model's chat template already opens the message with our prefill (R1's `<think>\\n`), it is
        taken off, so that `render(…) + prefill` holds it exactly once for every model.

        Raises ModelFolderError when the tokenizer has no chat template.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise ModelFolderError(
                "the tokenizer has no chat template; use the model's instruct variant, "
                "or add a chat_template.jinja to its folder"
            )
        rendered = tokenizer.apply_chat_template(self.messages(prompt), tokenize=False, add_generation_prompt=True)
        return str(rendered).removesuffix(self.prefill)


def split_completion(text: str) -> tuple[str | None, str | None]:
    """(reasoning, answer) of a whole assistant message, prefill included; None for a part that is not there.

    The answer is the last `<answer>…</answer>` that stands after a `</think>`: what a model quotes while it
    thinks is no answer. The reasoning runs from the first `<think>` to the last `</think>` before the answer,
    and is None while it is unclosed (a message that `max_tokens` cut). Both are stripped. A fixed number of
    substring searches: time is linear in the text whatever a model writes.
    """
    answer_end = text.rfind(ANSWER_CLOSE)
    answer_start = text.rfind(ANSWER_OPEN, 0, max(answer_end, 0))
    answer = text[answer_start + len(ANSWER_OPEN) : answer_end].strip() if answer_start >= 0 else None
    think_close = text.rfind(THINK_CLOSE, 0, answer_start) if answer is not None else -1
    if think_close < 0:
        answer, think_close = None, text.rfind(THINK_CLOSE)
    return _between(text, think_close), answer


def _between(text: str, think_close: int) -> str | None:
    think_open = text.find(THINK_OPEN)
    if think_open < 0 or think_close < think_open:
        return None
    return text[think_open + len(THINK_OPEN) : think_close].strip()
