"""Runs inside vLLM's worker processes: what its own `reload_weights` leaves undone on a CPU.

vLLM 0.32 keeps a packed copy of every matrix on a CPU. A reload packs those anew that it has loaded, but the head of a
model with tied embeddings is in no weights file: its copy stays that of the first weights, and every answer after a
reload is made by new layers and an old head. `VLLMServer` names this class as `--worker-extension-cls` and calls
its method after each reload. Imports nothing, for the interpreter is vLLM's and may have nothing else of ours.
"""

from __future__ import annotations

from typing import Any


class TiedHead:
    """Becomes a base of vLLM's worker class."""

    model_runner: Any  # the worker's own

    def repack_tied_heads(self) -> int:
        """Packs the heads again that share the input embedding's weights; returns how many there were."""
        modules = list(self.model_runner.get_model().modules())
        heads = [module for module in modules if type(module).__name__ == "ParallelLMHead"]
        embedded = [module.weight for module in modules if type(module).__name__ == "VocabParallelEmbedding"]
        tied = [head for head in heads if any(head.weight is weight for weight in embedded)]
        for head in tied:
            head.quant_method.process_weights_after_loading(head)
        return len(tied)
