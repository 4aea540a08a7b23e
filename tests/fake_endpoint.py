"""A small real HTTP server that speaks the OpenAI protocol, completions and chats, and vLLM's `/classify`, for tests
that need an engine's manners.

    python tests/fake_endpoint.py --port 0 [--accuracy 0.7]        prints its URL (…/v1) on the first line

It answers on loopback with text that depends only on (prompt, seed), and can be told to fail as endpoints do.
It knows one trade: `Calculate a + b.` (also −, ×, any number of terms), solved rightly with probability
`accuracy`, in `<think>…</think>` `<answer>…</answer>` form, continuing the prompt's prefill. It counts tokens
as words and obeys `max_tokens` and `stop`. It is no model: what students learn from it is worth nothing.
Of a prompt in token ids it says, by `prompt_logprobs`, that each token had half of the mass, the next id a quarter, ….
A completion in token ids is `continue_tokens`' answer.
Starts in milliseconds; asyncio and the standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

# (prompt, seed) -> the whole completion, before stop strings and max_tokens
Answerer = Callable[[str, int | None], str]

# the request's body -> tokens, their log-probabilities, why they end
TokenAnswerer = Callable[[dict[str, Any]], tuple[list[int], list[float], str]]

_QUESTION = re.compile(r"Calculate (-?\d+(?: [-+*×−] -?\d+)*)\.")
_WORD = re.compile(r"\s*\S+\s*")
_OPERATORS = {"×": "*", "−": "-"}


@dataclass
class Faults:
    """What goes wrong, changeable while the server runs. `fail_key` None means every prompt.

    A fault hits prompts that contain `fail_key`; the first `fail_first` requests of each prompt and seed are
    hit, -1 meaning all of them. `mode`: `500`, `429`, `401`, `404`, `hang` (no answer), `drop` (the
    connection is closed), `garbage` (200 without JSON), `abort` (finish_reason abort).
    """

    mode: str = "500"
    fail_first: int = 0
    fail_key: str | None = None
    max_prompt_chars: int = 1_000_000  # longer prompts are answered with 400, as vLLM does
    seconds: float = 0.0  # before every answer
    most_logprobs: int = 64  # --max-logprobs of a vLLM
    refuse_schema: bool = False  # 400 for every `response_format`


def solve(prompt: str, seed: int | None, accuracy: float = 0.7) -> str:
    """A worked sum for the last question in the prompt, wrong by one with probability 1 − accuracy."""
    rng = random.Random(hashlib.sha256(f"{seed}\0{prompt}".encode()).digest())
    opening = "" if prompt.endswith("<think>\n") else "<think>\n"
    questions = _QUESTION.findall(prompt)
    if not questions:
        return f"{opening}I do not know {rng.randrange(1000)}.\n</think>\n"
    expression = questions[-1]
    value = evaluate(expression) + (0 if rng.random() < accuracy else rng.choice([-1, 1]))
    remark = rng.choice(["", "Let me see.\n", "Step by step:\n", f"(try {rng.randrange(10)})\n"])
    return f"{opening}{remark}{expression} = {value}\n</think>\n<answer>{value}</answer>"


def score(token: int, k: int) -> dict[str, dict[str, Any]]:
    """What vLLM says of one position: the token itself with ½, the next id with ¼, … (so k of them have 1 − 2⁻ᵏ)."""
    return {str(token + i): {"logprob": -(i + 1) * math.log(2), "rank": i + 1} for i in range(k)}


def evaluate(expression: str) -> int:
    """`7 - 2 * 3` as an int: products first. Terms and operators stand apart by single blanks."""
    total, product, sign = 0, 1, 1
    operator = "*"
    for token in expression.split(" "):
        if token in "+-*×−":
            operator = _OPERATORS.get(token, token)
        elif operator == "*":
            product *= int(token)
        else:
            total, product, sign = total + sign * product, int(token), 1 if operator == "+" else -1
    return total + sign * product


@dataclass
class FakeEndpoint:
    """The server, in a thread of its own. `requests` keeps every body received, `most_in_flight` the peak."""

    answer: Answerer = solve
    faults: Faults = field(default_factory=Faults)
    model: str = "fake"
    api_key: str | None = None
    port: int = 0
    continue_tokens: TokenAnswerer = lambda body: ([body["stop_token_ids"][0]], [0.0], "stop")
    logits: Callable[[str], list[float]] = lambda text: [float(len(text))]  # of a classified text
    requests: list[dict[str, Any]] = field(default_factory=list)
    engine_calls: list[tuple[str, Any]] = field(default_factory=list)  # vLLM's development routes
    in_flight: int = 0
    most_in_flight: int = 0
    cancelled: int = 0  # requests whose client went away before the answer
    seen: Counter[tuple[str, int | None]] = field(default_factory=Counter)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        self._server.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests one after another until the client closes it."""
        try:
            while (received := await _read_request(reader)) is not None:
                reply = await self._while_connected(reader, self._reply(*received))
                if reply is None:
                    break
                await _write(writer, *reply)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client is gone, or the server is shutting down
        finally:
            writer.close()

    async def _while_connected(self, reader: asyncio.StreamReader, work: Any) -> tuple[int, bytes] | None:
        """The work's result, or None (and the work cancelled) once the client has closed the connection."""
        reply = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait([reply], timeout=0.02))[0]:
                if reader.at_eof():
                    self.cancelled += 1
                    return None
            return reply.result()  # type: ignore[no-any-return]
        finally:
            reply.cancel()

    async def _reply(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes] | None:
        if self.api_key is not None and headers.get("authorization") != f"Bearer {self.api_key}":
            return _error(401, "Unauthorized")
        if path in ("/health", "/v1/health"):
            return 200, b"{}"
        if path == "/v1/models":
            return 200, json.dumps({"object": "list", "data": [{"id": self.model, "object": "model"}]}).encode()
        if path in ("/collective_rpc", "/reset_prefix_cache", "/sleep", "/wake_up"):
            self.engine_calls.append((path, json.loads(body)))
            return 200, b'{"success": true}'
        if path not in ("/v1/completions", "/v1/chat/completions", "/classify"):
            return _error(404, "Not Found")
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._complete(json.loads(body))
        finally:
            self.in_flight -= 1

    async def _complete(self, body: dict[str, Any]) -> tuple[int, bytes] | None:
        self.requests.append(body)
        if body["model"] != self.model:
            return _error(404, f"The model `{body['model']}` does not exist.")
        if self.faults.refuse_schema and "response_format" in body:
            return _error(400, "response_format is not supported here")
        if "messages" in body:  # a chat: answered like a prompt of its messages, one after another
            body = body | {"prompt": "\n".join(message["content"] for message in body["messages"])}
        if "input" in body:
            body = body | {"prompt": body["input"]}
        if "prompt_logprobs" in body:
            return await self._score(body)
        if body.get("return_token_ids"):
            return self._continue_tokens(body)
        if len(body["prompt"]) > self.faults.max_prompt_chars:
            return _error(400, f"maximum context length is {self.faults.max_prompt_chars}: {body['prompt']}")
        await asyncio.sleep(self.faults.seconds)
        if self._is_hit(body):
            return await self._fail()
        answer = self._classification(body) if "input" in body else self._completion(body)
        return 200, json.dumps(answer).encode()

    async def _score(self, body: dict[str, Any]) -> tuple[int, bytes] | None:
        tokens, k = body["prompt"], body["prompt_logprobs"]
        if k > self.faults.most_logprobs:
            return _error(400, f"Requested prompt logprobs of {k}, which is greater than max allowed")
        await asyncio.sleep(self.faults.seconds)
        if self._is_hit(body | {"prompt": " ".join(map(str, tokens))}):
            return await self._fail()
        answer = _answer("", "length", len(tokens), 1)
        answer["choices"][0]["prompt_logprobs"] = [None, *(score(token, k) for token in tokens[1:])]
        answer["choices"][0]["prompt_token_ids"] = tokens if body.get("return_token_ids") else None
        return 200, json.dumps(answer).encode()

    def _continue_tokens(self, body: dict[str, Any]) -> tuple[int, bytes]:
        if len(body["prompt"]) > self.faults.max_prompt_chars:
            return _error(400, f"maximum context length is {self.faults.max_prompt_chars} tokens")
        tokens, log_probs, reason = self.continue_tokens(body)
        answer = _answer("", reason, len(body["prompt"]), len(tokens))
        answer["choices"][0] |= {"token_ids": tokens, "prompt_token_ids": body["prompt"]}
        answer["choices"][0]["logprobs"] = {"token_logprobs": log_probs}
        return 200, json.dumps(answer).encode()

    def _is_hit(self, body: dict[str, Any]) -> bool:
        key = (body["prompt"], body.get("seed"))
        self.seen[key] += 1
        if self.faults.fail_key is not None and self.faults.fail_key not in body["prompt"]:
            return False
        return self.faults.fail_first < 0 or self.seen[key] <= self.faults.fail_first

    async def _fail(self) -> tuple[int, bytes] | None:
        mode = self.faults.mode
        if mode == "hang":
            await asyncio.sleep(3600)
        if mode == "garbage":
            return 200, b"<html>it works</html>"
        if mode == "abort":
            return 200, json.dumps(_answer("", "abort", 1, 0)).encode()
        return None if mode in ("drop", "hang") else _error(int(mode), "told to fail")

    def _classification(self, body: dict[str, Any]) -> dict[str, Any]:
        logits = self.logits(body["input"])
        data = [{"index": 0, "label": "LABEL_0", "probs": logits, "num_classes": len(logits)}]
        return {"object": "list", "data": data, "usage": {"prompt_tokens": len(_WORD.findall(body["input"]))}}

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        words = _WORD.findall(self.answer(body["prompt"], body.get("seed")))
        text, reason = (
            "".join(words[: body["max_tokens"]]),
            "length" if len(words) > body["max_tokens"] else "stop",
        )
        ends = [(text.index(stop), stop) for stop in body.get("stop") or () if stop in text]
        if ends:
            at, stop = min(ends)
            text, reason = text[: at + (len(stop) if body.get("include_stop_str_in_output") else 0)], "stop"
        answer = _answer(text, reason, len(_WORD.findall(body["prompt"])), len(_WORD.findall(text)))
        answer["choices"][0]["stop_reason"] = min(ends)[1] if ends else None
        if "messages" in body:
            answer["object"] = "chat.completion"
            answer["choices"][0]["message"] = {"role": "assistant", "content": answer["choices"][0].pop("text")}
        return answer


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes] | None:
    """(path, lower-case headers, body), or None at the end of the connection."""
    line = (await reader.readline()).decode()
    if not line:
        return None
    headers: dict[str, str] = {}
    while (header := (await reader.readline()).decode().strip()) != "":
        name, _, value = header.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return line.split(" ")[1].partition("?")[0], headers, body


async def _write(writer: asyncio.StreamWriter, code: int, body: bytes) -> None:
    head = f"HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


def _error(code: int, message: str) -> tuple[int, bytes]:
    return code, json.dumps({"error": {"message": message, "code": code}}).encode()


def _answer(text: str, reason: str, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "object": "text_completion",
        "choices": [{"index": 0, "text": text, "finish_reason": reason}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--accuracy", type=float, default=0.7)
    parser.add_argument("--seconds", type=float, default=0.0, help="before every answer")
    parser.add_argument("--fail-first", type=int, default=0, help="requests of each prompt and seed; -1: all")
    parser.add_argument("--fail-key", default=None, help="only prompts that contain this text")
    parser.add_argument("--mode", default="500")
    options = parser.parse_args()
    faults = Faults(options.mode, options.fail_first, options.fail_key, seconds=options.seconds)

    def answer(prompt: str, seed: int | None) -> str:
        return solve(prompt, seed, options.accuracy)

    with FakeEndpoint(answer, faults, options.model, port=options.port) as endpoint:
        print(endpoint.url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
