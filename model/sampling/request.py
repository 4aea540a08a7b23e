"""What is asked of an engine and what comes back: plain values that any sampler, server or test can build."""

from __future__ import annotations

from dataclasses import dataclass

from model.records import FinishReason
from model.sampling.top_k import TopK


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What shapes every completion of a client. `stop` strings end a completion and stay in its text."""

    temperature: float
    top_p: float = 1.0
    max_tokens: int = 1024  # default limit in tokens; a Request has its own
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_tokens < 1:
            raise ValueError(f"temperature >= 0, 0 < top_p <= 1 and max_tokens >= 1 are needed: {self}")


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to be made. `prompt` is the rendered text, prefill included; `key` is the caller's."""

    key: str
    prompt: str
    seed: int | None  # None leaves the random numbers to the engine
    max_tokens: int


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One conversation to be answered (`/v1/chat/completions`) by a model whose template only its server knows.

    `messages` are (role, content). `params` are its own, whatever the client's: a judge is not sampled as a
    teacher is. `json_schema`, JSON text, has the server let the model write that and nothing else; one that cannot
    refuses the request.
    """

    key: str
    messages: tuple[tuple[str, str], ...]
    seed: int | None
    params: SamplingParams
    json_schema: str = ""


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """One text, rendered, whose logits a sequence classifier gives (vLLM's `/classify`)."""

    key: str
    text: str


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A text in tokens of which nothing is to be written: what did the model think of those from `first` on?

    Answered by vLLM alone (`prompt_logprobs`), started with `--max-logprobs` of at least `k`.
    """

    key: str
    tokens: tuple[int, ...]
    first: int  # at least 1: nothing is said of the first token
    k: int


@dataclass(frozen=True, slots=True)
class TokensRequest:
    """One completion of a prompt in tokens, answered in tokens, each with its log-probability: a rollout.

    Drawn from all of softmax(logits / T) at the client's temperature T, whatever defaults the server has (its
    `top_p` is not used). Ends at the token `end`, a `stop` text of the client or the limit. Answered by vLLM alone;
    the log-probabilities are those at T where it was started with `--logprobs-mode processed_logprobs`, those at
    T = 1 otherwise.
    """

    key: str
    tokens: tuple[int, ...]
    seed: int
    max_tokens: int
    end: int


AnyRequest = Request | ChatRequest | ClassifyRequest | ScoreRequest | TokensRequest


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished request. `text` is what the engine wrote (no prefill), tokens are the engine's own count.

    `seconds` is the time from sending the successful try to its last byte. `refused` completions have empty
    text, zero tokens and the endpoint's words in `error`. A classified text has no completion but `logits`, a scored
    one `top_k`; one in tokens has `tokens` and the `log_probs` of each, in nats.
    """

    key: str
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    error: str | None = None
    logits: tuple[float, ...] = ()
    top_k: TopK | None = None
    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
