"""What answers requests: endpoints that somebody else runs, or a vLLM server of ours, started when first needed.

An engine that died is started again by the next shard that asks for a client, so a shard's retry meets a live
one. One engine serves one model at a time; `serve` puts another model's weights into the running server where
the architecture is the same (a second), and starts a new server where it is not.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from model.errors import InterruptedRunError, SamplerError
from model.pretrained import resolve_model
from model.sampling.client import CompletionsClient
from model.sampling.request import SamplingParams
from model.sampling.vllm_server import EngineOptions, VLLMServer
from tasks.progress import Ticker, announce, ticking

# What must be equal in two config.json files for one's weights to fit the other's engine.
_ARCHITECTURE = (
    "architectures", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings", "max_position_embeddings",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Which model answers and where. With `urls` nothing is started; `model` is then the name they know it by."""

    model: str
    revision: str = "main"
    urls: tuple[str, ...] = ()
    api_key_env: str = ""
    options: EngineOptions = field(default_factory=EngineOptions)

    @property
    def managed(self) -> bool:
        """Whether the server is ours to start and stop."""
        return not self.urls


class Engine:
    """A context manager; `client()` is thread-safe and always returns a client of a live engine."""

    def __init__(
        self,
        spec: EngineSpec,
        params: SamplingParams,
        *,
        concurrency: int,
        timeout_seconds: float,
        log_path: Path,
    ) -> None:
        self.spec, self.params = spec, params
        self._concurrency, self._timeout_seconds = concurrency, timeout_seconds
        self._log_path = log_path
        self._lock = threading.Lock()
        self._server: VLLMServer | None = None
        self._client: CompletionsClient | None = None
        self._open = ExitStack()
        self._folder: Path | None = None  # whose weights the server holds
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Before stopping: a shard that is interrupted by this must not start the engine again when it is retried.
        self._closed = True
        self._stop()

    def client(self) -> CompletionsClient:
        """A client of the engine, which is started if it is not running; SamplerError if it cannot be."""
        with self._lock:
            if self._closed:
                raise InterruptedRunError("the run is ending, so its engine is gone")
            if self._client is None or (self._server is not None and not self._server.alive()):
                self._start(self.spec.model)
            assert self._client is not None
            return self._client

    def serve(self, model: str) -> None:
        """Makes `model` (a folder or a name) the one that answers from now on. No request may be running."""
        if not self.spec.managed:
            raise SamplerError(f"the endpoint {self.spec.urls[0]} cannot serve {model}", retryable=False)
        with self._lock:
            target = resolve_model(model, self.spec.revision, say=announce)
            running = self._server is not None and self._server.alive()
            if running and self._folder == target:
                return
            if running and self._folder and isinstance(target, Path) and same_architecture(self._folder, target):
                assert self._server is not None
                self._server.load_weights(target)
                self._folder = target
            else:
                self._start(model)

    def _start(self, model: str) -> None:
        self._stop()
        urls = list(self.spec.urls) or [self._start_server(model).url]
        self._client = self._open.enter_context(
            CompletionsClient(
                urls,
                self.spec.model,
                self.params,
                concurrency=self._concurrency,
                timeout_seconds=self._timeout_seconds,
                api_key=os.environ.get(self.spec.api_key_env) if self.spec.api_key_env else None,
                alive=self._server.check if self._server else None,
            )
        )

    def _start_server(self, model: str) -> VLLMServer:
        target = resolve_model(model, self.spec.revision, say=announce)
        with ticking("start vLLM", None, "steps") as ticker:
            self._server = self._open.enter_context(
                VLLMServer(
                    target,
                    self.spec.model,
                    log_path=self._log_path,
                    options=self.spec.options,
                    on_progress=lambda phase, _: Ticker.describe(ticker, phase),
                )
            )
        self._folder = target if isinstance(target, Path) else None
        return self._server

    def _stop(self) -> None:
        self._open.close()
        self._server = self._client = self._folder = None


def same_architecture(one: Path, other: Path) -> bool:
    """Whether two model folders' weights fit the same engine, by their config.json."""
    configs = [json.loads((folder / "config.json").read_text()) for folder in (one, other)]
    return all(configs[0].get(key) == configs[1].get(key) for key in _ARCHITECTURE)
