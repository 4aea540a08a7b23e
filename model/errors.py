"""Errors named after the boundary that was crossed. The first line of each says what is wrong and what to do.

A wrong answer of a model is data (a verdict), never an exception; a caller's bad argument is a ValueError.
"""

from __future__ import annotations


class StillhouseError(Exception):
    """Base of every error that a user of Stillhouse may meet. `retryable`: would the same work pass later?"""

    retryable = True


def first_line(error: Exception) -> str:
    """What another library's error says first, or its kind where it says nothing: room in one line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class RecipeError(StillhouseError):
    """The recipe cannot be read, names an unknown key, or does not fit the dataset it points to."""

    retryable = False


class ProblemsError(StillhouseError):
    """A problem source is missing, unreadable, or holds not one usable problem."""

    retryable = False


class ModelFolderError(StillhouseError):
    """A folder that should hold a model (config, tokenizer, weights) does not."""

    retryable = False


class CheckError(StillhouseError):
    """A check is unknown or wrongly configured."""

    retryable = False


class SandboxError(StillhouseError):
    """The sandbox itself failed, or no tier of it holds here. Says nothing about the program."""


class StoreError(StillhouseError):
    """The dataset folder cannot be read or written, is in use by another run, or holds what it should not."""


class SamplerError(StillhouseError):
    """The engine or endpoint did not answer, died, or refused the client as a whole."""

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class TrainingError(StillhouseError):
    """A training process failed; its first line names the cause."""


class NothingToLearnError(TrainingError):
    """Not one sample was accepted, or no problem is fit to learn from: trying again ends the same."""

    retryable = False


class ShardsFailedError(StillhouseError):
    """Some shards are failed after all their attempts; the others are done and kept."""


class InterruptedRunError(StillhouseError):
    """The run was asked to stop while this work was under way. Nothing failed; the next run does it."""

    retryable = False
