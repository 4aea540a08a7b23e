"""What is packed again, on stand-ins of vLLM's modules; in a real engine: tests/tasks/test_real_vllm.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from model.sampling.worker_extension import TiedHead


class VocabParallelEmbedding:
    def __init__(self, weight: list[float]) -> None:
        self.weight = weight


class ParallelLMHead(VocabParallelEmbedding):
    packed: list[float] | None = None

    @property
    def quant_method(self) -> Any:
        return SimpleNamespace(process_weights_after_loading=lambda head: setattr(head, "packed", list(head.weight)))


def worker(*modules: object) -> TiedHead:
    made = TiedHead()
    made.model_runner = SimpleNamespace(get_model=lambda: SimpleNamespace(modules=lambda: iter(modules)))
    return made


def test_a_tied_head_is_packed_from_the_new_weights() -> None:
    weight = [1.0]
    head = ParallelLMHead(weight)
    assert worker(VocabParallelEmbedding(weight), head).repack_tied_heads() == 1
    assert head.packed == [1.0]


def test_a_head_of_its_own_was_loaded_and_packed_by_vllm() -> None:
    head = ParallelLMHead([1.0])
    assert worker(VocabParallelEmbedding([1.0]), head).repack_tied_heads() == 0
    assert head.packed is None
