"""What every task of one run is handed: the dataset and the run's name, and the rules for trying again."""

from __future__ import annotations

from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.errors import StillhouseError
from tasks.store import Dataset

if TYPE_CHECKING:
    from tasks.engine import Standby


@dataclass(frozen=True)
class Run:
    """One run on one dataset. Not a pydantic model or a dict, so that Prefect hands it on untouched."""

    dataset: Dataset
    run_id: str
    standby: Standby | None = None  # where the run's stages leave their engine to one another


def worth_retrying(_task: Any, _task_run: Any, state: Any) -> bool:
    """Prefect's retry condition: what infrastructure did is tried again, what the user did is not."""
    try:
        state.result()
    except StillhouseError as error:
        return error.retryable
    except CancelledError:  # the run is ending
        return False
    # Anything else (a lost connection inside a library, a bug) is retried as infrastructure's doing.
    except Exception:
        return True
    return False
