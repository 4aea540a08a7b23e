"""Every attack of `attacks.py` is contained: in each tier, as root, as an ordinary user, and as in Docker.

Each set-up is one process (`driver.py`) that runs all of them against one sandbox, so that what one attack leaves
behind would meet the next. The same judge must see the same attacks succeed where nothing isolates them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from model.sandbox import Sandbox
from tests.model.sandbox.attacks import ATTACKS, MARKER

ROOT = Path(__file__).parents[3]
HERE = "tests/model/sandbox"
IS_ROOT = os.geteuid() == 0

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux"),
    pytest.mark.machine,
]


def _report(who: str, tier: str) -> dict[str, object]:
    if who in ("root", "docker", "restricted") and not IS_ROOT:
        pytest.skip("needs root")
    arguments = [f"{HERE}/driver.py", str(ROOT), tier]
    if who == "root" or not IS_ROOT:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    else:
        done = _confined(who, tier)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, object] = json.loads(done.stdout)
    return report


def _confined(who: str, tier: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as empty:
        Path(empty).chmod(0o755)
        confine = [f"{HERE}/confine.py", who, sys.base_prefix, str(ROOT), empty]
        driver = [f"{{project}}/{HERE}/driver.py", "{project}", tier]
        command = [sys.executable, *confine, *driver]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def _needs(tier: str, report: dict[str, object]) -> None:
    """Tiers A and B need what some kernels lack; the best tier must be found all the same."""
    refused = str(report["refused"] or "")
    if tier in ("A", "B") and ("unshare" in refused or "landlock_create_ruleset" in refused):
        pytest.skip(refused)
    assert not report["refused"], refused


@pytest.mark.parametrize("tier", ["A", "B", "C"])
@pytest.mark.parametrize("who", ["root", "user"])
def test_every_attack_is_contained(who: str, tier: str) -> None:
    report = _report(who, tier)
    _needs(tier, report)
    assert (report["tier"], report["uid"] == 0) == (tier, who == "root" and IS_ROOT)
    assert set(report["attacks"]) == {attack.name for attack in ATTACKS}  # type: ignore[call-overload]
    assert {name: wrong for name, wrong in report["attacks"].items() if wrong} == {}  # type: ignore[attr-defined]


@pytest.mark.parametrize("tier", ["best", "C"])
def test_inside_dockers_default_profile_landlock_holds(tier: str) -> None:
    """No namespace can be made there: the best tier that is left is B, and it keeps what it promises."""
    report = _report("docker", tier)
    _needs("B" if tier == "best" else tier, report)
    assert report["tier"] == ("B" if tier == "best" else "C")
    assert {name: wrong for name, wrong in report["attacks"].items() if wrong} == {}  # type: ignore[attr-defined]


def test_inside_dockers_default_profile_namespaces_are_refused_by_name() -> None:
    report = _report("docker", "A")
    assert "unshare" in str(report["refused"])


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_where_only_bubblewrap_may_make_namespaces_it_is_used() -> None:
    report = _report("restricted", "best")
    _needs("A", report)
    assert (report["tier"], report["in_bubblewrap"]) == ("A", True)
    assert {name: wrong for name, wrong in report["attacks"].items() if wrong} == {}  # type: ignore[attr-defined]


def test_there_are_enough_attacks_and_no_two_alike() -> None:
    assert len(ATTACKS) == len({attack.name for attack in ATTACKS}) == len({attack.program for attack in ATTACKS})
    assert len(ATTACKS) >= 45


def test_the_judge_sees_what_succeeds_without_isolation() -> None:
    """Check the checker, by attacks that do no harm beyond their canaries."""
    names = [
        "overwrite",
        "read_secrets",
        "tcp",
        "unix_sockets",
        "fork",
        "memfd",
        "undo_prctl",
        "watch_files",
        "environment",
    ]
    command = [sys.executable, f"{HERE}/driver.py", str(ROOT), "none", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    attacks = json.loads(done.stdout)["attacks"]
    assert [name for name in names if not attacks[name]] == ["environment"]  # cleared in every tier


def test_the_scan_finds_what_is_there() -> None:
    """The attack that looks for other programs' leavings does find its own."""
    [attack] = [attack for attack in ATTACKS if attack.name == "scan_memory"]
    told = json.dumps({"file": "", "folder": "", "parent": 1, "kept": f"{MARKER}123"}).encode()
    with Sandbox(unsafe=True) as sandbox:
        [done] = sandbox.run(attack.program, [told])
    assert b"PWNED" in done.stdout
