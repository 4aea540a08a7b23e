"""The client against a real HTTP server: order, one bound over all threads, every way to fail."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest

from model.errors import SamplerError
from model.records import FinishReason
from model.sampling import client as client_module
from model.sampling.client import POOL_CONNECTIONS, CompletionsClient, is_too_long
from model.sampling.request import (
    ChatRequest,
    ClassifyRequest,
    Completion,
    Request,
    SamplingParams,
    ScoreRequest,
    TokensRequest,
)
from tests import fake_endpoint
from tests.fake_endpoint import FakeEndpoint, solve

PARAMS = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=64, stop=("</answer>",))


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(client_module, "WATCH_SECONDS", 0.05)


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as server:
        yield server


def make_client(*urls: str, concurrency: int = 8, timeout_seconds: float = 20.0, **more: Any) -> CompletionsClient:
    return CompletionsClient(urls, "fake", PARAMS, concurrency=concurrency, timeout_seconds=timeout_seconds, **more)


def question(number: int, max_tokens: int = 64) -> Request:
    return Request(f"key-{number}", f"Calculate {number} + 1.\n<think>\n", seed=number, max_tokens=max_tokens)


def test_completions_come_in_the_order_of_the_requests(endpoint: FakeEndpoint) -> None:
    requests = [question(number) for number in range(50)]
    with make_client(endpoint.url) as client:
        completions = client.complete(requests)
    assert [done.key for done in completions] == [request.key for request in requests]
    assert [done.text for done in completions] == [solve(asked.prompt, asked.seed) for asked in requests]
    assert {done.finish_reason for done in completions} == {FinishReason.STOP}
    assert completions[0].completion_tokens > 0
    assert completions[0].prompt_tokens == 5  # words: Calculate 0 + 1. <think>


def test_what_is_sent(endpoint: FakeEndpoint) -> None:
    with make_client(endpoint.url) as client:
        client.complete([question(7, max_tokens=33)])
    assert endpoint.requests == [
        {
            "model": "fake",
            "prompt": "Calculate 7 + 1.\n<think>\n",
            "seed": 7,
            "n": 1,
            "max_tokens": 33,
            "temperature": 0.7,
            "top_p": 0.9,
            "stop": ["</answer>"],
            "include_stop_str_in_output": True,
            "add_special_tokens": False,
        }
    ]


def test_a_text_is_classified_beside_v1_and_its_raw_logits_come_back(endpoint: FakeEndpoint) -> None:
    endpoint.logits = lambda text: [-1.5, float(text.split()[1])]
    with make_client(endpoint.url) as client:
        found = client.complete([ClassifyRequest(f"key-{n}", f"text {n}") for n in range(9)])
    assert [(done.key, done.logits, done.prompt_tokens) for done in found] == [
        (f"key-{n}", (-1.5, float(n)), 2) for n in range(9)
    ]
    assert {"model": "fake", "input": "text 3", "use_activation": False, "add_special_tokens": False} in (
        endpoint.requests
    )


def test_a_server_that_does_not_classify_is_told_from_a_wrong_url(endpoint: FakeEndpoint) -> None:
    endpoint.faults.mode, endpoint.faults.fail_first = "404", -1
    with make_client(endpoint.url) as client:
        with pytest.raises(SamplerError, match="runs without `--runner pooling`"):
            client.complete([ClassifyRequest("key", "text")])
        with pytest.raises(SamplerError, match="does not end in /v1"):
            client.complete([question(1)])


def chat(number: int, schema: str = "", seed: int | None = 3) -> ChatRequest:
    messages = (("system", "Be brief."), ("user", f"Calculate {number} + 1.\n<think>\n"))
    return ChatRequest(f"chat-{number}", messages, seed, SamplingParams(0.1, 0.5, max_tokens=20), schema)


def test_a_conversation_goes_to_the_chat_route_with_parameters_of_its_own(endpoint: FakeEndpoint) -> None:
    with make_client(endpoint.url) as client:
        one, two = client.complete([chat(1), question(2)])
    assert (one.key, two.key) == ("chat-1", "key-2")
    assert one.text.endswith("</answer>")
    assert (one.finish_reason, one.completion_tokens > 3, one.prompt_tokens) == (FinishReason.STOP, True, 7)
    sent = next(body for body in endpoint.requests if "messages" in body)
    assert sent == {
        "model": "fake",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Calculate 1 + 1.\n<think>\n"},
        ],
        "seed": 3,
        "n": 1,
        "max_tokens": 20,
        "temperature": 0.1,
        "top_p": 0.5,
    }


def test_a_schema_is_sent_along_and_its_refusal_is_the_requests_own(endpoint: FakeEndpoint) -> None:
    endpoint.faults.refuse_schema = True
    with make_client(endpoint.url) as client:
        guided, free = client.complete([chat(1, '{"type": "object"}', None), chat(2, seed=None)])
    assert (guided.finish_reason, guided.error) == (FinishReason.REFUSED, "response_format is not supported here")
    assert free.finish_reason is FinishReason.STOP
    sent = next(body for body in endpoint.requests if "response_format" in body)
    schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert sent["response_format"] == {"type": "json_schema", "json_schema": schema}
    assert "seed" not in sent


def test_a_chat_answer_without_content_is_empty() -> None:
    """A server that keeps thoughts apart sends null where max_tokens cut the thought."""
    assert client_module._text({"message": {"content": None}}) == ""
    assert client_module._text({"message": {"content": "7"}}) == "7"
    assert client_module._text({"text": "7"}) == "7"


def test_without_a_seed_none_is_sent(endpoint: FakeEndpoint) -> None:
    with make_client(endpoint.url) as client:
        client.complete([Request("a", "Calculate 1 + 1.", None, 64)])
    assert "seed" not in endpoint.requests[0]


def test_no_requests_no_completions(endpoint: FakeEndpoint) -> None:
    with make_client(endpoint.url) as client:
        assert client.complete([]) == []


def test_an_answer_over_the_limit_ends_with_length(endpoint: FakeEndpoint) -> None:
    with make_client(endpoint.url) as client:
        (done,) = client.complete([question(1, max_tokens=2)])
    assert (done.finish_reason, done.completion_tokens) == (FinishReason.LENGTH, 2)


def test_one_bound_holds_over_all_calling_threads(endpoint: FakeEndpoint) -> None:
    endpoint.faults.seconds = 0.03
    with make_client(endpoint.url, concurrency=5) as client, ThreadPoolExecutor(4) as threads:
        calls = [[question(10 * call + number) for number in range(10)] for call in range(4)]
        results = list(threads.map(client.complete, calls))
    assert [len(completions) for completions in results] == [10] * 4
    assert endpoint.most_in_flight == 5


def test_as_many_are_under_way_as_the_bound_says_however_many_pools_they_take(endpoint: FakeEndpoint) -> None:
    endpoint.faults.seconds = 0.3
    bound = 2 * POOL_CONNECTIONS + 3
    with make_client(endpoint.url, concurrency=bound) as client:
        assert len(client.complete([question(number) for number in range(3 * bound)])) == 3 * bound
    assert endpoint.most_in_flight == bound


def test_a_call_need_not_wait_for_another_calls_last_answer(endpoint: FakeEndpoint) -> None:
    endpoint.faults.mode, endpoint.faults.fail_first, endpoint.faults.fail_key = "hang", -1, "Calculate 99 "
    with make_client(endpoint.url, concurrency=2) as client, ThreadPoolExecutor(1) as threads:
        slow = threads.submit(client.complete, [question(99)])
        assert len(client.complete([question(number) for number in range(20)])) == 20
        assert not slow.done()
        client._submit(client._close()).result()  # ends the slow call, as leaving the block would
        with pytest.raises(CancelledError):
            slow.result(timeout=5)


def test_every_completion_is_reported_once_in_the_calling_thread(endpoint: FakeEndpoint) -> None:
    seen: list[tuple[str, int]] = []

    def on_done(completion: Completion) -> None:
        seen.append((completion.key, threading.get_ident()))

    with make_client(endpoint.url) as client:
        client.complete([question(number) for number in range(30)], on_done)
    assert sorted(key for key, _ in seen) == sorted(f"key-{number}" for number in range(30))
    assert {thread for _, thread in seen} == {threading.get_ident()}


def test_an_error_of_the_callback_ends_the_call(endpoint: FakeEndpoint) -> None:
    def on_done(completion: Completion) -> None:
        raise ZeroDivisionError(completion.key)

    with make_client(endpoint.url) as client, pytest.raises(ZeroDivisionError):
        client.complete([question(number) for number in range(30)], on_done)


@pytest.mark.parametrize("mode", ["500", "429", "drop", "garbage", "abort"])
def test_what_infrastructure_did_is_tried_again(endpoint: FakeEndpoint, mode: str) -> None:
    endpoint.faults.mode, endpoint.faults.fail_first = mode, 2
    with make_client(endpoint.url) as client:
        completions = client.complete([question(number) for number in range(5)])
    assert [done.error for done in completions] == [None] * 5
    assert len(endpoint.requests) == 15  # two failures and one answer for each


def test_an_endpoint_that_keeps_failing_ends_the_call(endpoint: FakeEndpoint) -> None:
    endpoint.faults.fail_first, endpoint.faults.fail_key = -1, "Calculate 3 "
    with make_client(endpoint.url) as client, pytest.raises(SamplerError) as failure:
        client.complete([question(number) for number in range(5)])
    assert str(failure.value) == f"{endpoint.url} keeps failing, last with: HTTP 500: told to fail"
    assert failure.value.retryable


def test_a_prompt_that_the_endpoint_refuses_is_that_rows_data(endpoint: FakeEndpoint) -> None:
    endpoint.faults.max_prompt_chars = 100
    long = Request("long", "word " * 1000, seed=1, max_tokens=8)
    with make_client(endpoint.url) as client:
        before, refused, after = client.complete([question(1), long, question(2)])
    assert (before.finish_reason, after.finish_reason) == (FinishReason.STOP, FinishReason.STOP)
    assert (refused.finish_reason, refused.text, refused.completion_tokens) == (FinishReason.REFUSED, "", 0)
    assert refused.error is not None
    assert refused.error.startswith("maximum context length is 100")
    assert len(refused.error) == 200  # the endpoint quoted the prompt; we do not
    assert len(endpoint.requests) == 3


def test_an_endpoint_that_refuses_everything_is_an_error(endpoint: FakeEndpoint) -> None:
    endpoint.faults.mode, endpoint.faults.fail_first = "422", -1
    with (
        make_client(endpoint.url) as client,
        pytest.raises(SamplerError, match="32 requests in a row") as failure,
    ):
        client.complete([question(number) for number in range(100)])
    assert not failure.value.retryable


def test_refusals_that_only_quote_the_word_length_are_counted(
    endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quoting(code: int, _: str) -> tuple[int, bytes]:
        return code, b'{"error": {"message": "unknown field in: What is the length of the rope?"}}'

    monkeypatch.setattr(fake_endpoint, "_error", quoting)
    endpoint.faults.mode, endpoint.faults.fail_first = "400", -1
    with make_client(endpoint.url) as client, pytest.raises(SamplerError, match="32 requests in a row"):
        client.complete([question(number) for number in range(100)])


@pytest.mark.parametrize(("message", "expected"), [
    ("This model's maximum context length is 512 tokens. However, your prompt contains at least 513 input", True),
    ("The decoder prompt (length 9) is longer than the maximum model length of 8. Make sure", True),
    ("The decoder prompt (length 8) plus the number of requested output tokens (at least 1) is longer than the "
     "maximum model length of 8.", True),
    ("Input length (9) exceeds model's maximum context length (8).", True),
    ("The engine prompt length 9 exceeds the max_model_len 8. Please reduce prompt.", True),
    ("The input (61709 tokens) is longer than the model's context length (40960 tokens).", True),
    ("request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it", True),
    ("the request exceeds the available context size. try increasing the context size", True),
    ("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens", True),
    ("Input validation error: `inputs` must have less than 1024 tokens. Given: 5000", True),
    ("max_tokens=99 cannot be greater than max_model_len=64. Please request fewer output tokens.", False),
    ("The decoder prompt cannot be empty", False),
    ("unknown field in: What is the length of the rope? Its maximum length?", False),
    ("", False),
])  # fmt: skip
def test_what_does_not_fit_is_told_from_other_refusals(message: str, expected: bool) -> None:
    """In the words of vLLM 0.32, SGLang, llama.cpp and TGI."""
    assert is_too_long(Completion("key", "", FinishReason.REFUSED, 0, 0, 0.1, message)) is expected
    assert not is_too_long(Completion("key", message, FinishReason.STOP, 0, 0, 0.1))


@pytest.mark.parametrize(("mode", "remedy"), [("401", "API key"), ("403", "API key"), ("404", "no model 'fake'")])
def test_what_the_user_did_is_raised_at_once(endpoint: FakeEndpoint, mode: str, remedy: str) -> None:
    endpoint.faults.mode, endpoint.faults.fail_first = mode, -1
    with make_client(endpoint.url) as client, pytest.raises(SamplerError, match=remedy) as failure:
        client.complete([question(1)])
    assert not failure.value.retryable
    assert len(endpoint.requests) == 1


def test_the_api_key_is_sent() -> None:
    with FakeEndpoint(api_key="secret") as endpoint:
        with make_client(endpoint.url, api_key="secret") as client:
            assert client.complete([question(1)])[0].error is None
        with make_client(endpoint.url, api_key="other") as client, pytest.raises(SamplerError, match="401"):
            client.complete([question(1)])


def test_a_request_without_an_answer_times_out(endpoint: FakeEndpoint) -> None:
    endpoint.faults.mode, endpoint.faults.fail_first = "hang", -1
    start = time.monotonic()
    unanswered = pytest.raises(SamplerError, match=r"no answer within 0.3 s")
    with make_client(endpoint.url, timeout_seconds=0.3) as client, unanswered:
        client.complete([question(1)])
    assert time.monotonic() - start < 3
    assert len(endpoint.requests) == 2  # a time-out costs two of four tries


def test_nobody_listens() -> None:
    unreachable = pytest.raises(SamplerError, match=r"http://127.0.0.1:9/v1 keeps failing, last with: ConnectError")
    with make_client("http://127.0.0.1:9/v1") as client, unreachable:
        client.complete([question(1)])


def test_a_dead_url_beside_a_living_one_costs_no_completion(endpoint: FakeEndpoint) -> None:
    with make_client("http://127.0.0.1:9/v1", endpoint.url) as client:
        completions = client.complete([question(number) for number in range(40)])
    assert {done.finish_reason for done in completions} == {FinishReason.STOP}
    assert len(endpoint.requests) == 40


def test_load_is_shared_between_urls(endpoint: FakeEndpoint) -> None:
    endpoint.faults.seconds = 0.01
    with FakeEndpoint() as second:
        second.faults.seconds = 0.01
        with make_client(endpoint.url, second.url) as client:
            client.complete([question(number) for number in range(100)])
        assert 35 <= len(second.requests) <= 65


def test_an_engine_that_died_ends_the_call_within_a_second_or_two(endpoint: FakeEndpoint) -> None:
    endpoint.faults.mode, endpoint.faults.fail_first = "hang", -1
    start = time.monotonic()
    with (
        make_client(endpoint.url, timeout_seconds=3600, alive=lambda: time.monotonic() - start < 0.2) as client,
        pytest.raises(SamplerError, match=r"the engine behind .* has died"),
    ):
        client.complete([question(number) for number in range(20)])
    assert time.monotonic() - start < 2


def test_ctrl_c_cancels_the_requests(endpoint: FakeEndpoint) -> None:
    endpoint.faults.mode, endpoint.faults.fail_first = "hang", -1
    with make_client(endpoint.url, timeout_seconds=3600) as client:
        interrupted = []

        def interrupt_what_is_under_way() -> None:
            wait_until(lambda: endpoint.in_flight == 8, seconds=60)
            interrupted.append(time.monotonic())
            _thread.interrupt_main()

        threading.Thread(target=interrupt_what_is_under_way).start()
        with pytest.raises(KeyboardInterrupt):
            client.complete([question(number) for number in range(8)])
        assert time.monotonic() - interrupted[0] < 2
        wait_until(lambda: endpoint.cancelled == 8)  # the engine was told: the connections are closed


def test_a_stop_string_that_the_endpoint_names_but_cuts_off_is_put_back() -> None:
    assert client_module._with_stop("<answer>7", "</answer>", ("</answer>",)) == "<answer>7</answer>"
    assert client_module._with_stop("<answer>7</answer>", "</answer>", ("</answer>",)) == "<answer>7</answer>"
    assert client_module._with_stop("done", None, ("</answer>",)) == "done"
    assert client_module._with_stop("done", 2, ("</answer>",)) == "done"  # a token id: the end-of-turn token


def test_a_client_outside_its_block_says_so(endpoint: FakeEndpoint) -> None:
    with pytest.raises(RuntimeError, match="outside its `with` block"):
        make_client(endpoint.url).complete([question(1)])


def test_a_url_without_scheme_is_named() -> None:
    with pytest.raises(SamplerError, match="'localhost:8000' is not an http"), make_client("localhost:8000"):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name == "completions"]


def wait_until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_scored_text_is_sent_in_tokens_and_nothing_is_written(endpoint: FakeEndpoint) -> None:
    with make_client(endpoint.url) as client:
        [done] = client.complete([ScoreRequest("a", (5, 6, 9), first=1, k=2)])
    assert endpoint.requests[0]["prompt"] == [5, 6, 9]
    assert endpoint.requests[0]["max_tokens"] == 1
    assert done.top_k is not None
    assert done.top_k.ids_TK.tolist() == [[6, 7], [9, 10]]
    assert (done.text, done.prompt_tokens, done.completion_tokens) == ("", 3, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt_logprobs": None}, "the endpoint answers without prompt_logprobs: only vLLM can be asked"),
        ({"prompt_token_ids": [1, 5, 6, 9]}, "a: the endpoint has read other tokens than it was sent"),
        ({"prompt_logprobs": [None, {"9": {"logprob": -1.0}}, None]}, "position 1 does not speak of its token 6"),
    ],
)
def test_what_is_said_of_other_tokens_is_an_error_at_once(
    endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str
) -> None:
    def answer(*words: Any) -> dict[str, Any]:
        made = honest(*words)
        made["choices"][0] = Changed(made["choices"][0])
        return made

    class Changed(dict[str, Any]):
        """A choice in which the changed fields stay as they are."""

        def __setitem__(self, name: str, value: Any) -> None:
            super().__setitem__(name, change.get(name, value))

    honest = fake_endpoint._answer
    monkeypatch.setattr(fake_endpoint, "_answer", answer)
    with make_client(endpoint.url) as client, pytest.raises(SamplerError, match=says) as caught:
        client.complete([ScoreRequest("a", (5, 6, 9), first=1, k=2)])
    assert not caught.value.retryable
    assert len(endpoint.requests) == 1


def test_a_rollout_goes_and_comes_in_tokens_and_is_drawn_from_the_whole_distribution(endpoint: FakeEndpoint) -> None:
    """The client's top_p of 0.9 would make the log-probabilities those of another distribution."""
    endpoint.continue_tokens = lambda _: ([8, 2], [-0.5, -0.25], "stop")
    with make_client(endpoint.url) as client:
        [done] = client.complete([TokensRequest("a", (5, 6, 9), seed=3, max_tokens=4, end=2)])
    sent = endpoint.requests[0]
    assert (sent["prompt"], sent["seed"], sent["max_tokens"], sent["stop"]) == ([5, 6, 9], 3, 4, ["</answer>"])
    assert (sent["top_p"], sent["top_k"], sent["min_p"], sent["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
    assert (sent["temperature"], sent["stop_token_ids"], sent["ignore_eos"]) == (0.7, [2], True)
    assert (done.tokens, done.log_probs, done.finish_reason) == ((8, 2), (-0.5, -0.25), "stop")


def test_a_rollout_without_a_log_probability_for_each_token_is_an_error(endpoint: FakeEndpoint) -> None:
    endpoint.continue_tokens = lambda _: ([8, 2], [-0.5], "stop")
    with make_client(endpoint.url) as client, pytest.raises(SamplerError, match="2 tokens with 1 log-probabilities"):
        client.complete([TokensRequest("a", (5, 6, 9), seed=3, max_tokens=4, end=2)])


def test_a_rollout_that_does_not_fit_is_refused_and_not_an_error(endpoint: FakeEndpoint) -> None:
    endpoint.faults.max_prompt_chars = 2
    with make_client(endpoint.url) as client:
        [done] = client.complete([TokensRequest("a", (5, 6, 9), seed=3, max_tokens=4, end=2)])
    assert (done.finish_reason, done.tokens) == ("refused", ())
