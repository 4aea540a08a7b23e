"""One exit status for several processes: the cause's. Real processes under torch's launcher, most without torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.sampling.reaper import descendants
from model.training import process
from model.training.launch import End, cause, launch, say_last, told
from model.training.process import StopRequest
from tests.model.training.test_runner import is_running, wait_for

# A process that says that it is there, then does as the test wants; WHO is its rank.
HEAD = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from model.training.process import StopRequest, die_with
WHO = int(os.environ["RANK"])
"""
ROOT = str(Path(__file__).parents[3])


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)}
    yield StopRequest()
    for number, handler in before.items():
        signal.signal(number, handler)


def trainer(body: str) -> list[str]:
    return [sys.executable, "-c", HEAD.format(root=ROOT) + body]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("", 0, ""),
        # The second one is the cause, though the first, which misses it, is noticed first.
        ("StopRequest(); meet(); time.sleep(0.3 * WHO); sys.exit(1 + WHO)", 2, "ended with status 2"),
        ("StopRequest(); meet(); time.sleep(0.05 * (not WHO)); sys.exit([1, 3][WHO])", 3, "ended with status 3"),
        ("os.kill(os.getpid(), signal.SIGKILL) if WHO else time.sleep(60)", 1, "was killed by signal 9\n"),
        (
            "StopRequest(); os.kill(os.getpid(), signal.SIGSEGV) if WHO else time.sleep(0.3); sys.exit(1)",
            1,
            "was killed by signal 11\n",
        ),
    ],
)
def test_the_status_is_the_causes(
    stop: StopRequest,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    body: str,
    status: int,
    words: str,
) -> None:
    monkeypatch.setattr(process, "memory_kills", lambda: 7)
    meet = f"""
def meet():
    "One that is ended before it can listen tells nothing."
    Path({str(tmp_path)!r}, str(WHO)).touch()
    while len(list(Path({str(tmp_path)!r}).iterdir())) < 2: time.sleep(0.01)

"""
    assert launch(trainer(meet + body), 2, stop) == status
    assert words in capfd.readouterr().err


def test_what_all_processes_say_is_said_once(stop: StopRequest, capfd: pytest.CaptureFixture[str]) -> None:
    said = 'from model.training.launch import say_last; say_last("JobError: no such model"); sys.exit(2)'
    assert launch(trainer(said), 2, stop) == 2
    assert capfd.readouterr().err == "JobError: no such model\n"
    say_last("said by itself, as nobody launched it")
    assert "said by itself" in capfd.readouterr().err


def test_which_end_tells_why_all_ended() -> None:
    missed, lost = End(100, 1), End(101, 1, "DiskError: full")
    assert cause([missed, lost]) is lost
    assert cause([missed, End(101, -signal.SIGTERM)]) is missed
    assert cause([missed, End(101, 3), End(101, 2)]).code == 3
    # What the launcher itself has killed, half a minute after the first had failed, ran out of nothing.
    assert cause([lost, End(131, -signal.SIGKILL)]) is lost
    assert cause([missed, End(102, -signal.SIGKILL)]).code == -signal.SIGKILL


@pytest.mark.parametrize(("for_memory", "status"), [(True, 3), (False, 1)])
def test_only_the_kernel_kills_for_memory(
    stop: StopRequest, capfd: pytest.CaptureFixture[str], for_memory: bool, status: int
) -> None:
    assert told(End(100, -signal.SIGKILL), stop, for_memory=for_memory) == status
    assert ("(out of memory?)" in capfd.readouterr().err) is for_memory


def test_a_stop_reaches_every_process_and_all_are_waited_for(stop: StopRequest, tmp_path: Path) -> None:
    listening = f"""
import subprocess
stop = StopRequest()
# It has to serve until its trainer has stopped; in a session of its own, as `VLLMServer` starts one.
engine = subprocess.Popen(["sleep", "60"], start_new_session=True)
Path({str(tmp_path)!r}, f"up-{{WHO}}").touch()
while not stop.received: time.sleep(0.01)
time.sleep(0.5 * WHO)
if engine.poll() is None: Path({str(tmp_path)!r}, f"saved-{{WHO}}").touch()
engine.kill()
sys.exit(75)
"""

    def ask() -> None:
        wait_for(lambda: len(list(tmp_path.glob("up-*"))) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    assert launch(trainer(listening), 2, stop) == 75
    asking.join()
    assert len(list(tmp_path.glob("saved-*"))) == 2


def test_a_stop_before_there_are_processes(stop: StopRequest) -> None:
    stop.received = True
    assert launch(trainer("sys.exit(1)"), 2, stop) == 75


def test_kill_9_of_the_starter_leaves_no_process(tmp_path: Path) -> None:
    waiting = f"die_with(int(sys.argv[1])); Path({str(tmp_path)!r}, f'up-{{WHO}}').touch(); time.sleep(600)"
    starter = (
        "import os, sys; from model.training.launch import launch; from model.training.process import StopRequest;"
        "launch([*sys.argv[1:], str(os.getpid())], 2, StopRequest())"
    )
    command = [sys.executable, "-c", starter, *trainer(waiting)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": ROOT}) as process:
        wait_for(lambda: len(list(tmp_path.glob("up-*"))) == 2 or process.poll() is not None)
        started = descendants(process.pid)
        process.kill()
    assert len(started) == 2
    wait_for(lambda: not any(map(is_running, started)), seconds=10)
