"""What answers requests: endpoints that somebody else runs, or a vLLM server of ours, started when first needed.

An engine that died is started again by the next shard that asks for a client, so a shard's retry meets a live
one. One engine serves one model at a time; `serve` puts another model's weights into the running server where
the architecture is the same (a second), and starts a new server where it is not. With a `Standby` the server outlives
its engine, for the next one that can use it.
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
from typing import Any, Self

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
# What may differ between models of one architecture.
_OF_NO_WEIGHT = {
    "_name_or_path", "name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache", "bos_token_id",
    "eos_token_id", "pad_token_id", "attention_dropout", "initializer_range",
}  # fmt: skip


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


@dataclass(slots=True)
class Running:
    """A server of ours, what it was started for, and whose weights it has now (None: nobody knows)."""

    server: VLLMServer
    started: EngineSpec
    loaded: EngineSpec | None

    def fits(self, spec: EngineSpec) -> bool:
        """Whether it can answer for `spec`, with other weights if need be."""
        if not self.server.alive() or replace(spec.options, revision="") != replace(self.started.options, revision=""):
            return False
        if spec == self.loaded:
            return True
        now, target = _folder(self.started), _folder(spec)
        return spec.managed and bool(now and target and same_architecture(now, target))

    def load(self, spec: EngineSpec) -> None:
        """Has it answer for a spec that fits."""
        target = _folder(spec)
        if spec != self.loaded and target:
            self.loaded = None
            self.server.load_weights(target)
            self.loaded = spec


class Standby:
    """Keeps the server that an engine has left until the next engine takes it or the block ends: at most one."""

    def __init__(self) -> None:
        self._kept: Running | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(None)

    def keep(self, running: Running | None) -> None:
        """Puts a server in the place of the one that is kept, which is stopped."""
        kept, self._kept = self._kept, running
        if kept is not None:
            kept.server.stop()

    def take(self, spec: EngineSpec) -> Running | None:
        """The kept server, if it fits; one that does not is stopped, for the next needs the room."""
        if self._kept is None or not self._kept.fits(spec):
            self.keep(None)
        taken, self._kept = self._kept, None
        return taken


class Engine:
    """A context manager; `complete` may be called from many threads and always reaches a live engine.

    `standby`: where a server of ours is looked for before one is started, and left in the end.
    """

    def __init__(
        self,
        spec: EngineSpec,
        params: SamplingParams,
        *,
        concurrency: int,
        timeout_seconds: float,
        log_path: Path,
        standby: Standby | None = None,
    ) -> None:
        self.spec, self.params = spec, params
        self._concurrency, self._timeout_seconds = concurrency, timeout_seconds
        self._log_path, self._standby = log_path, standby
        self._lock = threading.Lock()
        self._client: CompletionsClient | None = None
        self._running: Running | None = None
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
            if self._standby and self._running and kind is None:  # after an error requests may still be running
                self._standby.keep(self._running)
                self._running = None
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
            if spec == self.spec and self._answers_for(spec):
                return
            self.spec, self._failure = spec, None
            if self._running is None or not self._running.fits(spec):
                self._stop()
                return
            try:
                self._running.load(spec)
            except BaseException:  # what it would answer now, nobody knows
                self._stop()
                raise

    def _answers_for(self, spec: EngineSpec) -> bool:
        return self._client is not None and (self._running is None or self._running.loaded == spec)

    def lend(self) -> str:
        """The URL of the engine, running, for a trainer that puts weights of its own into it. On a CPU only.

        One that was lent before may be what that attempt failed of, so then a new one is started.
        """
        with self._lock:
            if self._running is not None and self._running.loaded is None:
                self._stop()
        self.ready()
        with self._lock:
            assert self._running is not None, "only a server of ours is lent"
            self._running.loaded = None
            return self._running.server.url

    def _start(self) -> None:
        self._stop()
        try:
            if self.spec.managed:
                self._take()
                self._running = self._running or self._started()
            self._client = self._new_client().__enter__()
        except SamplerError as error:
            self._failure = None if error.retryable else error
            raise

    def _take(self) -> None:
        self._running = self._standby.take(self.spec) if self._standby else None
        if self._running is not None:
            self._running.load(self.spec)

    def _started(self) -> Running:
        target = resolve_model(self.spec.model, self.spec.revision, say=announce)
        with ticking("start vLLM", None, "steps") as ticker:
            server = VLLMServer(
                target,
                SERVED_NAME,
                log_path=self._log_path,
                options=self.spec.options,
                on_progress=lambda phase, _: self._show(ticker, phase),
            )
            server.start()
            return Running(server, self.spec, self.spec)

    def _new_client(self) -> CompletionsClient:
        server = self._running.server if self._running else None
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
        if self._running is None or self._running.server.alive():
            return
        try:
            self._running.server.check()
        except SamplerError as error:
            self._failure = None if error.retryable else error
        self._stop()

    def _require_open(self) -> None:
        if self._closed:
            raise InterruptedRunError("the run is ending, so its engine is gone")

    def _stop(self) -> None:
        client, self._client = self._client, None
        running, self._running = self._running, None
        with ExitStack() as last:  # the server also where closing the client fails
            if running is not None:
                last.callback(running.server.stop)
            if client is not None:
                last.push(client)


def _folder(spec: EngineSpec) -> Path | None:
    """The local folder of a spec's weights; None for a hub name."""
    found = resolve_model(spec.model, spec.revision, say=announce)
    return found if isinstance(found, Path) else None


def same_architecture(one: Path, other: Path) -> bool:
    """Whether two model folders' weights fit the same engine, by their config.json.

    What makes an architecture must be equal; of all else (rotary base, norms, biases, …) what both files name, since
    older ones leave out what newer ones write.
    """
    configs = [_without_spelling(json.loads((folder / "config.json").read_text())) for folder in (one, other)]
    named = (configs[0].keys() & configs[1].keys()) - _OF_NO_WEIGHT
    return all(configs[0].get(key) == configs[1].get(key) for key in {*_ARCHITECTURE, *named})


def _without_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """A config whose rotary settings stand in one place, as transformers 5 writes them."""
    scaling = config.pop("rope_parameters", None) or config.pop("rope_scaling", None) or {}
    config.pop("rope_scaling", None)
    rope = {"rope_type": scaling.get("type", "default"), **{key: scaling[key] for key in scaling if key != "type"}}
    if "rope_theta" in config:
        rope["rope_theta"] = config.pop("rope_theta")
    return {**config, "rope_parameters": rope} if "rope_theta" in rope else config
