"""What lies outside the sandbox, laid out as bait, and what has become of it after an attack."""

from __future__ import annotations

import os
import resource
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path

SECRET = "dry-sherry-secret"  # in the file, and in the environment


@dataclass
class World:
    """Canaries that anybody on the machine may read and change, so that permissions are not what protects them."""

    folder: Path
    tcp: socket.socket = field(init=False)
    udp: socket.socket = field(init=False)
    unix: list[socket.socket] = field(init=False)
    signals: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        os.environ["STILLHOUSE_SECRET"] = SECRET
        self.folder.chmod(0o777)
        self.file = self.folder / "file"
        self.file.write_text(SECRET)
        self.file.chmod(0o666)
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(self.tcp.getsockname())
        self.unix = [_listening(str(self.folder / "socket")), _listening(f"\0canary-{os.getpid()}")]
        (self.folder / "socket").chmod(0o777)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, lambda number, _frame: self.signals.append(number))
        self.before = self._state()

    def told(self) -> dict[str, object]:
        """What the attacks are told, so that they need not search."""
        return {
            "folder": str(self.folder),
            "file": str(self.file),
            "socket": str(self.folder / "socket"),
            "abstract": f"canary-{os.getpid()}",
            "port": self.tcp.getsockname()[1],
            "parent": os.getpid(),
            "script": str(Path(__file__).resolve()),
        }

    def harm(self) -> list[str]:
        """What is not as it was; then things count as they are now."""
        after = self._state()
        before = self.before
        changed = [f"{name}: {before[name]!r} is now {after[name]!r}" for name in after if after[name] != before[name]]
        self.before = after
        for name, listener in zip(("tcp", "udp", "unix", "abstract"), (self.tcp, self.udp, *self.unix), strict=True):
            if _reached(listener):
                changed.append(f"{name} was reached")
        return changed

    def _state(self) -> dict[str, object]:
        status = self.file.stat()
        return {
            "content": self.file.read_text(),
            "file": (status.st_mode, status.st_uid, status.st_mtime, status.st_nlink),
            "folder": (_names(self.folder), self.folder.stat().st_mode),
            "places": [_names(Path(place)) for place in ("/dev/shm", "/dev/mqueue")],
            "system v": [Path(f"/proc/sysvipc/{kind}").read_text().count("\n") for kind in ("shm", "sem", "msg")],
            "signals": list(self.signals),
            "own": _settings_of(os.getpid()),
            "host": (socket.gethostname(), Path("/proc/self/mounts").read_text()),
        }


def _names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []


def _settings_of(pid: int) -> tuple[object, ...]:
    """What another process may be made to do: priority, cores, scheduling, limits."""
    limits = [resource.prlimit(pid, kind) for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NOFILE)]
    return os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid), os.sched_getscheduler(pid), limits


def descendants_of(pid: int) -> set[int]:
    children = {int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    return children.union(*map(descendants_of, children))


def _listening(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    return listener


def _reached(listener: socket.socket) -> bool:
    listener.setblocking(False)
    try:
        if listener.type == socket.SOCK_DGRAM:
            listener.recv(9)
        else:
            listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True
