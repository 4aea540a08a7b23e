"""The self-test at start: a tier that lets one of these attacks through, or fails an honest program, is refused.

The attacks run in the very sandbox that is about to be used, at canaries laid out for them: files that anybody may
read and change, a listener on loopback, the parent and the zygote. They are judged twice: by what they say
themselves (each is honest, unlike a real attack) and by what has become of the canaries. The large suite is in
tests/model/sandbox/attacks.py; this is the part of it that tells one broken mechanism from another in a blink.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from model.sandbox.limits import MOST_INPUTS, Call, End, Limits

if TYPE_CHECKING:
    from model.sandbox.sandbox import Sandbox

_LIMITS = Limits(cpu_seconds=10.0, wall_seconds=60.0)
_SECRET = "canary"

# Each `def` is an attack; returning anything but a false value means that it worked. OSError means that it did not.
_ATTACKS = r"""
import ctypes, errno, json, os, platform, resource, signal, socket, sys

told = json.loads(sys.stdin.read())
if not told: sys.exit()
libc = ctypes.CDLL(None, use_errno=True)
file, folder = told["file"], told["folder"]
x86 = platform.machine() == "x86_64"

def call(name, *arguments):
    number = {"memfd_create": (319, 279), "ptrace": (101, 117), "process_vm_readv": (310, 270),
              "io_uring_setup": (425, 425), "bpf": (321, 280), "keyctl": (250, 219), "userfaultfd": (323, 282),
              "perf_event_open": (298, 241), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
              "chroot": (161, 51), "pidfd_open": (434, 434), "setns": (308, 268)}[name][not x86]
    return answered(libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)))

def answered(result):
    # The arguments do nothing: any answer but a refusal means that the kernel was reached.
    return result >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS)

def read_file(): return open(file).read()
def write_file(): return open(file, "w")
def append_by_descriptor(): return os.open(file, os.O_WRONLY) + 1
def create_file(): return os.open(folder + "/new", os.O_CREAT | os.O_RDWR) + 1
def unlink(): os.unlink(file); return 1
def rename(): os.rename(file, file + "2"); return 1
def link(): os.link(file, folder + "/hard"); return 1
def symlink(): os.symlink(file, folder + "/soft"); return 1
def make_folder(): os.mkdir(folder + "/sub"); return 1
def chmod(): os.chmod(file, 0o600); return 1
def utime(): os.utime(file, (1, 1)); return 1
def truncate(): os.truncate(file, 0); return 1
def list_folder(): return os.listdir(folder)
def parents_environment(): return open(f"/proc/{told['parent']}/environ", "rb").read()
def zygotes_memory(): return open(f"/proc/{os.getppid()}/mem", "rb")
def own_memory(): return open("/proc/self/mem", "r+b")
def connect(): socket.create_connection(("127.0.0.1", told["port"]), 1); return 1
def datagram(): return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def local_socket(): return socket.socket(socket.AF_UNIX)
def fork():
    if os.fork() == 0: os._exit(0)
    return 1
def execute(): return os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {}) if sys.executable else 0
def signal_parent(): os.kill(told["parent"], 0); return 1
def signal_zygote(): os.kill(os.getppid(), 0); return 1
def signal_all(): os.kill(-1, 0); return 1
def parents_limits(): resource.prlimit(os.getppid(), resource.RLIMIT_CPU); return 1
def more_memory(): resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); return 1
def more_time(): resource.setrlimit(resource.RLIMIT_CPU, (-1, -1)); return 1
def be_root(): os.setuid(0); return 1
def is_root(): return 0 in os.getresuid()
def dumpable(): return libc.prctl(4, 1, 0, 0, 0) == 0
def survive(): return libc.prctl(1, 0, 0, 0, 0) == 0
def user_namespace(): return libc.unshare(0x10000000) == 0
def mount(): return answered(libc.mount(b"none", folder.encode(), b"no-such-file-system", 0, None))
def memfd(): return call("memfd_create", 0, 0)
def trace(): return call("ptrace", 9999, os.getppid(), 0, 0)
def read_zygote(): return call("process_vm_readv", os.getppid(), 0, 0, 0, 0, 0)
def io_uring(): return call("io_uring_setup", 1, 0)
def bpf(): return call("bpf", 0, 0, 0)
def keyring(): return call("keyctl", 999)
def fault_handler(): return call("userfaultfd", 255)
def shared_memory(): return call("shmget", 1, 0, 0)
def message_queue(): return call("msgget", 1, 0)
def semaphores(): return call("semget", 1, 0, 0)
def process_handle(): return call("pidfd_open", os.getppid(), 0)
def descriptors():
    found = [number for number in range(4, 4096) if libc.fcntl(number, 1) >= 0]
    return found

worked = []
for name, attack in list(globals().items()):
    if getattr(attack, "__module__", "") == "__main__" and name not in ("call", "answered"):
        try:
            if attack(): worked.append(name)
        except (OSError, ValueError): pass
print(json.dumps(worked))
"""

_HONEST = """
import collections, json, math, threading
def twice(value):
    box = []
    thread = threading.Thread(target=lambda: box.append(value * 2)); thread.start(); thread.join()
    return box[0]
"""


def broken_promises(sandbox: Sandbox) -> list[str]:
    """What this sandbox, started, does not keep; empty when it may be used. Raises SandboxError when it died."""
    with tempfile.TemporaryDirectory(prefix="canary-") as name, socket.create_server(("127.0.0.1", 0)) as listener:
        folder = Path(name)
        file = _laid_out(folder)
        told = {"folder": name, "file": str(file), "port": listener.getsockname()[1], "parent": os.getpid()}
        # With as many descriptors as a process is ever given; the attacks begin when only the last is left.
        *_, done = sandbox.run(_ATTACKS, [*[b"{}"] * (MOST_INPUTS - 1), json.dumps(told).encode()], _LIMITS)
        listener.setblocking(False)
        broken = _touched(folder, file, listener)
    if done.end is not End.OK:
        return [*broken, f"the probes did not run to their end ({done.end}, {done.detail})"]
    worked = [f"{attack} works" for attack in json.loads(done.stdout)]
    return broken + worked + _honest_work(sandbox)


def _laid_out(folder: Path) -> Path:
    """Open to everybody, so that it is not file permissions that protect it."""
    folder.chmod(0o777)
    file = folder / "file"
    file.write_text(_SECRET)
    file.chmod(0o666)
    return file


def _touched(folder: Path, file: Path, listener: socket.socket) -> list[str]:
    """What became of the canaries, seen from outside."""
    broken = []
    if [each.name for each in folder.iterdir()] != [file.name]:
        broken.append("files were made or removed")
    elif file.read_text() != _SECRET or file.stat().st_mode & 0o777 != 0o666 or file.stat().st_mtime < 2:
        broken.append("a file was changed")
    try:
        listener.accept()[0].close()
        broken.append("a connection was made")
    except BlockingIOError:
        return broken
    return broken


def _honest_work(sandbox: Sandbox) -> list[str]:
    results = sandbox.call(_HONEST, "twice", [Call((21,)), Call(("ab",))], _LIMITS)
    right = [result.value for result in results] == [42, "abab"]
    return [] if right else [f"an honest program fails ({results[0].end}, {results[0].error})"]
