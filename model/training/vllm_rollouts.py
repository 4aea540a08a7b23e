"""Rollouts by vLLM: processes of their own beside the trainer, given the policy's weights before every step.

    the policy's folder is written → the engine loads it → a probe compares both → tokens in, tokens out

Each rollout keeps the log-probabilities that the engine sampled with, at the job's temperature, so that training can
weigh tokens by how far engine and trainer are apart (`model/losses/mismatch.py`). A rollout's seed comes from the
step's, so a run is as reproducible as the engine is: how requests meet in a batch changes vLLM's arithmetic, and with
it now and then a token. After every load the engine is asked what it thinks of a fixed text; where that is not what
the trainer thinks, the run ends. What the probe cannot see: a load that took part of the weights only and leaves less
than its tolerance, until they have moved further. The first load, of whatever the trainer has then, is also a resume's.

Where several processes train, each has its share of the completions written: on GPUs by an engine of its own beside it,
on a CPU, or where engines are named or lent, by those that all share. The leading process writes the folder and loads
what is shared; each loads and probes its own.

Axes: T tokens of the probe, K likeliest tokens at each, N drawn tokens.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from model.errors import TrainingError
from model.records import FinishReason
from model.sampling.client import CompletionsClient
from model.sampling.request import Completion, Request, SamplingParams, ScoreRequest, TokensRequest
from model.sampling.top_k import TopK
from model.sampling.vllm_server import EngineOptions, VLLMAt, VLLMServer
from model.training.checkpoint import disk_errors, save_model, whole_weights
from model.training.data import Row, Tokenizer, collate, tokenize
from model.training.forward import Model, completion_hidden, completion_log_probs, whole_head
from model.training.job import JobError, Precision, RolloutJob
from model.training.parallel import World
from model.training.rollouts import Rollout, cut_after_stop
from model.training.validation import Answer

# Largest mean |Δ log p| of a probe, nats, at which engine and trainer count as equal (docs/training.md: measured gaps).
TOLERANCE = {Precision.BFLOAT16: 0.3, Precision.FLOAT32: 0.0005}
STALE_SHARE = 0.1  # of that tolerance: a move of the trainer after which an engine cannot answer to the bit as before
PROBE_TOKENS = 64  # the last ones of the first problem's prompt
PROBE_K = 8
DRAWS, DRAWN_TOKENS = 4, 16  # completions whose own log-probabilities are compared once, at the job's temperature
CONCURRENCY = 1024  # requests in flight; the engine queues what it cannot decode at once
TIMEOUT_SECONDS = 3600.0
SERVED_NAME = "policy"
WEIGHTS = "rollout-weights"  # below the job's folder, while it runs


class Engine(Protocol):
    """What a trainer asks of a vLLM beside completions: `VLLMServer`, or `VLLMAt` for someone else's."""

    @property
    def url(self) -> str: ...

    @property
    def served_name(self) -> str: ...

    def check(self) -> bool: ...

    def load_weights(self, folder: Path) -> None: ...

    def sleep(self) -> None: ...

    def wake_up(self) -> None: ...


class WeightProbe:
    """Does one engine have the trainer's weights? Asked after every load."""

    def __init__(self, client: CompletionsClient, tokens: Sequence[int], tolerance: float) -> None:
        self.client, self.tokens, self.tolerance = client, tuple(tokens), tolerance
        # What the engine said when it last said something new, and the trainer's view of those tokens then.
        self.before: tuple[TopK, Tensor] | None = None

    def gap(self, log_probs_TV: Tensor) -> float:
        """Mean |Δ log p| over the engine's likeliest tokens, nats; `log_probs_TV` are the trainer's, from token 1 on.

        Raises TrainingError where it is above the tolerance, or where the engine answers to the bit as it did before
        although the trainer has since moved by more than a tenth of that.
        """
        found = self.client.complete([ScoreRequest("probe", self.tokens, 1, PROBE_K)])[0].top_k
        assert found is not None
        own_TK = at_ids(log_probs_TV, found)
        gap = mean_distance(own_TK, torch.from_numpy(found.log_probs_TK))
        stale = False
        if self.before is not None and same(found, self.before[0]):
            stale = mean_distance(own_TK, self.before[1]) > STALE_SHARE * self.tolerance
        else:
            self.before = found, own_TK
        if gap > self.tolerance or stale:
            reason = "the engine still answers with the weights it had before" if stale else "its weights are others"
            raise TrainingError(
                f"the rollout engine at {self.client.urls[0]} does not have the trainer's weights after loading them: "
                f"log-probabilities of a fixed text differ by {gap:.3f} nats on average, {self.tolerance:g} is the "
                f"limit ({reason})"
            )
        return gap


class VLLMRollouts:
    """`Rollouts` over engines that serve one model; `open_vllm_rollouts` makes it.

    `engines` are those that this process gives weights to; each has a probe, which asks about the tokens `probed`.
    `client` asks the ones that write for this process.
    """

    def __init__(
        self,
        job: RolloutJob,
        model: Model,
        tokenizer: Tokenizer,
        world: World,
        engines: Sequence[Engine],
        client: CompletionsClient,
        probes: Sequence[WeightProbe],
        probed: Sequence[int],
        worker: Executor,
    ) -> None:
        self.job, self.model, self.tokenizer, self.world = job, model, tokenizer, world
        self.engines, self.client, self.probes, self.probed = engines, client, probes, probed
        self.worker = worker  # waits for completions that are not waited for here
        self.in_flight: list[Future[list[Completion]]] = []
        self.validating: CompletionsClient | None = None  # set where the job validates
        self.folder = job.out / WEIGHTS
        self.loads, self.asleep = 0, False

    @contextmanager
    def current(self) -> Iterator[Mapping[str, float]]:
        """See `Rollouts`. Raises TrainingError where an engine does not have the weights after all."""
        yield self.sync()
        for engine in self.engines:
            engine.sleep()
        self.asleep = True

    def sync(self) -> Mapping[str, float]:
        """Gives the engines the policy as it is now, once no request is running. Raises as `current` does."""
        wait(self.in_flight)
        started = time.perf_counter()
        if self.asleep:
            self._wake()
        self._write_weights()
        for engine in self.engines:
            engine.load_weights(self.folder)
        gap = self._verified()
        self.loads += 1
        return {"sync_seconds": time.perf_counter() - started, "sync_gap": gap}

    def sample(self, contexts: Sequence[str]) -> list[Rollout]:
        """See `Rollouts`."""
        return self._complete(self._tokenized(contexts), self.job.max_tokens)

    def begin(self, contexts: Sequence[str], generator: torch.Generator) -> Callable[[], list[Rollout]]:
        """Begins what `sample` does, with seeds from `generator`; what it returns waits for the rollouts.

        Only the waiting is another thread's: a tokenizer is not for two at once.
        """
        requests = self._requests(self._tokenized(contexts), self.job.max_tokens, generator)
        completions = self.worker.submit(self.client.complete, requests)
        self.in_flight = [completions]
        return lambda: self._rollouts(requests, completions.result())

    def _tokenized(self, contexts: Sequence[str]) -> list[list[int]]:
        return [tokenize(self.tokenizer, context) for context in contexts]

    def _complete(self, contexts: Sequence[Sequence[int]], max_tokens: int) -> list[Rollout]:
        requests = self._requests(contexts, max_tokens, torch.default_generator)
        return self._rollouts(requests, self.client.complete(requests))

    def _requests(
        self, contexts: Sequence[Sequence[int]], max_tokens: int, generator: torch.Generator
    ) -> list[TokensRequest]:
        """This process's share of them, each with the seed that it has in any process."""
        seeds = torch.randint(2**31, (len(contexts),), generator=generator).tolist()
        end = self.tokenizer.eos_token_id
        own = self.world.dealt(list(zip(contexts, seeds, strict=True)))
        return [TokensRequest(str(b), tuple(context), seed, max_tokens, end) for b, (context, seed) in enumerate(own)]

    def _rollouts(self, requests: Sequence[TokensRequest], completions: Sequence[Completion]) -> list[Rollout]:
        """All processes' rollouts."""
        own = []
        for asked, done in zip(requests, completions, strict=True):
            if done.finish_reason is FinishReason.REFUSED:
                raise JobError(f"the rollout engine refuses a prompt of {len(asked.tokens)} tokens: {done.error}")
            text = cut_after_stop(self.tokenizer.decode(done.tokens, skip_special_tokens=True), self.job.stop)
            row = Row(list(asked.tokens), list(done.tokens))
            own.append(Rollout(row, text, done.finish_reason, list(done.log_probs)))
        return self.world.collected(own)

    def answering(self) -> VLLMAnswers | None:
        """The same engines as a sampler of validation answers, where the job validates."""
        return VLLMAnswers(self, self.validating) if self.validating else None

    def _wake(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what torch keeps for later is what a waking engine needs
        for engine in self.engines:
            engine.wake_up()

    def _write_weights(self) -> None:
        """Not synced to disk and no checkpoint: it lives as long as the step. New files, as an engine may map old."""
        cut = self.world.size > 1  # then they are gathered, which waits for the others' requests too
        weights = whole_weights(self.model, self.job.dtype, self.world) if cut else None
        if self.world.leads:
            with disk_errors(self.folder):
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
                save_model(self.folder, self.model, self.tokenizer, weights)
        self.world.meet()

    def _verified(self) -> float:
        """The largest gap of any engine, nats."""
        log_probs_TV = next_log_probs(self.model, self.probed)
        own = max((probe.gap(log_probs_TV) for probe in self.probes), default=0.0)
        gap: float = max(self.world.gather(own))
        if not self.loads:
            with torch.random.fork_rng(devices=[]):  # a resumed run checks once more than one that went through
                drawn = self._complete([self.probed] * DRAWS, DRAWN_TOKENS)
            require_tempered(self.model, drawn, self.job.temperature)
        return gap


class VLLMAnswers:
    """`Answers` by the engines of the rollouts, asked as an evaluation asks: texts, with the validation's settings."""

    at_once = sys.maxsize  # the engine queues what it cannot decode at once

    def __init__(self, rollouts: VLLMRollouts, client: CompletionsClient) -> None:
        self.rollouts, self.client = rollouts, client

    def current(self) -> AbstractContextManager[Mapping[str, float]]:
        """See `Answers`: the engines are given the weights, as for a step's rollouts."""
        return self.rollouts.current()

    def answers(self, contexts: Sequence[str]) -> list[Answer]:
        """See `Answers`."""
        limit, world = self.rollouts.job.validation_max_tokens, self.rollouts.world
        seeds = torch.randint(2**31, (len(contexts),)).tolist()
        own = world.dealt(list(zip(contexts, seeds, strict=True)))
        found = self.client.complete([Request(str(b), context, seed, limit) for b, (context, seed) in enumerate(own)])
        for done in found:
            if done.finish_reason is FinishReason.REFUSED:
                raise JobError(f"the rollout engine refuses a validation prompt: {done.error}")
        return world.collected([Answer(done.text, done.finish_reason, done.completion_tokens) for done in found])


@contextmanager
def open_vllm_rollouts(
    job: RolloutJob, model: Model, tokenizer: Tokenizer, world: World, prompts: Sequence[str]
) -> Iterator[VLLMRollouts]:
    """Starts the engine (or takes the one that is lent, or those of `rollout_urls`), and ends it with the block.

    Args:
        prompts: every context that may be sampled for; the longest makes the engine's room, the first is the probe.

    Raises:
        SamplerError: vLLM does not come up.
    """
    contexts = [tokenize(tokenizer, prompt) for prompt in prompts]
    probed = contexts[0][-PROBE_TOKENS:]
    params = SamplingParams(job.temperature, max_tokens=job.max_tokens, stop=job.stop)
    with ExitStack() as opened:
        if world.leads:
            opened.callback(shutil.rmtree, job.out / WEIGHTS, ignore_errors=True)
        # Ends after the client, whose end ends what the thread waits for.
        worker = opened.enter_context(ThreadPoolExecutor(1, thread_name_prefix="rollouts"))
        own, asked = open_engines(job, world, max(map(len, contexts)), opened)

        def client(params: SamplingParams, *of: Engine) -> CompletionsClient:
            made = CompletionsClient(
                [engine.url for engine in of],
                of[0].served_name,
                params,
                concurrency=CONCURRENCY * len(of),
                timeout_seconds=TIMEOUT_SECONDS,
                alive=lambda: all(engine.check() for engine in of),
            )
            return opened.enter_context(made)

        probes = [WeightProbe(client(params, engine), probed, TOLERANCE[job.dtype]) for engine in own]
        rollouts = VLLMRollouts(job, model, tokenizer, world, own, client(params, *asked), probes, probed, worker)
        if job.validate_every:
            rollouts.validating = client(validation_params(job), *asked)
        yield rollouts


def open_engines(
    job: RolloutJob, world: World, longest_prompt: int, opened: ExitStack
) -> tuple[list[Engine], list[Engine]]:
    """The engines that this process gives weights to, and those that write for it; started ones end with `opened`."""
    shared: list[Engine] = [VLLMAt(url) for url in job.rollout_urls]
    if job.rollout_lent:
        shared = [VLLMAt(job.rollout_lent, repack=True)]
    cuda = torch.cuda.is_available()
    if not shared and not cuda and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < world.size:
        raise JobError("several machines without GPUs do not reach one another's engines: name some in rollout_urls")
    if not shared and (cuda or world.leads):
        options = engine_options(job, longest_prompt, world, cuda=cuda)
        log = "vllm.log" if world.leads else f"vllm-{world.rank}.log"
        engine = opened.enter_context(VLLMServer(job.init, SERVED_NAME, log_path=job.out / log, options=options))
        if cuda:
            return [engine], [engine]
        shared = [engine]
    if not job.rollout_urls and not job.rollout_lent:
        url = world.led(lambda: shared[0].url)
        shared = shared or [VLLMAt(url)]
    return (shared if world.leads else []), shared


def validation_params(job: RolloutJob) -> SamplingParams:
    """How validation answers are sampled."""
    return SamplingParams(
        job.validation_temperature, job.validation_top_p, job.validation_max_tokens, job.validation_stop
    )


def engine_options(job: RolloutJob, longest_prompt: int, world: World, *, cuda: bool) -> EngineOptions:
    """How a job's own engine is started; on a GPU it shares the trainer's, and sleeps while that works."""
    arguments: list[str] = []
    validated = job.validation_max_tokens if job.validate_every else 0
    if cuda:
        arguments += ["--gpu-memory-utilization", str(job.rollout_gpu_memory), "--enable-sleep-mode"]
    return EngineOptions(
        python=job.rollout_python,
        max_model_len=longest_prompt + max(job.max_tokens, DRAWN_TOKENS, validated),
        dtype=str(job.dtype),
        enforce_eager=not cuda,
        gpus=int(cuda),
        devices=visible_device(world.device.index or 0) if cuda and world.size > 1 else "",
        logprobs_mode="processed_logprobs",
        extra_args=(*arguments, *job.rollout_args),
    )


def visible_device(index: int) -> str:
    """What CUDA_VISIBLE_DEVICES has to say for a process that is to see only one of those that this one sees."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return seen.split(",")[index] if seen else str(index)


@torch.no_grad()
def next_log_probs(model: Model, tokens: Sequence[int]) -> Tensor:
    """log π(· | tokens before) at every token but the first, nats, float32, [T, V], on the CPU."""
    batch = collate([Row(list(tokens[:1]), list(tokens[1:]))], [1.0], model.device)
    hidden_TH = completion_hidden(model, batch)
    return linear(hidden_TH, whole_head(model, hidden_TH.dtype)).float().log_softmax(-1).cpu()


def require_tempered(model: Model, drawn: Sequence[Rollout], temperature: float) -> None:
    """Raises JobError where the engine's log-probabilities of what it drew are nearer to those at T = 1 than at T."""
    rows = [rollout.row for rollout in drawn]
    batch = collate(rows, [1.0] * len(rows), model.device)
    told_N = torch.tensor([log_prob for rollout in drawn for log_prob in rollout.log_probs or ()])
    at_temperature, at_one = (
        mean_distance(completion_log_probs(model, batch, t).cpu(), told_N) for t in (temperature, 1.0)
    )
    if at_one < at_temperature:
        raise JobError(
            f"the rollout engine tells log-probabilities at temperature 1 ({at_one:.3f} nats from the trainer's), not "
            f"at {temperature:g} ({at_temperature:.3f}): start it with --logprobs-mode processed_logprobs"
        )


def at_ids(log_probs_TV: Tensor, found: TopK) -> Tensor:
    """Those of the found tokens, [T, K]."""
    return log_probs_TV.gather(-1, torch.from_numpy(found.ids_TK).long())


def same(one: TopK, other: TopK) -> bool:
    """Equal to the bit."""
    return np.array_equal(one.ids_TK, other.ids_TK) and np.array_equal(one.log_probs_TK, other.log_probs_TK)


def mean_distance(one: Tensor, other: Tensor) -> float:
    """Mean |a − b|."""
    return (one - other).abs().mean().item()
