"""A running zygote as the parent sees it: a process, a control socket, and one question at a time."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import model
from model.sandbox import bubblewrap
from model.sandbox.files import Files
from model.sandbox.limits import Limits, Tier

_START_SECONDS = 60.0  # imports, on a busy machine
_GRACE_SECONDS = 30.0  # beyond a test's own wall time: the zygote kills at that
_CLOSE_SECONDS = 5.0
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from model.sandbox.zygote import begin; sys.path.pop(0); "
_BEGIN = "begin(int(sys.argv[2]), int(sys.argv[3]))"


class LinkError(Exception):
    """The zygote could not be started, died, or could not carry out a test. Never the program's doing."""


@dataclass(frozen=True, slots=True)
class Reply:
    """How a child ended. `status`: exit status, or minus the signal; `killed`: "cpu" or "wall" when the zygote did."""

    status: int
    killed: str
    cpu: float
    wall: float


class Link:
    """Starts a zygote in `tier` and waits until it is ready. Raises LinkError, or OSError
    where not even a descriptor is to be had."""

    def __init__(self, tier: Tier, packages: Sequence[str], hash_seed: int, *, in_bubblewrap: bool = False) -> None:
        packages_from = _folders(packages)
        self._messages = os.fdopen(os.memfd_create("messages"), "w+b")  # what a dying zygote says
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        myself = os.pidfd_open(os.getpid())
        try:
            root, interpreter = str(Path(model.__path__[0]).parent), _interpreter()
            wrap = bubblewrap.command(interpreter, root, packages_from) if in_bubblewrap else []
            self._process = self._spawned([*wrap, interpreter], root, theirs.fileno(), myself, hash_seed)
        except OSError as error:
            self._control.close()
            self._messages.close()
            raise LinkError(f"the interpreter cannot be started: {error}") from error
        finally:
            theirs.close()
            os.close(myself)
        try:
            plan = {"tier": tier.value, "packages": list(packages), "packages_from": packages_from}
            self._ask(json.dumps({**plan, "in_bubblewrap": in_bubblewrap}).encode(), [], _START_SECONDS)
            self.zygote_process = self._process.pid  # in tier A: of the process that waits for the zygote
        except LinkError:
            self.close()
            raise

    def exchange(self, files: Files, limits: Limits, entry: str, argv: Sequence[str]) -> Reply:
        """One test. Raises LinkError when it could not be carried out."""
        request = {
            "cpu_seconds": limits.cpu_seconds,
            "wall_seconds": limits.wall_seconds,
            "memory_bytes": limits.memory_bytes,
            "output_bytes": limits.output_bytes,
            "entry": entry,
            "argv": list(argv),
        }
        message = json.dumps(request).encode()
        return Reply(**self._ask(message, files.descriptors, limits.wall_seconds + _GRACE_SECONDS))  # type: ignore[arg-type]

    def close(self) -> None:
        """The zygote ends when its socket closes; it is killed when it does not."""
        self._control.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._messages.close()

    def _spawned(
        self, interpreter: Sequence[str], root: str, control: int, myself: int, hash_seed: int
    ) -> subprocess.Popen[bytes]:
        """No site-packages, no user folder, no environment; a session of its own, out of the terminal's reach."""
        flags = ["-s", "-S", "-P", "-B", "-X", "utf8"]
        return subprocess.Popen(
            [*interpreter, *flags, "-c", _BOOT + _BEGIN, root, str(control), str(myself)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._messages,
            pass_fds=(control, myself),
            cwd="/",
            env=_environment(hash_seed),
            start_new_session=True,
        )

    def _ask(self, message: bytes, descriptors: Sequence[int], patience: float) -> dict[str, object]:
        self._control.settimeout(patience)
        try:
            socket.send_fds(self._control, [message], list(descriptors))
            answer = self._control.recv(1 << 16)
        except TimeoutError as error:
            self._process.kill()
            raise LinkError(f"the zygote did not answer within {patience:g} s") from error
        except OSError as error:
            raise LinkError(f"the zygote died ({error}){self._last_words()}") from error
        if not answer:
            raise LinkError(f"the zygote died{self._last_words()}")
        found: dict[str, object] = json.loads(answer)
        if "failed" in found:
            raise LinkError(str(found["failed"]))
        return found

    def _last_words(self) -> str:
        self._messages.seek(0)
        lines = self._messages.read().decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""


def _interpreter() -> str:
    """The real file: without the virtual environment around it there is no site-packages."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def _environment(hash_seed: int) -> dict[str, str]:
    once = {"PYTHONHASHSEED": str(hash_seed), "MALLOC_ARENA_MAX": "1"}
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # An interpreter built with a shared library may not start without it.
    found = {key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ}
    return once | one_thread | found


def _folders(packages: Sequence[str]) -> list[str]:
    """The folders that this process would import `packages` from. Raises LinkError for one that it could not."""
    folders: dict[str, None] = {}
    for name in packages:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise LinkError(f"the package {name}, which programs may import, is not installed")
        folder = Path(found.origin).parent
        folders[str(folder.parent if found.submodule_search_locations else folder)] = None
    return list(folders)
