"""A reward model as a process of its own: `python -m model.rewards.workers.scorer`, kept by `scorer_process.py`.

Its standard input is a socket: a ScorerSpec comes in, None (ready) or what is wrong goes out; then lists of
conversations come in, and batch by batch (places, scorings) go out. On a GPU where there is one. A batch that does not
fit into the GPU's memory is halved; one conversation that does not is `out_of_memory`. It trusts its parent: messages
are pickles.

Batches hold neighbours in length, padded on the right with a token that none of them holds where the model names no
pad token, so that a score does not depend on a conversation's company, rounding aside.
Axes: B conversations, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import ModelFolderError, StillhouseError, first_line
from model.pretrained import check_model_folder
from model.rewards.reward_model import (
    MOST_LOGITS,
    NOT_FINITE,
    OUT_OF_MEMORY,
    TOO_LONG,
    Conversation,
    ScorerSpec,
    Scoring,
    length_batches,
    unused_token,
)
from model.rewards.texts.conversations import Rendering

Row = np.ndarray[Any, np.dtype[np.int32]]
Batch = tuple[list[int], list[Scoring]]

_TOKENIZED_AT_ONCE = 64  # conversations


def main() -> None:
    """Serves the parent until it closes the socket."""
    connection = Connection(0)
    try:
        scorer = _loaded(connection)
        while scorer is not None:
            for batch in scorer.score(connection.recv()):
                connection.send(batch)
    except (EOFError, ConnectionError):
        return


def _loaded(connection: Connection) -> Scorer | None:
    spec: ScorerSpec = connection.recv()
    try:
        scorer = Scorer(spec)
    except StillhouseError as error:
        connection.send(error)
        return None
    connection.send(None)
    return scorer


class Scorer:
    """A loaded reward model. Raises ModelFolderError for one that is no such model, or has no chat template."""

    def __init__(self, spec: ScorerSpec) -> None:
        import torch

        self.spec = spec
        gpu = spec.device == "auto" and torch.cuda.is_available()
        self.device = "cuda" if gpu else spec.device.replace("auto", "cpu")
        self.rendering = Rendering(spec.model, spec.revision)
        self.model = _load_classifier(spec).to(self.device).eval()
        places = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = min(spec.max_length, places or spec.max_length)

    def score(self, conversations: Sequence[Conversation]) -> Iterator[Batch]:
        """(places, scorings), batch by batch; every place comes once."""
        rows, too_long = self._rows(conversations)
        if too_long:
            yield list(too_long), list(too_long.values())
        places = list(rows)
        for batch in length_batches([len(rows[place]) for place in places], self.spec.tokens_per_batch):
            chosen = [places[at] for at in batch]
            yield chosen, self._timed([rows[place] for place in chosen])

    def _rows(self, conversations: Sequence[Conversation]) -> tuple[dict[int, Row], dict[int, Scoring]]:
        """Tokens by place, and the scorings of those that are too long; both together are all places."""
        rows: dict[int, Row] = {}
        too_long: dict[int, Scoring] = {}
        long = self.rendering.is_too_long
        short = [place for place, pair in enumerate(conversations) if not long(pair, self.max_length)]
        for start in range(0, len(short), _TOKENIZED_AT_ONCE):
            part = short[start : start + _TOKENIZED_AT_ONCE]
            rows |= zip(part, self._tokenized([conversations[place] for place in part]), strict=True)
        for place in range(len(conversations)):
            tokens = len(rows[place]) if place in rows else 0
            if not 0 < tokens <= self.max_length:
                rows.pop(place, None)
                too_long[place] = Scoring(None, TOO_LONG, tokens, 0.0)
        return rows, too_long

    def _tokenized(self, conversations: Sequence[Conversation]) -> list[Row]:
        texts = [self.rendering.text(*conversation) for conversation in conversations]
        found = self.rendering.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [np.asarray(ids, np.int32) for ids in found]

    def _timed(self, rows: Sequence[Row]) -> list[Scoring]:
        """The batch's scorings; each bears the same part of its time."""
        started = time.perf_counter()
        scores = self._halved_if_too_big(rows)
        each = (time.perf_counter() - started) * 1000.0 / len(rows)
        return [_scoring(score, len(row), each) for score, row in zip(scores, rows, strict=True)]

    def _halved_if_too_big(self, rows: Sequence[Row]) -> list[float | None]:
        """The rows' scores; None for one that alone does not fit into the GPU's memory."""
        import torch

        try:
            return list(self._forward(rows))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        if len(rows) == 1:
            return [None]
        half = len(rows) // 2
        return self._halved_if_too_big(rows[:half]) + self._halved_if_too_big(rows[half:])

    def _forward(self, rows: Sequence[Row]) -> list[float]:
        import torch

        config = self.model.config.get_text_config()
        named = config.pad_token_id
        pad = unused_token(row.tolist() for row in rows) if named is None else named
        width = max(len(row) for row in rows)
        tokens_BT = torch.tensor(np.stack([np.pad(row, (0, width - len(row)), constant_values=pad) for row in rows]))
        lengths_B = torch.tensor([len(row) for row in rows])
        mask_BT = (torch.arange(width)[None, :] < lengths_B[:, None]).long()
        config.pad_token_id = pad
        try:
            with torch.inference_mode():
                inputs = tokens_BT.long().to(self.device), mask_BT.to(self.device)
                logits = self.model(input_ids=inputs[0], attention_mask=inputs[1]).logits
        finally:
            config.pad_token_id = named
        scores: list[float] = logits[:, -1].float().tolist()
        return scores


def _scoring(score: float | None, tokens: int, milliseconds: float) -> Scoring:
    if score is None:
        return Scoring(None, OUT_OF_MEMORY, tokens, milliseconds)
    finite = bool(np.isfinite(score))
    return Scoring(score if finite else None, "" if finite else NOT_FINITE, tokens, milliseconds)


def _load_classifier(spec: ScorerSpec) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    if Path(spec.model).is_dir():
        check_model_folder(Path(spec.model))
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            spec.model, revision=spec.revision, dtype=getattr(torch, spec.dtype), output_loading_info=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelFolderError(f"no reward model at {spec.model}: {first_line(error)}") from None
    if info["missing_keys"]:  # transformers would fill a missing head with random numbers
        absent = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelFolderError(f"{spec.model} is no reward model: its weights lack {absent}")
    if model.config.num_labels > MOST_LOGITS:
        raise ModelFolderError(f"{spec.model} has {model.config.num_labels} classes; a reward model has one or two")
    model.config.use_cache = False
    return model


if __name__ == "__main__":
    main()
