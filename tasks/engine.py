"""What answers requests: endpoints that somebody else runs, or a vLLM server of ours, started when first needed.

An engine that died is started again by the next shard that asks for a client, so a shard's retry meets a live
one. One engine serves one model at a time; `serve` puts another model's weights into the running server where
the architecture is the same (a second), and starts a new server where it is not.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from model.errors import InterruptedRunError, SamplerError
from model.pretrained import resolve_model
from model.sampling.client import CompletionsClient
from model.sampling.request import AnyRequest, Completion, SamplingParams
from model.sampling.vllm_server import EngineOptions, VLLMServer
from tasks.progress import Ticker, announce, ticking

SERVED_NAME = "stillhouse"  # what our own servers call whatever they serve
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
    """A context manager; `complete` may be called from many threads and always reaches a live engine."""

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
        self._open = ExitStack()
        self._server: VLLMServer | None = None
        self._client: CompletionsClient | None = None
        self._started: EngineSpec | None = None  # what the server was started with
        self._failure: SamplerError | None = None  # one that no further start would mend
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Before stopping: a shard that is interrupted by this must not start the engine again when it is retried.
        self._closed = True
        with self._lock:
            self._stop()

    def complete(
        self, requests: Sequence[AnyRequest], on_done: Callable[[Completion], None] | None = None
    ) -> list[Completion]:
        """The requests' completions, in their order; starts the engine if it is not running.

        Raises SamplerError when the engine cannot be started or fails, InterruptedRunError when the run is ending.
        """
        try:
            return self.ready().complete(requests, on_done)
        except CancelledError:
            self._require_open()
            raise SamplerError("the engine died and was started again for another shard") from None

    def ready(self) -> CompletionsClient:
        """A client of the running engine, which is started, or started again, if need be."""
        with self._lock:
            self._require_open()
            self._learn_from_death()
            if self._failure is not None:
                raise self._failure
            if self._client is None:
                self._start()
            assert self._client is not None
            return self._client

    def serve(self, spec: EngineSpec) -> None:
        """Makes `spec` what answers from now on. No request may be running."""
        with self._lock:
            if spec == self.spec and self._client is not None:
                return
            self.spec, self._failure = spec, None
            if not self._swap_weights(spec):
                self._stop()

    def _swap_weights(self, spec: EngineSpec) -> bool:
        """Puts the weights into the running server, if they fit it; a second instead of a start."""
        if self._server is None or not self._server.alive() or self._started is None:
            return False
        now, target = _folder(self._started), _folder(spec)
        fits = replace(spec.options, revision="") == replace(self._started.options, revision="")
        if not (fits and spec.managed and now and target and same_architecture(now, target)):
            return False
        self._server.load_weights(target)
        return True

    def _start(self) -> None:
        self._stop()
        try:
            if self.spec.managed:
                self._server = self._start_server()
            self._client = self._open.enter_context(self._new_client())
        except SamplerError as error:
            self._failure = None if error.retryable else error
            raise

    def _start_server(self) -> VLLMServer:
        target = resolve_model(self.spec.model, self.spec.revision, say=announce)
        with ticking("start vLLM", None, "steps") as ticker:
            server = VLLMServer(
                target,
                SERVED_NAME,
                log_path=self._log_path,
                options=self.spec.options,
                on_progress=lambda phase, _: self._show(ticker, phase),
            )
            self._started = self.spec
            return self._open.enter_context(server)

    def _new_client(self) -> CompletionsClient:
        server = self._server
        return CompletionsClient(
            [server.url] if server else list(self.spec.urls),
            SERVED_NAME if server else self.spec.model,
            self.params,
            concurrency=self._concurrency,
            timeout_seconds=self._timeout_seconds,
            api_key=os.environ.get(self.spec.api_key_env) if self.spec.api_key_env else None,
            alive=server.check if server else None,
        )

    def _show(self, ticker: Ticker, phase: str) -> None:
        """Called while the server starts, so that Ctrl-C need not wait for it."""
        self._require_open()
        ticker.describe(phase)

    def _learn_from_death(self) -> None:
        """Drops a server that died; what it died of may be worth no further start."""
        if self._server is None or self._server.alive():
            return
        try:
            self._server.check()
        except SamplerError as error:
            self._failure = None if error.retryable else error
        self._stop()

    def _require_open(self) -> None:
        if self._closed:
            raise InterruptedRunError("the run is ending, so its engine is gone")

    def _stop(self) -> None:
        self._open.close()
        self._server = self._client = self._started = None


def _folder(spec: EngineSpec) -> Path | None:
    """The local folder of a spec's weights; None for a hub name."""
    found = resolve_model(spec.model, spec.revision, say=announce)
    return found if isinstance(found, Path) else None


def same_architecture(one: Path, other: Path) -> bool:
    """Whether two model folders' weights fit the same engine, by their config.json."""
    configs = [json.loads((folder / "config.json").read_text()) for folder in (one, other)]
    return all(configs[0].get(key) == configs[1].get(key) for key in _ARCHITECTURE)
