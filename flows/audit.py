"""The checks on trial before any GPU: a gold answer must pass its own check, and a corrupted one must fail.

What fails on its own gold is left out of generation, and told; what passes although it is wrong says where a check is
weak. Audited is what the recipe rejects wrong answers by: `math`, `code`, and the checks that `[audit]` names.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from prefect import flow

from flows.artifacts import progress_in_ui, publish_audit
from flows.forms import RecipeParameter
from flows.recipe import Recipe
from flows.wiring import check_settings, opened
from model.errors import ProblemsError
from model.rewards.registry import build_checks
from model.rewards.workers.pool import VerifierPool
from tasks.audit import (
    AuditRules,
    audit_file,
    drop_other_audits,
    is_up_to_date,
    pending_files,
    write_verdicts,
)
from tasks.load import load
from tasks.progress import announce, ticking
from tasks.run import Run
from tasks.store import PROBLEMS


@flow(name="audit", flow_run_name="audit {recipe.name}")
def audit(recipe: RecipeParameter, load_problems: bool = True) -> bool:
    """Audits what is not audited yet, and says whether there was anything; loads the recipe's problems first.

    Raises RecipeError where no check is to be audited, ProblemsError where no problems were ever loaded.
    """
    names = recipe.audited_checks()
    with opened(recipe) as run:
        if load_problems:
            load(run.dataset, [section.to_source() for section in recipe.problems])
        if not run.dataset.manifests(PROBLEMS):
            raise ProblemsError(f"{run.dataset.path} holds no problems yet; run that stage first (`--only problems`)")
        is_new = _audit(recipe, run, names)
        publish_audit(run.dataset)
    return is_new


def _audit(recipe: Recipe, run: Run, names: Sequence[str]) -> bool:
    """One check after the other, each with every problem file that it lacks; then the problems' verdicts."""
    started = time.monotonic()
    rules = AuditRules(recipe.audit.corruptions, recipe.audit.mutants, recipe.audit.limit)
    checks = build_checks(names, check_settings(recipe))
    if is_up_to_date(run.dataset, checks, rules):
        announce("the audit is up to date: same problems, same checks")
        return False
    todo = [pending_files(run.dataset, check, rules) for check in checks]
    with (
        ticking("audit", sum(file.rows for files in todo for file in files), "problems") as ticker,
        progress_in_ui(run.dataset, ticker),
    ):
        for name, files in zip(names, todo, strict=True):
            with _pool(recipe, name) as pool:
                for file in files:
                    audit_file(run, pool, file, rules, ticker)
    drop_other_audits(run.dataset, checks)
    write_verdicts(run.dataset, checks, rules, time.monotonic() - started)
    return True


def _pool(recipe: Recipe, name: str) -> VerifierPool:
    verify = recipe.verify
    return VerifierPool([name], check_settings(recipe), workers=verify.workers, timeout_seconds=verify.timeout_seconds)
