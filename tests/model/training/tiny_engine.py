"""Stands in for vLLM in tests of rollouts: the tiny model, read from the folders that the trainer writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.managers import BaseManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model.records import FinishReason
from model.sampling.request import AnyRequest, Completion, Request, SamplingParams, ScoreRequest, TokensRequest
from model.sampling.top_k import TopK
from model.training import vllm_rollouts
from model.training.forward import Model


class TinyEngine:
    """A "server" and its client in one. `deaf`: loads nothing; `raw`: tells log-probabilities at temperature 1."""

    def __init__(self, folder: Path, *, temperature: float = 1.0, deaf: bool = False, raw: bool = False) -> None:
        self.url, self.urls, self.served_name = "tiny", ["tiny"], "policy"
        self.temperature, self.deaf, self.raw = temperature, deaf, raw
        self.model = read(folder)
        self.calls: list[str] = []
        self.busy = threading.Lock()
        self.answered: list[Request] = []

    def __enter__(self) -> TinyEngine:
        self.calls.append("start")
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append("stop")

    def check(self) -> bool:
        return True

    def load_weights(self, folder: Path) -> None:
        self.calls.append("load")
        if not self.deaf:
            self.model = read(folder)

    def sleep(self) -> None:
        self.calls.append("sleep")

    def wake_up(self) -> None:
        self.calls.append("wake")

    def complete(self, requests: Sequence[AnyRequest]) -> list[Completion]:
        does: dict[type, Callable[[Any], Completion]] = {ScoreRequest: self._scored, Request: self._answered}
        with self.busy:
            return [does.get(type(request), self._drawn)(request) for request in requests]

    def _answered(self, request: Request) -> Completion:
        self.answered.append(request)
        return Completion(request.key, "2", FinishReason.STOP, 1, 1, 0.0)

    @torch.no_grad()
    def _scored(self, request: ScoreRequest) -> Completion:
        logits_TV = self.model(input_ids=torch.tensor([request.tokens]), use_cache=False).logits[0, :-1].float()
        best = logits_TV.log_softmax(-1).topk(request.k)
        top_k = TopK(best.indices.numpy().astype(np.int32), best.values.numpy())
        return Completion(request.key, "", FinishReason.STOP, len(request.tokens), 0, 0.0, top_k=top_k)

    @torch.no_grad()
    def _drawn(self, request: AnyRequest) -> Completion:
        assert isinstance(request, TokensRequest)
        generator = torch.Generator().manual_seed(request.seed)
        tokens: list[int] = []
        log_probs: list[float] = []
        while len(tokens) < request.max_tokens and request.end not in tokens:
            ids = torch.tensor([[*request.tokens, *tokens]])
            logits_V = self.model(input_ids=ids, use_cache=False).logits[0, -1].float()
            tempered_V = (logits_V / self.temperature).log_softmax(-1)
            token = int(torch.multinomial(tempered_V.exp(), 1, generator=generator))
            tokens.append(token)
            log_probs.append((logits_V.log_softmax(-1) if self.raw else tempered_V)[token].item())
        reason = FinishReason.STOP if request.end in tokens else FinishReason.LENGTH
        told = {"tokens": tuple(tokens), "log_probs": tuple(log_probs)}
        return Completion(request.key, "", reason, len(request.tokens), len(tokens), 0.0, **told)


def read(folder: Path) -> Model:
    from transformers import AutoModelForCausalLM

    # The trainer's attention, so that both compute the same to the last bit.
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


class Shared(BaseManager):
    """The leading process's engine, which the others ask over loopback as they would ask a vLLM."""


def served(engine: TinyEngine) -> TinyEngine:
    """Has a thread answer who connects to `engine.url`."""
    Shared.register("complete", engine.complete)
    server = Shared(("127.0.0.1", 0), authkey=b"tests").get_server()
    engine.url = f"{server.address[0]}:{server.address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return engine


def asked(url: str) -> Any:
    """The engine of another process."""
    host, port = url.split(":")
    Shared.register("complete")
    shared = Shared((host, int(port)), authkey=b"tests")
    shared.connect()
    return SimpleNamespace(urls=[url], complete=lambda requests: shared.complete(requests)._getvalue())


def install_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `install`, for a job of several processes: the leading one starts the engine, all ask it."""
    engines = install(monkeypatch)
    start = vllm_rollouts.VLLMServer
    alone = vllm_rollouts.CompletionsClient

    def client(urls: Sequence[str], *rest: Any, **settings: Any) -> AbstractContextManager[Any]:
        return alone(urls, *rest, **settings) if engines else nullcontext(asked(urls[0]))

    monkeypatch.setattr(vllm_rollouts, "VLLMServer", lambda *given, **settings: served(start(*given, **settings)))
    monkeypatch.setattr(vllm_rollouts, "CompletionsClient", client)
    monkeypatch.setattr(vllm_rollouts.VLLMAt, "served_name", "policy")


def install(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[TinyEngine]:
    """Has every job with `rollouts = "vllm"` start a tiny engine; returns those started."""
    engines: list[TinyEngine] = []

    def start(folder: Path, _name: str, **_: Any) -> TinyEngine:
        engines.append(TinyEngine(folder, **settings))
        return engines[-1]

    def client(_urls: Sequence[str], _name: str, _params: SamplingParams, **_: Any) -> AbstractContextManager[Any]:
        return nullcontext(engines[-1])

    make: dict[str, Callable[..., Any]] = {"VLLMServer": start, "CompletionsClient": client}
    for name, stand_in in make.items():
        monkeypatch.setattr(vllm_rollouts, name, stand_in)
    return engines
