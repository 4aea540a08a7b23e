"""Completions from OpenAI-compatible endpoints: many requests in flight, one bound over all calling threads.

One background thread runs one event loop. Threads that call `complete` at the same time share its slots first
come, first served, so that the next shard's requests fill the engine while the last long answer of a shard is
still being written. Text in, text out (`/v1/completions`): what the model sees is what the caller rendered; a
ChatRequest is rendered by its server (`/v1/chat/completions`). A ClassifyRequest is not completed but classified, by
a vLLM that serves a sequence classifier; a ScoreRequest, in tokens, is only read, by a vLLM, and a TokensRequest
completed in tokens.

What an endpoint does (5xx, 429, lost connections, time-outs) is tried again, on another URL where there is
one, and then ends the call with SamplerError. What it says of one prompt (400, 413, 422) is that row's data:
a `refused` completion. What the user did (401, 403, 404, a redirect) is raised at once and not retryable.
Errors never carry more than 200 characters of anything an endpoint sent. Not promised: the same text for the
same seed; batching changes an engine's arithmetic.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import queue
import random
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar
from urllib.parse import urlsplit

import httpx

from model.errors import SamplerError
from model.records import FinishReason
from model.sampling.request import (
    AnyRequest,
    ChatRequest,
    ClassifyRequest,
    Completion,
    SamplingParams,
    ScoreRequest,
    TokensRequest,
)
from model.sampling.top_k import read_top_k

TRIES = 4  # of one request within one call
TIMEOUT_COST = 2  # tries: each may have taken an hour
BACKOFF_SECONDS = 0.5  # before the second try; doubles, with jitter
LONGEST_BACKOFF_SECONDS = 30.0
CONNECT_SECONDS = 10.0
WATCH_SECONDS = 1.0  # between two looks at the engine's process
# httpcore 1.0 goes through all connections of a pool for each of its requests: with 256 in one, a request takes 19 ms
# of a core, in pools of 8 it takes 1.2 (benchmarks/completions_client.json).
POOL_CONNECTIONS = 8
REFUSALS_THAT_STOP = 32  # refusals in a row that speak of something other than length
EXCERPT = 200  # characters of foreign text in an error

# vLLM closes idle connections after 5 s. Dropping ours earlier avoids sending into a closing one.
KEEPALIVE_EXPIRY_SECONDS = 3.0
# An hour-long answer sends no byte until it is done; these probes notice a host that is gone after about 2
# minutes and keep address translators from forgetting the connection.
_SOCKET_OPTIONS = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
    if hasattr(socket, name)
]

T = TypeVar("T")

CLASSIFY = "classify"
REFUSED_CODES = {400, 413, 422}
# vLLM 0.32 (renderers/params.py, v1/engine/input_processor.py), OpenAI and SGLang: "maximum context length is 4096
# tokens", "maximum model length of 4096", "exceeds the max_model_len 4096", "model's context length (4096 tokens)";
# llama.cpp: "exceeds the available context size (4096 tokens)"; TGI: "`inputs` must have less than 1024 tokens",
# "`inputs` tokens + `max_new_tokens` must be <= 4096".
_OVER_CONTEXT = re.compile(
    r"(?:(?:context|model) length|context size|max_model_len)(?: is| of)? \(?\d|exceeds the available context size"
    r"|`inputs` (?:must have less than|tokens \+ `max_new_tokens` must be)",
    re.IGNORECASE,
)
USER_CODES = {401: "the API key is missing or wrong", 403: "the API key may not use this model"}


class _TryAgainError(Exception):
    """A failure that another try may not meet."""

    def __init__(self, cause: str, *, cost: int = 1, wait_seconds: float = 0.0) -> None:
        super().__init__(cause)
        self.cost, self.wait_seconds = cost, wait_seconds


@dataclass(slots=True)
class _Pool:
    """Some of an endpoint's connections."""

    http: httpx.AsyncClient
    in_flight: int = 0


class _Endpoint:
    """One base URL with its own connections; rests for a while after a failure."""

    def __init__(self, url: str, concurrency: int, timeout_seconds: float, headers: dict[str, str]) -> None:
        self.url = url.rstrip("/")
        self.in_flight = self.served = self.failures = 0
        self.rests_until = 0.0
        timeout = httpx.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds), pool=None)
        certificates = httpx.create_ssl_context()  # takes longer than all else here, so once
        self._pools = [
            _Pool(httpx.AsyncClient(headers=headers, timeout=timeout, transport=_transport(self.url, certificates)))
            for _ in range(0, concurrency, POOL_CONNECTIONS)
        ]

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """Over the least busy pool, so that none has to queue."""
        pool = min(self._pools, key=lambda pool: pool.in_flight)
        pool.in_flight += 1
        try:
            return await pool.http.post(self._address(path), json=body)
        finally:
            pool.in_flight -= 1

    async def close(self) -> None:
        for pool in self._pools:
            await pool.http.aclose()

    def _address(self, path: str) -> str:
        """vLLM has /classify beside /v1, not below it."""
        root = self.url.removesuffix("/v1") if path == CLASSIFY else self.url
        return f"{root}/{path}"

    def succeeded(self) -> None:
        self.failures, self.rests_until = 0, 0.0

    def failed(self) -> None:
        self.failures += 1
        self.rests_until = time.monotonic() + min(2.0 ** min(self.failures, 6), LONGEST_BACKOFF_SECONDS)


class CompletionsClient:
    """A context manager over one or more `/v1` URLs that serve the same model.

    `concurrency` bounds the requests in flight over all threads and URLs. `timeout_seconds` is for one try of
    one request. `alive`, where given, is asked every second while requests wait: once it says False, all of
    them end with SamplerError (its own, where it raises one) instead of waiting for an engine that is gone.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        params: SamplingParams,
        *,
        concurrency: int,
        timeout_seconds: float,
        api_key: str | None = None,
        alive: Callable[[], bool] | None = None,
    ) -> None:
        if not urls or concurrency < 1 or timeout_seconds <= 0:
            raise ValueError("urls, concurrency >= 1 and timeout_seconds > 0 are needed")
        self.urls, self.model, self.params = list(urls), model, params
        self._concurrency, self._timeout_seconds = concurrency, timeout_seconds
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._alive = alive
        self._refusals_in_a_row = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="completions", daemon=True)
        self._thread.start()
        try:
            self._submit(self._open()).result()
        except BaseException:  # also Ctrl-C: the thread must not stay behind
            self._end_loop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._submit(self._close()).result()
        self._end_loop()

    def _end_loop(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None

    def complete(
        self, requests: Sequence[AnyRequest], on_done: Callable[[Completion], None] | None = None
    ) -> list[Completion]:
        """The requests' completions, in their order. May be called from many threads at once.

        `on_done` is called in the calling thread, once per completion as they finish. Raises SamplerError.
        That, and any exception that reaches the calling thread (KeyboardInterrupt, an error of `on_done`),
        cancels all other requests of this call; engines stop writing once the connection is closed.
        """
        done: queue.SimpleQueue[Completion | None] = queue.SimpleQueue()
        call = self._submit(self._complete_all(requests, done))
        call.add_done_callback(lambda _: done.put(None))
        try:
            # The time-out lets an exception set from another thread (Prefect's cancellation) get through.
            while not call.done() or not done.empty():
                completion = _next(done, timeout=0.5)
                if completion is not None and on_done is not None:
                    on_done(completion)
        finally:
            call.cancel()
        return call.result()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self._loop is None:
            work.close()
            raise RuntimeError("the client is used outside its `with` block")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _open(self) -> None:
        self._slots = asyncio.Semaphore(self._concurrency)
        self._endpoints = [_Endpoint(url, self._concurrency, self._timeout_seconds, self._headers) for url in self.urls]

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for endpoint in self._endpoints:
            await endpoint.close()

    async def _complete_all(
        self, requests: Sequence[AnyRequest], done: queue.SimpleQueue[Completion | None]
    ) -> list[Completion]:
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch_engine())
                tasks = [group.create_task(self._complete_one(request, done)) for request in requests]
                if tasks:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                watch.cancel()
        except BaseExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _watch_engine(self) -> None:
        while self._alive is not None:
            if not await asyncio.to_thread(self._alive):
                raise SamplerError(f"the engine behind {', '.join(self.urls)} has died; its log says why")
            await asyncio.sleep(WATCH_SECONDS)

    async def _complete_one(self, request: AnyRequest, done: queue.SimpleQueue[Completion | None]) -> Completion:
        async with self._slots:
            completion = await self._with_retries(request)
        self._stop_if_all_is_refused(completion)
        done.put(completion)
        return completion

    async def _with_retries(self, request: AnyRequest) -> Completion:
        spent, wait = 0, BACKOFF_SECONDS
        while True:
            endpoint = self._choose()
            try:
                return await self._send(endpoint, request)
            except _TryAgainError as failure:
                endpoint.failed()
                spent += failure.cost
                if spent >= TRIES:
                    raise SamplerError(f"{endpoint.url} keeps failing, last with: {failure}") from None
                await asyncio.sleep(max(wait * random.uniform(0.5, 1.5), failure.wait_seconds))
                wait = min(2 * wait, LONGEST_BACKOFF_SECONDS)

    def _choose(self) -> _Endpoint:
        """The least busy endpoint among those that do not rest; of equals, the one that served least."""
        now = time.monotonic()
        awake = [endpoint for endpoint in self._endpoints if endpoint.rests_until <= now]
        if not awake:
            return min(self._endpoints, key=lambda endpoint: endpoint.rests_until)
        return min(awake, key=lambda endpoint: (endpoint.in_flight, endpoint.served))

    async def _send(self, endpoint: _Endpoint, request: AnyRequest) -> Completion:
        start = time.monotonic()
        endpoint.in_flight += 1
        endpoint.served += 1
        try:
            response = await self._post(endpoint, *self._path_and_body(request))
        finally:
            endpoint.in_flight -= 1
        if response.status_code in REFUSED_CODES:
            endpoint.succeeded()
            return _refused(request.key, _message(response), time.monotonic() - start)
        if response.status_code != httpx.codes.OK:
            _raise_for(endpoint.url, self.model, response)
        completion = self._read(request, response, time.monotonic() - start)
        endpoint.succeeded()
        return completion

    async def _post(self, endpoint: _Endpoint, path: str, body: dict[str, Any]) -> httpx.Response:
        try:
            # The sum bounds an endpoint that sends a byte now and then; httpx itself bounds each read.
            async with asyncio.timeout(self._timeout_seconds):
                return await endpoint.post(path, body)
        except (TimeoutError, httpx.ReadTimeout):
            raise _TryAgainError(f"no answer within {self._timeout_seconds:g} s", cost=TIMEOUT_COST) from None
        except httpx.TransportError as error:
            raise _TryAgainError(f"{type(error).__name__}: {str(error)[:EXCERPT]}") from None

    def _read(self, request: AnyRequest, response: httpx.Response, seconds: float) -> Completion:
        if isinstance(request, ClassifyRequest):
            return _classified(request.key, response, seconds)
        if isinstance(request, ScoreRequest):
            return _scored(request, response, seconds)
        if isinstance(request, TokensRequest):
            return _tokens(request, response, seconds)
        return _completion(request.key, response, self._params_of(request).stop, seconds)

    def _params_of(self, request: AnyRequest) -> SamplingParams:
        return request.params if isinstance(request, ChatRequest) else self.params

    def _path_and_body(self, request: AnyRequest) -> tuple[str, dict[str, Any]]:
        """`n` stays 1: a seed together with n > 1 can kill vLLM's CPU engine."""
        if isinstance(request, ClassifyRequest):
            raw = {"use_activation": False, "add_special_tokens": False}
            return CLASSIFY, {"model": self.model, "input": request.text, **raw}
        if isinstance(request, ScoreRequest):
            return "completions", {"model": self.model, **_scoring(request)}
        if isinstance(request, TokensRequest):
            return "completions", {"model": self.model, **_rollout(request, self.params)}
        params = self._params_of(request)
        seed = {} if request.seed is None else {"seed": request.seed}
        shared = seed | {"model": self.model, "n": 1, "temperature": params.temperature, "top_p": params.top_p}
        if isinstance(request, ChatRequest):
            return "chat/completions", shared | _conversation(request)
        return "completions", shared | {
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "stop": list(params.stop),
            "include_stop_str_in_output": True,
            "add_special_tokens": False,
        }

    def _stop_if_all_is_refused(self, completion: Completion) -> None:
        """An endpoint that takes none of our requests (an unknown field) must not eat a whole dataset."""
        if completion.finish_reason is not FinishReason.REFUSED:
            self._refusals_in_a_row = 0
        elif not is_too_long(completion):
            self._refusals_in_a_row += 1
        if self._refusals_in_a_row >= REFUSALS_THAT_STOP:
            message = f"{', '.join(self.urls)} refused {self._refusals_in_a_row} requests in a row"
            raise SamplerError(f"{message}: {completion.error}", retryable=False)


def require_answer(urls: Sequence[str]) -> None:
    """Raises SamplerError unless one of the endpoints answers, whatever it says: a wrong key is told with a request."""
    causes = []
    for url in urls:
        transport = httpx.HTTPTransport(proxy=_proxy(url))
        try:
            with httpx.Client(transport=transport, timeout=CONNECT_SECONDS) as http:
                http.get(f"{url.rstrip('/')}/models")
        except httpx.ReadTimeout:
            return  # it took the connection, and is busy
        except httpx.TransportError as error:
            causes.append(f"{url}: {type(error).__name__}: {str(error)[:EXCERPT]}")
        else:
            return
    raise SamplerError(f"no endpoint answers ({'; '.join(causes)}): start one, or correct its URL")


def is_too_long(completion: Completion) -> bool:
    """Whether the endpoint refused this request because its text does not fit into the model's context.

    The word "length" does not say so: a refusal of another kind may quote a prompt that has it.
    """
    return completion.finish_reason is FinishReason.REFUSED and bool(_OVER_CONTEXT.search(completion.error or ""))


def _conversation(request: ChatRequest) -> dict[str, Any]:
    """Only fields that every server of this protocol knows; an empty one may be refused, so it is left out."""
    body: dict[str, Any] = {
        "messages": [{"role": role, "content": content} for role, content in request.messages],
        "max_tokens": request.params.max_tokens,
    }
    if request.params.stop:
        body["stop"] = list(request.params.stop)
    if request.json_schema:
        schema = {"name": "answer", "schema": json.loads(request.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _scoring(request: ScoreRequest) -> dict[str, Any]:
    """One token must be written; what was read is answered with, so that it can be compared."""
    asked = {"prompt_logprobs": request.k, "return_token_ids": True}
    return {"prompt": list(request.tokens), "max_tokens": 1, "temperature": 0.0, **asked}


def _rollout(request: TokensRequest, params: SamplingParams) -> dict[str, Any]:
    """Nothing is left to a server's defaults, which may cut the distribution (a model's own top_k, a penalty)."""
    whole = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    return whole | {
        "prompt": list(request.tokens),
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "n": 1,
        "temperature": params.temperature,
        "stop": list(params.stop),
        "include_stop_str_in_output": True,
        "ignore_eos": True,  # a model may name several ends of turn; the trainer knows one
        "stop_token_ids": [request.end],
        "return_token_ids": True,
        "logprobs": 0,
    }


def _next(done: queue.SimpleQueue[Completion | None], timeout: float) -> Completion | None:
    try:
        return done.get(timeout=timeout)
    except queue.Empty:
        return None


def _transport(url: str, certificates: ssl.SSLContext) -> httpx.AsyncHTTPTransport:
    """Connections to `url`, through the environment's proxy unless the address is this machine's own."""
    limits = httpx.Limits(
        max_connections=POOL_CONNECTIONS,
        max_keepalive_connections=POOL_CONNECTIONS,
        keepalive_expiry=KEEPALIVE_EXPIRY_SECONDS,
    )
    return httpx.AsyncHTTPTransport(
        verify=certificates,
        limits=limits,
        proxy=_proxy(url),
        socket_options=_SOCKET_OPTIONS,
    )


def _proxy(url: str) -> str | None:
    """The environment's proxy for a URL; none for this machine's own addresses."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SamplerError(f"{url!r} is not an http(s) URL such as http://host:8000/v1", retryable=False)
    if _is_loopback(parts.hostname) or urllib.request.proxy_bypass(parts.hostname):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _raise_for(url: str, model: str, response: httpx.Response) -> NoReturn:
    """The exception for an answer that is neither a completion nor about one prompt."""
    code, message = response.status_code, _message(response)
    if code == httpx.codes.NOT_FOUND:
        pooling = response.url.path.endswith(CLASSIFY)
        other = "the server runs without `--runner pooling`" if pooling else "the URL does not end in /v1"
        remedy = f"no model {model!r} there, or {other}"
    elif code in (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS) or code >= 500:
        raise _TryAgainError(f"HTTP {code}: {message}", wait_seconds=_retry_after(response))
    else:
        remedy = USER_CODES.get(code, "not an OpenAI-compatible completions endpoint")
    raise SamplerError(f"{url} answered HTTP {code} ({remedy}): {message}", retryable=False)


def _retry_after(response: httpx.Response) -> float:
    """Seconds of a numeric Retry-After header, at most a minute; 0 without one."""
    value = response.headers.get("retry-after", "")
    return min(float(value), 60.0) if value.isdigit() else 0.0


def _message(response: httpx.Response) -> str:
    """What the endpoint says went wrong, cut to 200 characters: it may quote the prompt."""
    try:
        body = response.json()
    except ValueError:
        return response.text[:EXCERPT]
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:EXCERPT]


def _refused(key: str, message: str, seconds: float) -> Completion:
    return Completion(key, "", FinishReason.REFUSED, 0, 0, seconds, message)


def _classified(key: str, response: httpx.Response, seconds: float) -> Completion:
    try:
        body = response.json()
        logits, tokens = tuple(map(float, body["data"][0]["probs"])), int(body["usage"]["prompt_tokens"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _unreadable("classification", error, response) from None
    return Completion(key, "", FinishReason.STOP, tokens, 0, seconds, logits=logits)


def _scored(request: ScoreRequest, response: httpx.Response, seconds: float) -> Completion:
    try:
        choice = response.json()["choices"][0]
        answers, read = choice.get("prompt_logprobs"), choice.get("prompt_token_ids")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _unreadable("completion", error, response) from None
    if answers is None or read is None:
        raise SamplerError("the endpoint answers without prompt_logprobs: only vLLM can be asked", retryable=False)
    if read != list(request.tokens):
        raise SamplerError(f"{request.key}: the endpoint has read other tokens than it was sent", retryable=False)
    try:
        top_k = read_top_k(answers, request.tokens, request.first, request.k)
    except (ValueError, KeyError, TypeError) as error:
        raise SamplerError(f"{request.key}: {error}", retryable=False) from None
    return Completion(request.key, "", FinishReason.STOP, len(read), 0, seconds, top_k=top_k)


def _tokens(request: TokensRequest, response: httpx.Response, seconds: float) -> Completion:
    done = _completion(request.key, response, (), seconds)
    if done.finish_reason is FinishReason.REFUSED:
        return done
    choice = response.json()["choices"][0]
    tokens, log_probs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if tokens is None or log_probs is None:
        raise SamplerError("the endpoint answers without token ids: only vLLM can be asked", retryable=False)
    if choice.get("prompt_token_ids") != list(request.tokens):
        raise SamplerError(f"{request.key}: the endpoint has read other tokens than it was sent", retryable=False)
    if len(tokens) != len(log_probs):
        raise SamplerError(f"{request.key}: {len(tokens)} tokens with {len(log_probs)} log-probabilities")
    return replace(done, tokens=tuple(tokens), log_probs=tuple(log_probs))


def _unreadable(what: str, error: Exception, response: httpx.Response) -> _TryAgainError:
    return _TryAgainError(f"not a {what} ({type(error).__name__} {error}): {response.text[:EXCERPT]}")


def _completion(key: str, response: httpx.Response, stop: tuple[str, ...], seconds: float) -> Completion:
    try:
        body = response.json()
        choice, usage = body["choices"][0], body["usage"]
        text, reason = _text(choice), choice["finish_reason"]
        prompt_tokens, completion_tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _unreadable("completion", error, response) from None
    if reason in (None, "abort", "error"):  # the engine gave up, the model did not
        raise _TryAgainError(f"the engine ended the request with finish_reason {reason!r}")
    if reason not in (FinishReason.STOP, FinishReason.LENGTH):
        return _refused(key, f"ended by the endpoint with finish_reason {reason!r}", seconds)
    text = _with_stop(text, choice.get("stop_reason"), stop)
    return Completion(key, text, FinishReason(reason), prompt_tokens, completion_tokens, seconds)


def _text(choice: dict[str, Any]) -> str:
    """What was written; a chat server that keeps thoughts apart sends null when it came to nothing else."""
    return str(choice["message"]["content"] or "") if "message" in choice else str(choice["text"])


def _with_stop(text: str, stop_reason: Any, stop: tuple[str, ...]) -> str:
    """Puts back the stop string where an endpoint names it but leaves it out of the text."""
    if isinstance(stop_reason, str) and stop_reason in stop and not text.endswith(stop_reason):
        return text + stop_reason
    return text
