"""Shards as Prefect tasks: how many are in flight, how often each is tried, and what is said when some fail."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from prefect import Task
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from flows.recipe_sections import GenerateSection
from model.errors import ShardsFailedError, StillhouseError
from tasks.run import worth_retrying
from tasks.store import Dataset

R = TypeVar("R")


def shard_threads() -> TaskRunner[PrefectFuture[Any]]:
    """A thread for every shard that may be in flight (256) and for its verification, which waits for it."""
    # Its future is a subclass, which an invariant type parameter does not allow for.
    return cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=600))


class Window:
    """Lets so many shards be in flight, and submits the next as one ends.

    Prefect then sees a task run when it can start, not all of them at once: its in-memory event queue silently
    drops what exceeds 10,000 events, about three a task.
    """

    def __init__(self, size: int) -> None:
        self._room = threading.Semaphore(size)

    def submit(self, task: Task[..., Any], *arguments: Any) -> PrefectFuture[Any]:
        """Submits `task` once there is room for it."""
        # In slices, so that Ctrl-C is heard while all places are taken.
        while not self._room.acquire(timeout=0.5):
            pass
        future = task.submit(*arguments)
        future.add_done_callback(lambda _: self._room.release())
        return future


def patient(task: Task[..., R], settings: GenerateSection) -> Task[..., R]:
    """The task with the recipe's tries and growing waits between them, for what is worth trying again."""
    return task.with_options(
        retries=settings.attempts - 1,
        retry_delay_seconds=exponential_backoff(settings.retry_delay_seconds),
        retry_condition_fn=worth_retrying,
    )


def raise_for_failures(dataset: Dataset, futures: Sequence[PrefectFuture[Any]]) -> None:
    """Waits for all, then raises ShardsFailedError if any failed; a task whose input failed is not counted again."""
    wait(list(futures))
    states = [future.state for future in futures]
    failures = [error_of(state) for state in states if state.is_failed() or state.is_crashed()]
    for error in failures:
        if isinstance(error, StillhouseError) and not error.retryable:
            raise error  # a full disk or a wrong key is one cause, however many shards it stopped
    if failures:
        raise ShardsFailedError(
            f"{len(failures)} shard tasks failed and the rest is kept: `stillhouse status {dataset.path}` says why, "
            f"`stillhouse rerun {dataset.path} --failed` tries them again (first: {failures[0]})"
        )


def error_of(state: State[Any]) -> BaseException:
    """The exception that a failed or crashed task ended with."""
    try:
        result = state.result(raise_on_failure=False)
    # Prefect may have lost the exception (a crash); then its message is all there is.
    except Exception as error:
        return error
    return result if isinstance(result, BaseException) else ShardsFailedError(str(state.message))
