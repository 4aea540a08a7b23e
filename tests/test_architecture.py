"""The architecture is a test: which folder may import which, and what stays light (read with `ast`)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [file for folder in ("flows", "tasks", "model") for file in sorted((ROOT / folder).rglob("*.py"))]

# Arrows go flows -> tasks -> model only. `model` knows no orchestrator, no database and no settings library.
FORBIDDEN = {
    "model": {"flows", "tasks", "prefect", "duckdb", "pydantic", "typer", "rich"},
    "tasks": {"flows", "typer"},
    "flows": set(),
}
# Who may import what is heavy or is one place's business.
ONLY_IN = {
    "vllm": set(),  # always a process of its own
    "duckdb": {"tasks/catalog.py"},
    "math_verify": {"model/rewards/math.py"},
}


def _imports(file: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    folder = file.relative_to(ROOT).parts[0]
    assert not _imports(file) & FORBIDDEN[folder]
    for package, places in ONLY_IN.items():
        if package in _imports(file):
            assert str(file.relative_to(ROOT)) in places, f"{package} is imported in {file}"


def test_every_package_file_opens_with_what_it_promises() -> None:
    silent = [f for f in FILES if f.name != "__init__.py" and not ast.get_docstring(ast.parse(f.read_text()))]
    assert not silent


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("flows.cli", {"torch", "prefect", "vllm", "duckdb", "pyarrow", "transformers", "reasoning_gym"}),
        ("flows.planning", {"torch", "prefect", "vllm", "duckdb", "pyarrow", "transformers"}),
        ("flows.screens", {"torch", "prefect", "vllm", "transformers"}),
        ("flows.report", {"torch", "prefect", "vllm", "transformers"}),
        ("model.rewards.workers.pool", {"torch", "transformers", "math_verify", "sympy"}),
        ("model.training.job", {"prefect", "duckdb", "vllm"}),
    ],
)
def test_importing_stays_light(module: str, heavy: set[str]) -> None:
    """In a fresh interpreter, since this one has imported everything already."""
    code = f"import sys, {module}; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(loaded.stdout.split()) & heavy


def test_models_train_without_orchestrator_and_database() -> None:
    """`model.training` must import on a machine that has torch, transformers, pyarrow and numpy alone."""
    blocked = ["prefect", "duckdb", "vllm", "peft", "pydantic", "httpx", "typer", "rich", "math_verify", "py3langid"]
    blocked += ["tensorboard", "wandb", "trackio"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import model.training.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_readme_names_every_view() -> None:
    from tasks.views import PUBLIC

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = readme.partition("The views are a stable interface:")[2].partition("Any number of readers")[0]
    assert re.findall(r"`(\w+)`", listed) == list(PUBLIC)


def test_readme_lists_every_file() -> None:
    """`docs/readme_tree.py` remakes the list."""
    from docs.readme_tree import updated

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert updated(readme) == readme, "run docs/readme_tree.py"
