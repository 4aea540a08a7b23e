"""How many positions a model was made for, by its config.json: beyond them its answers are noise, and vLLM refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Names of the number in the configs of transformers; the smallest that is there counts, as in vLLM.
_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
# Kinds of RoPE scaling whose factor lets a model read so many times what the number says (transformers,
# modeling_rope_utils.py). For llama3, longrope and the rest the number is what scaling leads to already.
_STRETCHED = ("linear", "dynamic")


def positions_in(folder: Path) -> int | None:
    """Positions of the model in a folder; None where its config is not there, or names no number."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return longest_position(config) if isinstance(config, dict) else None


def longest_position(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model with this config reads at most, RoPE scaling included; None where no number is named."""
    text = config.get("text_config")
    own: Mapping[str, Any] = text if isinstance(text, Mapping) else config
    named = [own[name] for name in _NAMES if isinstance(own.get(name), int)]
    return _scaled(own, min(named)) if named else None


def _scaled(config: Mapping[str, Any], positions: int) -> int:
    """A dictionary for each kind of layer, as Gemma 3 has it, goes with a number that is scaled already."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, Mapping) or not isinstance(factor := rope.get("factor"), int | float):
        return positions
    kind = rope.get("rope_type") or rope.get("type")
    if kind in _STRETCHED:
        return int(positions * factor)
    if kind == "yarn":
        # Qwen's cards leave the number as it was in pretraining; other models state what YaRN leads to.
        before = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        return max(positions, int((before or positions) * factor))
    return positions
