"""A real reward model in seconds: the demo's first layers, and a head fitted to tell sound answers from spoilt ones.

The head is a ridge regression on the last token's hidden state, of 40 conversations, half of them spoilt. It is good
for what it has seen the like of (no answer, words out of order, an answer that never ends) and for nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.pretrained import load_tokenizer, resolve_model
from model.rewards.reward_model import Conversation

RIDGE = 10.0
LAYERS = 6  # of 30: enough for this, and five times as quick
FITTED_ON = 20  # pairs


def pairs(count: int, seed: int) -> list[tuple[Conversation, Conversation]]:
    """(sound, spoilt) answers to the same question."""
    rng = random.Random(seed)
    return [_pair(number, rng) for number in range(count)]


def _pair(number: int, rng: random.Random) -> tuple[Conversation, Conversation]:
    one, two = rng.randrange(2, 60), rng.randrange(2, 40)
    line = f"{one} + {two} = {one + two}"
    sound = f"<think>\n{line}\n</think>\n<answer>{one + two}</answer>"
    words = sound.split()
    rng.shuffle(words)
    spoilt = (f"<think>\n{line}\n</think>\n<answer></answer>", " ".join(words), f"<think>\n{line}" + " = " * 9)
    prompt = f"Calculate {one} + {two}."
    return (prompt, sound), (prompt, spoilt[number % 3])


def save_reward_model(folder: Path) -> Path:
    """Writes the fitted classifier (float32, one logit) and its tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification

    source = resolve_model("builtin:smollm2-135m-instruct")
    tokenizer = load_tokenizer(source)
    model = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=1, num_hidden_layers=LAYERS, dtype=torch.float32
    ).eval()
    fitted = pairs(FITTED_ON, seed=1)
    features = _features(model, tokenizer, [side for pair in fitted for side in pair])
    wanted = torch.tensor([1.0, -1.0] * FITTED_ON)
    weights = features.T @ torch.linalg.solve(features @ features.T + RIDGE * torch.eye(len(features)), wanted)
    with torch.no_grad():
        model.score.weight.copy_(weights[None, :])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _features(model: Any, tokenizer: Any, conversations: Sequence[Conversation]) -> Any:
    """[B, hidden]: the state at each conversation's last token, one conversation at a time."""
    import torch

    found = []
    for prompt, completion in conversations:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        with torch.inference_mode():
            tokens = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
            found.append(model.model(tokens).last_hidden_state[0, -1])
    return torch.stack(found)
