"""The pool's promises: order, hard time-outs, crashes contained, any thread, nothing left behind."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import CheckError, InterruptedRunError
from model.records import Status
from model.rewards.check import Scored
from model.rewards.settings import CheckSettings, LanguageSettings
from model.rewards.workers.pool import VerifierPool
from model.rewards.workers.worker import Parcel

PATIENT = "tests.model.rewards.hostile:PatientCheck"
LATE = "tests.model.rewards.hostile:LateCheck"
HOSTILE = "tests.model.rewards.hostile:HostileCheck"
ROOT = Path(__file__).parents[4]


def texts(*words: str) -> list[Scored]:
    return [Scored(text=word) for word in words]


def outcomes(pool: VerifierPool, items: Sequence[Scored], check: int = 0) -> list[tuple[str, str]]:
    return [(row[check][0].verdict.value, row[check][0].reason) for row in pool.run(items)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_verdicts_come_in_item_order_with_every_check_and_its_cost() -> None:
    with VerifierPool([HOSTILE, "length"], workers=2) as pool:
        words = [f"w{number}" for number in range(500)]
        rows = pool.run(texts(*words))
        assert pool.run([]) == []
    assert [row[0][0].reason for row in rows] == words
    assert [row[1][0].score for row in rows] == [float(len(word)) for word in words]
    assert all(0 <= milliseconds < 1000 for row in rows for _, milliseconds in row)


def test_only_the_named_checks_are_carried_out() -> None:
    with VerifierPool(["finish", HOSTILE, "length"], workers=1, timeout_seconds=1.0) as pool:
        items = texts("sleep", "ab", "power", "abc")
        started = time.monotonic()
        rows = pool.run(items, ["length"])
        assert time.monotonic() - started < 1.0 * len(items)
        assert [[judgement.score for judgement, _ in row] for row in rows] == [[5.0], [2.0], [5.0], [3.0]]
        rows = pool.run(texts("a", "segfault", "b"), ["length", "hostile"])  # in the pool's order
        assert [row[0][0].reason for row in rows] == ["a", "worker_died", "b"]
        assert [row[1][0].score for row in rows] == [1.0, 8.0, 1.0]
        assert pool.run(texts("a", "b"), []) == [[], []]
        with pytest.raises(ValueError, match="maths"):
            pool.run(texts("a"), ["maths"])


def test_a_stream_takes_no_more_than_keeps_the_workers_busy() -> None:
    taken: list[int] = []

    def endless() -> Iterator[Scored]:
        for number in itertools.count():
            taken.append(number)
            yield Scored(text=str(number))

    with VerifierPool(["length"], workers=1) as pool:
        first = list(itertools.islice(pool.stream(endless()), 1000))
        assert [row[0][0].score for row in first] == [float(len(str(number))) for number in range(1000)]
        assert len(taken) < 1000 + 64 * 6


def test_a_check_may_have_a_time_limit_of_its_own() -> None:
    with VerifierPool([PATIENT, HOSTILE], workers=1, timeout_seconds=0.9) as pool:  # a busy machine may take 0.3 s
        rows = pool.run(texts("a", "sleep a second", "b", "sleep"))
    assert [row[0][0].reason for row in rows] == ["a", "slept", "b", "sleep"]
    assert [row[1][0].reason for row in rows] == ["a", "sleep a second", "b", "timed_out"]
    assert rows[3][1][1] == 900.0


def test_the_time_of_one_verdict_is_not_counted_for_the_next() -> None:
    """Also where the worker is slow to begin that one, its verdict of the other being there already."""
    with VerifierPool([LATE, HOSTILE], workers=1, timeout_seconds=0.9) as pool:
        rows = pool.run(texts("sleep a second", "b"))
    assert [[judgement.reason for judgement, _ in row] for row in rows] == [["slept", "sleep a second"], ["b", "b"]]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300), st.none() | st.text(max_size=300), st.text(max_size=80), st.text(max_size=80))
def test_what_travels_to_a_worker_arrives_as_it_was(text: str, other: str | None, before: str, after: str) -> None:
    for reasoning in (other, text):
        item = Scored(text=f"{before}{text}{after}", gold="7", reasoning=reasoning, answer=other, sample_id="s")
        assert pickle.loads(pickle.dumps(Parcel.of(item))).unpacked() == item


def test_verdicts_that_were_lost_with_a_worker_are_made_again() -> None:
    """All come within one reply, so that those before the one that dies are not told when it does."""
    words = [f"w{number}" for number in range(60)]
    words[20], words[30], words[31], words[45] = "segfault", "sleep", "segfault", "power"
    with VerifierPool([HOSTILE, "length"], workers=1, timeout_seconds=1.0) as pool:
        rows = pool.run(texts(*words))
    expected = {20: "worker_died", 30: "timed_out", 31: "worker_died", 45: "timed_out"}
    assert [row[0][0].reason for row in rows] == [expected.get(n, word) for n, word in enumerate(words)]
    assert [row[1][0].score for row in rows] == [float(len(word)) for word in words]


@pytest.mark.parametrize("hang", ["sleep", "power"])
def test_a_hung_item_costs_its_own_verdict_only(hang: str) -> None:
    words = [f"w{number}" for number in range(40)]
    words[17] = hang
    with VerifierPool([HOSTILE, "length"], workers=2, timeout_seconds=1.0) as pool:
        started = time.monotonic()
        rows = pool.run(texts(*words))
        elapsed = time.monotonic() - started
    assert (rows[17][0][0].verdict, rows[17][0][0].reason) == (Status.ERROR, "timed_out")
    assert rows[17][0][1] == 1000.0
    assert rows[17][1][0].verdict is Status.PASS  # the check beside the one that hung
    assert [row[0][0].reason for row in rows[:17] + rows[18:]] == words[:17] + words[18:]
    assert elapsed < 30  # not the 60 s that it sleeps


def test_a_dead_worker_is_tried_once_more_and_then_an_error() -> None:
    with VerifierPool([HOSTILE], workers=1) as pool:
        rows = pool.run(texts("a", "segfault", "b"))
    assert [row[0][0].reason for row in rows] == ["a", "worker_died", "b"]
    assert rows[1][0][0].verdict is Status.ERROR
    assert rows[1][0][0].detail == f"signal {signal.SIGSEGV.value}"


def test_a_check_that_raises_or_eats_memory_is_an_error_and_keeps_its_worker() -> None:
    with VerifierPool([HOSTILE], workers=1) as pool:
        rows = [row[0][0] for row in pool.run(texts("a", "raise", "memory", "b"))]
    assert [(row.verdict.value, row.reason) for row in rows[1:3]] == [
        ("error", "raised"),
        ("error", "out_of_memory"),
    ]
    assert rows[1].detail == "KeyError: 'a bug'"
    assert rows[0].detail == rows[3].detail  # the same process


def test_threads_share_the_pool_and_workers_outlive_the_thread_that_started_them() -> None:
    pool = VerifierPool([HOSTILE], workers=1)
    with pool:
        first: list[str | None] = []
        starter = threading.Thread(target=lambda: first.append(pool.run(texts("a"))[0][0][0].detail))
        starter.start()
        starter.join()
        with ThreadPoolExecutor(4) as threads:
            batches = [texts(*(f"{batch}-{number}" for number in range(50))) for batch in range(8)]
            results = list(threads.map(pool.run, batches))
    for batch, rows in zip(batches, results, strict=True):
        assert [row[0][0].reason for row in rows] == [item.text for item in batch]
        assert {row[0][0].detail for row in rows} == set(first)


def test_workers_die_with_a_parent_that_is_killed_even_while_they_hang() -> None:
    script = (
        "from model.rewards.workers.pool import VerifierPool; from model.rewards.check import Scored\n"
        f"pool = VerifierPool([{HOSTILE!r}], workers=1, timeout_seconds=60)\n"
        "print(pool.run([Scored(text='a')])[0][0][0].detail, flush=True)\n"
        "pool.run([Scored(text='power')])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.3)
    assert is_running(worker)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)


def test_closing_kills_a_hung_worker_and_frees_whoever_waits() -> None:
    pool = VerifierPool([HOSTILE], workers=1, timeout_seconds=60)
    worker = int(pool.run(texts("a"))[0][0][0].detail or 0)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(pool.run, texts("sleep"))
        time.sleep(0.3)
        pool.close()
        with pytest.raises(InterruptedRunError, match="closed"):
            waiting.result(timeout=10)
    assert not is_running(worker)
    with pytest.raises(InterruptedRunError, match="closed"):
        pool.run(texts("a"))


@pytest.mark.parametrize(("language", "said"), [("de", "RuntimeError: no models"), ("fr", "exit status 3")])
def test_a_worker_that_cannot_start_is_one_clear_error(language: str, said: str) -> None:
    wrong = CheckSettings(language=LanguageSettings(language))
    with VerifierPool([HOSTILE], wrong, workers=1) as pool, pytest.raises(CheckError, match=said):
        pool.run(texts("a"))


def test_workers_and_the_package_load_only_what_they_need() -> None:
    with VerifierPool([HOSTILE, "format", "finish"], workers=1) as pool:
        assert outcomes(pool, texts("modules")) == [("pass", "")]
    modules = "('torch', 'sympy', 'py3langid')"
    script = f"import sys, model.rewards.workers.pool; print([m for m in {modules} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_check_is_refused_before_any_process_starts() -> None:
    with pytest.raises(CheckError, match="did you mean 'math'"):
        VerifierPool(["maths"])
    with pytest.raises(ValueError, match="workers"):
        VerifierPool(["math"], workers=0)
