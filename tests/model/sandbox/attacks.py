"""Programs that try to get out, to harm, to learn or to cheat; each with how it may end.

An attack prints PWNED where it believes it has succeeded; what it leaves outside is judged by `world.py`, and
what the next honest program gives by `driver.py`. Every program begins with `PRELUDE` and reads where the canaries
are from standard input (or, in call mode, from its argument).
"""

# ruff: noqa: E501 (one attack a line where it fits; they are data)

from __future__ import annotations

from dataclasses import dataclass

from model.sandbox import End, Limits

QUICK = Limits(cpu_seconds=0.15, wall_seconds=20.0, memory_bytes=128 << 20, output_bytes=1 << 18)
ROOMY = Limits(cpu_seconds=2.0, wall_seconds=20.0, memory_bytes=128 << 20, output_bytes=1 << 18)
SMALL = Limits(cpu_seconds=2.0, wall_seconds=20.0, memory_bytes=24 << 20, output_bytes=1 << 18)
SHORT = Limits(cpu_seconds=2.0, wall_seconds=0.15, memory_bytes=128 << 20, output_bytes=1 << 18)

PRELUDE = r"""
import ctypes, json, mmap, os, platform, resource, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
def pwned(what): print("PWNED", what); sys.stdout.flush()
def attempt(what, action, *arguments):
    try: done = action(*arguments)
    except Exception: return None
    pwned(what); return done
def raw(number, *arguments):
    "x86_64 numbers; done elsewhere too, where they are other calls: any that succeeds and matters is seen outside"
    done = libc.syscall(ctypes.c_long(number), *[a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments])
    if X86 and done >= 0: pwned(f"syscall {number}")
    return done
def setup(told):
    global file, folder, parent, zygote
    file, folder, parent, zygote = told["file"], told["folder"], told["parent"], os.getppid()
"""
_READ = "told = json.loads(sys.stdin.read()); setup(told)\n"


@dataclass(frozen=True)
class Attack:
    """`ends`: how it may end (any way when empty). `entry`: attacked in call mode, three calls of this function."""

    name: str
    source: str
    ends: frozenset[End] = frozenset()
    limits: Limits = ROOMY
    entry: str = ""

    @property
    def program(self) -> str:
        return PRELUDE + ("" if self.entry else _READ) + self.source


def _attack(name: str, source: str, *ends: End, limits: Limits = ROOMY, entry: str = "") -> Attack:
    return Attack(name, source, frozenset(ends), limits, entry)


_TRIES = "for what, action in list(globals().items()):\n    if what.startswith('try_'): attempt(what, action)\n"

FILES = [
    _attack("overwrite", """
for mode in ("w", "a", "r+", "wb"): attempt(mode, open, file, mode)
for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND): attempt(flags, os.open, file, flags)
""", End.OK),
    _attack("create", """
import tempfile
for where in (folder, "/", "/tmp", "/var/tmp", "/dev/shm", ".", os.path.expanduser("~")):
    attempt(where, open, where + "/new", "x"); attempt(where, os.mkdir, where + "/sub")
    attempt(where, os.mkfifo, where + "/fifo"); attempt(where, os.mknod, where + "/node")
    attempt(where, os.open, where, os.O_TMPFILE | os.O_RDWR); attempt(where, os.symlink, file, where + "/soft")
attempt("tempfile", tempfile.mkstemp)
""", End.OK),
    _attack("remove", "attempt(1, os.unlink, file); attempt(2, os.rmdir, folder); attempt(3, os.remove, told['socket'])", End.OK),
    _attack("rename", "attempt(1, os.rename, file, file + '2'); attempt(2, os.replace, told['socket'], file); raw(316, -100, file.encode(), -100, told['socket'].encode(), 2)", End.OK),
    _attack("links", "attempt(1, os.link, file, folder + '/hard'); attempt(2, os.symlink, '/etc', folder + '/soft')", End.OK),
    _attack("chmod_chown", "attempt(1, os.chmod, file, 0o600); attempt(2, os.chown, file, 0, 0); attempt(3, os.chmod, folder, 0o700); raw(452, -100, file.encode(), 0, 0)", End.OK),
    _attack("utime", "attempt(1, os.utime, file, (1, 1)); attempt(2, os.utime, folder); raw(132, file.encode(), 0); raw(235, file.encode(), 0)", End.OK),
    _attack("truncate", "attempt(1, os.truncate, file, 0); raw(76, file.encode(), 0); raw(285, 1, 0, 0, 1 << 40)", End.OK),
    _attack("xattr", "attempt(1, os.setxattr, file, 'user.x', b'1'); attempt(2, os.removexattr, file, 'user.canary')", End.OK),
    _attack("read_secrets", """
for each in (file, "/etc/passwd", "/etc/shadow", "/etc/hostname", told["script"], "/proc/self/environ", f"/proc/{parent}/environ",
             f"/proc/{parent}/cmdline", f"/proc/{zygote}/maps", "/proc/1/environ", "/root/.bash_history", "/proc/version"):
    print(attempt(each, lambda: open(each, "rb").read()))
""", End.OK),
    _attack("list_folders", "for each in (folder, '/', '/tmp', '/proc', '/home', '/etc', '/dev', '.'): attempt(each, os.listdir, each)", End.OK),
    _attack("other_ways_to_open", """
raw(437, -100, file.encode(), struct.pack("=QQQ", 0, 0, 0), 24)
raw(303, -100, file.encode(), bytes(136), bytes(8), 0); raw(304, -100, bytes(136), 0)
raw(428, -100, file.encode(), 1); raw(85, file.encode(), 0o600)
""", End.OK),
    _attack("change_root", "attempt(1, os.chdir, folder); attempt(2, os.chroot, folder); attempt(3, os.fchdir, 0); raw(155, b'.', b'.')", End.OK),
    _attack("proc_self", """
for each, mode in (("mem", "r+b"), ("exe", "rb"), ("root/etc/passwd", "rb"), ("environ", "rb"), ("oom_score_adj", "w"),
                   ("coredump_filter", "w"), ("comm", "w"), ("task", "rb")):
    attempt(each, open, "/proc/self/" + each, mode)
for each in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", f"/proc/{zygote}/oom_score_adj"): attempt(each, open, each, "w")
""", End.OK),
    _attack("devices", "for each in ('fd/0', 'fd/1', 'stdin', 'stdout', 'tty', 'mem', 'kmsg', 'null', 'zero', 'ptmx', 'kvm', 'fuse'): attempt(each, open, '/dev/' + each, 'r+b', 0)", End.OK),
    _attack("watch_files", "attempt(1, lambda: libc.inotify_add_watch(libc.inotify_init(), folder.encode(), 0xfff) == 0 or 1/0); raw(254, 0, file.encode(), 2); raw(300, 0, 0)", End.OK),
]  # fmt: skip

DESCRIPTORS = [
    _attack("inherited_descriptors", """
for number in range(4, 1024):
    for action in (os.fstat, lambda n: os.write(n, b"x"), lambda n: os.pread(n, 9, 0), os.dup): attempt(number, action, number)
    attempt(number, lambda: socket.socket(fileno=number).send(b"{}"))
""", End.OK),
    _attack("change_own_input", """
attempt(1, os.pwrite, 0, b"changed", 0); attempt(2, os.ftruncate, 0, 0); raw(72, 0, 1033, 0)
attempt(3, mmap.mmap, 0, 16, mmap.MAP_SHARED, mmap.PROT_WRITE)
""", End.OK),
    _attack("signals_by_descriptor", """
import fcntl
reader, writer = os.pipe()
for owner in (zygote, parent, -1):
    attempt(1, fcntl.fcntl, reader, fcntl.F_SETOWN, owner); attempt(2, fcntl.fcntl, reader, 10, signal.SIGKILL)
    attempt(3, fcntl.ioctl, reader, 0x8901, struct.pack("i", owner)); attempt(4, fcntl.ioctl, reader, 0x8902, struct.pack("i", owner))
    attempt(5, fcntl.fcntl, reader, 15, struct.pack("ii", 1, owner))
try: fcntl.fcntl(reader, fcntl.F_SETFL, 0o20000)
except OSError: pass
os.write(writer, b"x")
""", End.OK),
    _attack("terminal_injection", "import fcntl\nfor number in (0, 1, 2): attempt(number, fcntl.ioctl, number, 0x5412, b'x'); attempt(number, fcntl.ioctl, number, 0x541C, b'x')", End.OK),
    _attack("close_everything", "os.closerange(0, 256); os._exit(0)", End.OK),
    _attack("close_output_then_end", "sys.stdout.close(); sys.stderr.close(); os.close(1); os.close(3)"),
    _attack("locks_and_leases", "import fcntl\nattempt(1, fcntl.flock, 1, fcntl.LOCK_EX); attempt(2, fcntl.lockf, 1, fcntl.LOCK_EX); attempt(3, fcntl.fcntl, 0, 1024, 1)", End.OK),
    _attack("move_bytes", "raw(40, 1, 0, 0, 16); raw(326, 0, 0, 1, 0, 16, 0); raw(275, 0, 0, 1, 0, 16, 0); raw(278, 1, 0, 0, 0); raw(276, 0, 1, 16, 0)", End.OK),
]  # fmt: skip

NETWORK = [
    _attack("tcp", "attempt(1, socket.create_connection, ('127.0.0.1', told['port']), 1); attempt(2, socket.socket, socket.AF_INET6)", End.OK),
    _attack("udp", "attempt(1, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', told['port'])))", End.OK),
    _attack("unix_sockets", """
for address in (told["socket"], "\\0" + told["abstract"]):
    def reach(kind):
        s = socket.socket(socket.AF_UNIX, kind); s.connect(address)
    attempt(address, reach, socket.SOCK_STREAM); attempt(address, reach, socket.SOCK_DGRAM)
""", End.OK),
    _attack("socketpair_to_outside", """
for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET): attempt(kind, socket.socketpair, socket.AF_UNIX, kind)
mine, _ = socket.socketpair()
for address in (told["socket"], "\\0" + told["abstract"]):
    attempt(address, mine.connect, address); attempt(address, mine.sendto, b"x", address); attempt(address, mine.bind, "\\0mine")
attempt("oob", mine.send, b"x", socket.MSG_OOB); attempt("rights", socket.send_fds, mine, [b"x"], [0])
""", End.OK),
    _attack("odd_families", "for family in (16, 17, 40, 38, 29, 21, 44): attempt(family, socket.socket, family, socket.SOCK_RAW); attempt(family, socket.socket, family, socket.SOCK_DGRAM)", End.OK),
    _attack("listen", "attempt(1, socket.create_server, ('', 0)); attempt(2, socket.socket, socket.AF_UNIX)", End.OK),
    _attack("names", "attempt(1, socket.getaddrinfo, 'example.com', 80); attempt(2, socket.gethostbyname, 'example.com')", End.OK),
]  # fmt: skip

PROCESSES = [
    _attack("fork", """
import subprocess
def fork():
    if os.fork() == 0: os._exit(0)
attempt("fork", fork); attempt("system", lambda: os.system("true") == 0 or 1/0)
attempt("subprocess", subprocess.run, ["/bin/true"]); attempt("spawn", os.posix_spawn, "/bin/true", ["true"], {})
if X86: raw(57); raw(58); raw(56, 17, 0, 0, 0, 0); raw(56, 0x100 | 17, 0, 0, 0, 0); raw(435, struct.pack("=11Q", *[0] * 11), 88)
""", End.OK),
    _attack("fork_bomb", "while True: attempt(1, os.fork)", End.CPU_TIME, limits=QUICK),
    _attack("multiprocessing", "import multiprocessing\nattempt(1, lambda: multiprocessing.Pool(4).map(str, range(4)))", End.OK, End.UNSUPPORTED),
    _attack("exec", "attempt(1, os.execv, '/bin/sh', ['sh', '-c', 'true']); raw(59, b'/bin/sh', 0, 0); raw(322, 0, b'', 0, 0, 0x1000); raw(322, -100, b'/bin/sh', 0, 0, 0)", End.OK),
    _attack("kill", """
for target in (parent, zygote, 1, -1, 0, -parent, os.getpid()):
    for number in (0, signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGSTOP): attempt((target, number), os.kill, target, number)
    raw(129, target, signal.SIGUSR1, bytes(128)); raw(234, target, target, signal.SIGKILL); raw(200, target, signal.SIGKILL)
attempt("pidfd", lambda: signal.pidfd_send_signal(os.pidfd_open(zygote), signal.SIGKILL)); attempt("group", os.killpg, 0, signal.SIGKILL)
""", End.OK),
    _attack("ptrace", "raw(101, 16, zygote, 0, 0); raw(101, 0x4206, parent, 0, 0); raw(101, 0, 0, 0, 0)", End.OK),
    _attack("others_memory", """
box = ctypes.create_string_buffer(64)
local = struct.pack("=QQ", ctypes.addressof(box), 64); remote = struct.pack("=QQ", id(sys), 64)
for target in (zygote, parent): raw(310, target, local, 1, remote, 1, 0); raw(311, target, local, 1, remote, 1, 0)
raw(312, os.getpid(), zygote, 0, 0, 0); raw(438, 0, 0, 0); raw(434, zygote, 0); raw(440, 0, remote, 1, 8, 0); raw(448, 0, 0)
""", End.OK),
    _attack("priorities", """
for target in (0, zygote, parent):
    attempt(1, os.setpriority, os.PRIO_PROCESS, target, 19); attempt(2, os.sched_setaffinity, target, {0})
    attempt(3, os.sched_setscheduler, target, os.SCHED_IDLE, os.sched_param(0)); raw(251, 1, target, 3 << 13); raw(314, target, bytes(56), 0)
attempt(4, os.nice, 5)
""", End.OK),
    _attack("limits_of_others", """
for target in (zygote, parent):
    for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NOFILE): attempt(kind, resource.prlimit, target, kind, (1, 1))
""", End.OK),
    _attack("raise_own_limits", """
for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC):
    attempt(kind, resource.setrlimit, kind, (-1, -1)); attempt(kind, resource.setrlimit, kind, (1 << 40, 1 << 40))
""", End.OK),
    _attack("undo_prctl", """
for option, value in ((4, 1), (1, 0), (1, 9), (38, 0), (28, 0), (22, 1), (36, 1), (8, 1), (47, 2), (23, 0), (24, 1), (0x59616d61, -1), (53, 1), (35, 1)):
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) == 0: pwned(option)
""", End.OK),
    _attack("become_somebody", """
for action in (os.setuid, os.setgid, os.seteuid, os.setegid): attempt(action, action, 0); attempt(action, action, 1000)
attempt(1, os.setgroups, [0]); attempt(2, os.setresuid, 0, 0, 0); attempt(3, os.setsid); attempt(4, os.setpgid, 0, 0)
raw(126, struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", *[0xffffffff] * 6)); raw(122, 0); raw(308, 0, 0)
if 0 in os.getresuid() or 0 in os.getgroups(): pwned("root")
""", End.OK),
    _attack("wait_for_others", "attempt(1, os.waitpid, -1, os.WNOHANG); attempt(2, os.waitid, os.P_ALL, 0, os.WEXITED | os.WNOHANG); raw(247, 3, 0, 0, 5, 0)", End.OK),
]  # fmt: skip

KERNEL = [
    _attack("namespaces", """
for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000): raw(272, flag)
if X86: raw(56, 0x10000000 | 17, 0, 0, 0, 0); raw(56, 0x10000000 | 0x10f00, 0, 0, 0, 0)
raw(165, b"none", folder.encode(), b"tmpfs", 0, 0); raw(166, b"/", 2); raw(430, b"tmpfs", 0); raw(429, 0, b"", 0, b"", 0); raw(442, -1, b"/", 0, 0, 0)
""", End.OK),
    _attack("keyrings", "raw(250, 0, -3, 1); raw(248, b'user', b'canary', b'x', 1, -4); raw(249, b'user', b'canary', 0, 0); raw(250, 1, 0)", End.OK),
    _attack("io_uring", "raw(425, 4, bytes(120)); raw(426, 0, 0, 0, 0, 0); raw(427, 0, 0, 0, 0); raw(206, 4, bytes(8))", End.OK),
    _attack("bpf_perf_faults", "raw(321, 0, bytes(128), 128); raw(298, bytes(128), 0, -1, -1, 0); raw(323, 0x800 | 1); raw(324, 0, 0)", End.OK),
    _attack("more_filters", "raw(317, 0, 0, 0); raw(317, 1, 8, bytes(16)); raw(444, bytes(8), 8, 0); raw(446, 0, 0); raw(135, 0x40000); raw(158, 0x1003, 0); raw(154, 1, bytes(16), 16)", End.OK),
    _attack("machine_state", """
for number in (169, 170, 171, 164, 227, 159, 305, 103, 153, 163, 167, 168, 173, 172, 175, 313, 176, 246, 320, 179, 161, 162, 306, 134):
    raw(number, 0, 0, 0, 0)
""", End.OK),
    _attack("memfd", "raw(319, b'x', 0); raw(319, b'x', 16); raw(447, 0); attempt(1, os.memfd_create, 'x')", End.OK),
    _attack("system_v", """
raw(29, 0, 4096, 0o1666); raw(64, 0, 1, 0o1666); raw(68, 0, 0o1666); raw(30, 0, 0, 0); raw(71, 0, 0, 0); raw(69, 0, bytes(16), 8, 0)
""", End.OK),
    _attack("posix_shared_memory", """
from multiprocessing import shared_memory
attempt(1, shared_memory.SharedMemory, None, True, 4096); attempt(2, open, "/dev/shm/canary", "w")
raw(240, b"canary", 0o102, 0o600, 0); raw(241, b"canary"); attempt(3, lambda: libc.sem_open(b"/canary", 0o100, 0o600, 1) or 1/0)
""", End.OK, End.UNSUPPORTED),
    _attack("old_gate", """
if X86:
    # mov eax, 2 (fork, 32 bits); int 0x80; ret, then getpid by its 64-bit number through the same gate
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b802000000cd80c3"))
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
    pwned("int 0x80")
"""),
    _attack("x32_numbers", "if X86:\n    for number in (57, 59, 41, 2, 257, 319, 520): raw(0x40000000 | number, b'/etc/passwd', 0, 0)", End.OK),
    _attack("high_bits", "for number in (57, 41, 319, 425): raw(number | 1 << 32, 1, 1, 0); raw(-(1 << 63) + number, 1, 1, 0)"),
]  # fmt: skip

EXHAUSTION = [
    _attack("spin", "while True: pass", End.CPU_TIME, limits=QUICK),
    _attack("spin_deaf", """
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True:
    try:
        while True: pass
    except BaseException: pass
""", End.CPU_TIME, limits=QUICK),
    _attack("spin_threads", "for _ in range(8): threading.Thread(target=lambda: [hash(n) for n in iter(int, 1)]).start()", End.CPU_TIME, limits=QUICK),
    _attack("sleep", "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(1000)", End.WALL_TIME, limits=SHORT),
    _attack("wait_forever", "lock = threading.Lock(); lock.acquire(); lock.acquire()", End.WALL_TIME, limits=SHORT),
    _attack("stop_oneself", "signal.raise_signal(signal.SIGSTOP)"),
    _attack("memory_bytes", "x = bytearray(1 << 40)", End.MEMORY),
    _attack("memory_grow", "x = []\nwhile True: x.append(bytearray(1 << 20))", End.MEMORY),
    _attack("memory_objects", "x = [0]\nwhile True: x += x", End.MEMORY),
    _attack("memory_maps", """
kept = []
while True:
    m = mmap.mmap(-1, 1 << 24, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x4000); kept.append(m)
    for place in range(0, 1 << 24, 4096): m[place] = 1
    if len(kept) > 64: pwned("a gigabyte of shared memory"); break
"""),
    _attack("memory_caught", """
kept = []
for _ in range(2000):
    try: kept.append(bytearray(1 << 20))
    except MemoryError: pass
if len(kept) > 300: pwned("memory")
""", End.OK),
    _attack("zip_bomb", "import zlib\nz = zlib.compressobj(9); data = b''.join(z.compress(bytes(1 << 20)) for _ in range(40)) + z.flush()\nx = zlib.decompress(data)", End.MEMORY, limits=SMALL),
    _attack("flood_output", "while True: sys.stdout.write('x' * 65536)", End.OUTPUT),
    _attack("flood_errors", "while True: os.write(2, b'x' * 65536)", End.OUTPUT),
    _attack("flood_deaf", """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for _ in range(10000):
    try: os.write(1, b"x" * 65536)
    except OSError: pass
""", End.OUTPUT),
    _attack("sparse_output", "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nfor place in (1 << 30, 1 << 45): attempt(place, os.pwrite, 1, b'x', place); attempt(place, os.ftruncate, 1, place)", End.OK),
    _attack("thread_bomb", """
threading.stack_size(32768)
started = 0
try:
    while True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start(); started += 1
except (RuntimeError, MemoryError): pass
if started > 5000: pwned("threads")
os._exit(0)
""", limits=QUICK),
    _attack("descriptor_bomb", """
kept = []
try:
    while True:
        pair = os.pipe(); kept.append(pair); os.set_blocking(pair[1], False)
        try:
            while True: os.write(pair[1], bytes(65536))
        except BlockingIOError: pass
except OSError: pass
if len(kept) > 64: pwned("descriptors")
""", End.OK),
    _attack("recursion", "sys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1) + 1\nf(0)", limits=QUICK),
    _attack("recursion_in_c", "sys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nprint(repr(x)[:9])", limits=QUICK),
    _attack("crash", "ctypes.string_at(0)", End.SIGNAL),
    _attack("dump_core", "attempt(1, resource.setrlimit, resource.RLIMIT_CORE, (-1, -1)); os.abort()", End.SIGNAL),
    _attack("huge_power", "x = 10 ** 10 ** 9", End.CPU_TIME, End.MEMORY, limits=QUICK),
    _attack("huge_decimal", "sys.set_int_max_str_digits(0); print(str(7 ** 10 ** 6)[:3])", limits=QUICK),
    _attack("regular_expression", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')", End.CPU_TIME, limits=QUICK),
    _attack("endless_exit", "import atexit\n@atexit.register\ndef spin():\n    while True: pass", End.CPU_TIME, limits=QUICK),
    _attack("endless_message", "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E", End.CPU_TIME, limits=QUICK),
    _attack("timers_left_behind", "signal.alarm(1); signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05); raw(222, 1, 0, bytes(8)); os._exit(0)", End.OK),
    _attack("threads_left_behind", "threading.Thread(target=lambda: [os.write(1, b'') for _ in iter(int, 1)], daemon=True).start(); os._exit(0)", End.OK),
]  # fmt: skip

MARKER = "CASK-NUMBER-"  # stands in the honest programs that run before and between the attacks
_SCAN = r"""
import re
found = []
reader, writer = os.pipe()
def scan(middle):
    for page in range((middle & ~0xfff) - (24 << 20), (middle & ~0xfff) + (24 << 20), 4096):
        if libc.write(writer, ctypes.c_void_p(page), 4096) == 4096:
            found.extend(re.findall(rb"CASK-NUMBE[R]-[0-9]+", os.read(reader, 4096)))
for middle in (id(sys), id(object()), id(bytes(5000)), ctypes.addressof(ctypes.create_string_buffer(9)), id(type)): scan(middle)
if found: pwned(found)
"""
_WALK = r"""
import gc
gc.unfreeze()
everything = gc.get_objects()
for each in everything + [value for each in everything if type(each) is dict for value in dict.copy(each).values()]:
    if isinstance(each, (str, bytes)) and len(each) > 12 and ("CASK-NUM" + "BER") in (each if isinstance(each, str) else each.decode("latin-1")):
        pwned(each)
    if isinstance(each, socket.socket): attempt("control", each.send, b"{}"); attempt("control", each.recv, 9)
frame = sys._getframe()
while frame:
    for name, value in list(dict(frame.f_locals).items()):
        if name in ("control", "parent", "waiting") and isinstance(value, (socket.socket, int)): attempt(name, os.fstat, value if isinstance(value, int) else value.fileno())
    frame = frame.f_back
"""

INTERPRETER = [
    _attack("environment", """
print(dict(os.environ)); environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ"); n = 0
while environ and environ[n]: print(environ[n]); n += 1
""", End.OK),
    _attack("scan_memory", _SCAN, End.OK),
    _attack("walk_objects", _WALK, End.OK),
    _attack("change_modules", """
import builtins, math, json, random, collections
math.sqrt = lambda x: 0; json.dumps = None; collections.Counter = None; random.random = lambda: 0
builtins.sum = lambda *a: 0; builtins.print = lambda *a: None; sys.modules.clear(); sys.path.clear()
""", End.OK),
    _attack("return_into_zygote", """
frame = sys._getframe()
while frame.f_back: frame = frame.f_back
os._exit = lambda status: None
for module in (frame.f_globals, frame.f_locals): module.update({"_exit": print, "os": None})
import gc
for each in gc.get_objects():
    if type(each).__name__ == "function" and each.__name__ in ("live", "_run_main", "_finish", "_serve"):
        each.__globals__["_exit"] = lambda status: None
raise SystemExit(0)
"""),
    _attack("fake_note", "for number in range(3, 8): attempt(number, os.write, number, b'closed') if number != 3 else None\nos._exit(1)", End.EXIT),
    _attack("fake_report", """os.write(3, b'["end","memory_limit","x"]\\n["end","ok",""]\\n' + b'\\xff' * 99); os._exit(1)""", End.EXIT),
    _attack("deep_source", "x = " + "(" * 5000 + ")" * 5000, End.SYNTAX),
    _attack("long_source", "x = " + "-" * 200_000 + "1", limits=QUICK),
    _attack("folded_constants", "x = ((((1 << 100) ** 100) ** 100) ** 100)", limits=QUICK),
    _attack("nul_source", "x = '\0'", End.SYNTAX),
    _attack("surrogate_source", "x = '\ud800'", End.SYNTAX),
    _attack("unknown_module", "import no_such_module_here", End.UNSUPPORTED),
    _attack("own_package", "import model.sandbox.zygote", End.UNSUPPORTED),
]  # fmt: skip

CALLS = [
    _attack("equal_to_all", """
class Evil(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(told): return Evil(3)
""", End.EXCEPTION, entry="f"),
    _attack("equal_inside", """
class Evil(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def f(told): return [({"x": Evil("y")},)]
""", End.EXCEPTION, entry="f"),
    _attack("change_builtins", """
import builtins, json
class Evil:
    def __eq__(self, other): return True
    def hex(self): return "0x0"
builtins.type = lambda x: int; builtins.isinstance = lambda a, b: True; json.dumps = lambda x: '["call","ok",{}]'; builtins.hex = lambda x: "0x3"
def f(told): return Evil()
""", entry="f"),
    _attack("change_encoder", """
import gc
gc.unfreeze()
for each in gc.get_objects():
    if type(each).__name__ == "function" and each.__name__ in ("encode", "dumps", "_report", "_outcome"):
        each.__code__ = (lambda *a: ["p", "cos\\nsystem\\n(S'true'\\ntR."]).__code__
def f(told): return 1
""", entry="f"),
    _attack("pickle_out", "class Evil:\n    def __reduce__(self): return (os.system, ('true',))\ndef f(told): return Evil()", End.EXCEPTION, entry="f"),
    _attack("forge_values", """def f(told): os.write(3, b'["call","ok",5]\\n' * 9); os._exit(0)""", End.OK, entry="f"),
    _attack("forge_nesting", """def f(told): os.write(3, b'["call","ok",' + b'[' * 200000); os._exit(0)""", End.EXIT, entry="f"),
    _attack("forge_garbage", """def f(told): os.write(3, bytes(range(256)) * 50 + b'\\n[]\\n{}\\nnull\\n'); os._exit(0)""", End.EXIT, entry="f"),
    _attack("forge_digits", """def f(told): os.write(3, b'["call","ok",' + b'9' * 200000 + b']\\n'); os._exit(0)""", End.EXIT, entry="f"),
    _attack("forge_floats", """def f(told): os.write(3, b'["call","ok",NaN]\\n'); os._exit(0)""", End.EXIT, entry="f"),
    _attack("flood_hashes", """
def f(told):
    many = ",".join('["i","%x"]' % (n * (2 ** 61 - 1)) for n in range(9000))
    os.write(3, ('["call","ok",["s",[' + many + ']]]\\n').encode()); os._exit(0)
""", End.EXCEPTION, End.EXIT, entry="f"),
    _attack("forge_end", """def f(told): os.write(3, b'["end","ok",""]\\n'); os._exit(0)""", End.EXIT, entry="f"),
    _attack("leave_early", "def f(told): os._exit(0)", End.EXIT, entry="f"),
    _attack("leave_by_exception", "def f(told): raise SystemExit(0)", End.EXIT, entry="f"),
    _attack("endless_list", "def f(told):\n    x = []; x.append(x); return x", End.EXCEPTION, entry="f"),
    _attack("doubling_list", "def f(told):\n    x = []\n    for _ in range(64): x = [x, x]\n    return x", End.CPU_TIME, End.MEMORY, limits=QUICK, entry="f"),
    _attack("huge_result", "def f(told): return 'x' * 10 ** 7", End.OUTPUT, entry="f"),
    _attack("generator_result", "def f(told): return (n for n in range(3))", End.EXCEPTION, entry="f"),
    _attack("write_results_later", """
def f(told):
    def later():
        while True:
            for place in (0, 16, 64): os.pwrite(3, b'["call","ok",7]\\n', place)
    threading.Thread(target=later, daemon=True).start(); time.sleep(0.02); return 1
""", entry="f"),
    _attack("map_results", """
def f(told):
    m = mmap.mmap(3, 4096, mmap.MAP_SHARED); m[:16] = b'["call","ok",7]\\n'; return 1
""", entry="f"),
    _attack("remember_between_calls", "seen = []\ndef f(told): seen.append(told); setup(told); attempt('file', open, file); return len(seen)", End.OK, entry="f"),
    _attack("no_such_function", "x = 1", End.EXCEPTION, entry="f"),
    _attack("endless_repr", "class E(Exception):\n    def __str__(self): raise self\ndef f(told): raise E", End.EXCEPTION, entry="f"),
]  # fmt: skip

ATTACKS = FILES + DESCRIPTORS + NETWORK + PROCESSES + KERNEL + EXHAUSTION + INTERPRETER + CALLS
