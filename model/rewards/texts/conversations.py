"""A conversation as a reward model reads it: in that model's chat template, with no special token that a sample wrote.

The same text is scored wherever the model runs. Loads the tokenizer alone.
"""

from __future__ import annotations

from typing import Any

from model.errors import ModelFolderError
from model.pretrained import load_tokenizer
from model.rewards.reward_model import Conversation, plain


class Rendering:
    """One reward model's tokenizer. Raises ModelFolderError where there is none, or it has no chat template."""

    def __init__(self, model: str, revision: str) -> None:
        self.tokenizer = load_tokenizer(model, revision)
        if not self.tokenizer.chat_template:
            raise ModelFolderError(f"the tokenizer of the reward model {model} has no chat template; add one")
        self._special = _special_tokens(self.tokenizer)
        self._longest_token = max(len(token) for token in self.tokenizer.get_vocab())

    def text(self, prompt: str, completion: str) -> str:
        """The whole conversation, special tokens included."""
        turns = (("user", prompt), ("assistant", completion))
        messages = [{"role": role, "content": plain(text, self._special)} for role, text in turns]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False))

    def is_too_long(self, conversation: Conversation, max_length: int) -> bool:
        """Whether no tokenizing is needed to know: a token stands for so many characters at most."""
        return sum(map(len, conversation)) > max_length * self._longest_token


def _special_tokens(tokenizer: Any) -> list[str]:
    """Longest first, so that one which holds another is broken up whole."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
