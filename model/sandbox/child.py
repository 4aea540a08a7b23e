"""One forked process: it shuts itself in, says so, and only then compiles and runs what it was given.

Begins right after the fork and never returns. The note that the cage is closed is written, and its pipe closed,
before the first byte of the program is compiled. What is reported after that is a claim by the program, which may
have rewritten everything in this process: the parent takes it as such.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import decimal
import gc
import json
import math
import os
import random
import resource
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import CodeType, ModuleType
from typing import Any, NoReturn

from model.sandbox import linux, values
from model.sandbox.limits import End

# Descriptors: 0 to 2 as everywhere; where results are written; the pipe for the note; the program, read and closed.
# What it is given (inputs, or calls) lies where it was received: in a row, above these.
REPORT, NOTE, PROGRAM = 3, 4, 5
MOST_DESCRIPTORS = 64
_MOST_THREADS = 4096  # of the whole user id, where the kernel counts them so
_STACK_BYTES = 64 << 20  # deep recursion is not an error
_DETAIL_CHARACTERS = 300
_RECURSION_LIMIT, _MOST_DIGITS = sys.getrecursionlimit(), sys.get_int_max_str_digits()
CLOSED = b"closed"

_exit, _write = os._exit, os.write


@dataclass(frozen=True, slots=True)
class Request:
    """What the parent asks for, as it travels in JSON. `entry` empty: run on each input; else: make calls."""

    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int
    output_bytes: int
    entry: str
    argv: list[str]


@dataclass(frozen=True, slots=True)
class Cage:
    """What the zygote has prepared: its pid, its address space and the limit on that (-1: none), in bytes, and the
    address of the filter (None: no filter)."""

    zygote: int
    address_space: int
    most_address_space: int
    filter_address: int | None


def live(request: Request, given: list[int], cage: Cage) -> NoReturn:
    """Shuts itself in, then runs the program. `given`: descriptors of the inputs, or of the calls."""
    try:
        program = _whole(PROGRAM)
        _keep_only(given)
        _limit(request, cage)
        if cage.filter_address is not None:
            linux.load_filter(cage.filter_address)
        _write(NOTE, CLOSED)
        os.close(NOTE)
    # Whatever went wrong: nothing may run outside the cage, and nothing may return into the zygote's loop.
    except BaseException as error:
        _write(NOTE, _described(error).encode("utf-8", "replace"))
        _exit(1)
    try:
        _exit(_make_calls(program, request.entry, given) if request.entry else _run_main(program, request.argv, given))
    finally:
        _exit(1)


def _whole(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _keep_only(given: list[int]) -> None:
    """Closes every other descriptor but those up to the note."""
    first, last = given[0], given[-1]
    if last - first != len(given) - 1 or first <= NOTE:
        raise OSError(f"the inputs' descriptors are not in a row: {given}")
    os.closerange(NOTE + 1, first)
    os.closerange(last + 1, MOST_DESCRIPTORS)


def limit_once() -> None:
    """The limits that are the same for every child; the zygote takes them upon itself, and children inherit."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    linux.limit(resource.RLIMIT_NPROC, _MOST_THREADS)
    linux.limit(resource.RLIMIT_NOFILE, MOST_DESCRIPTORS)
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_RTPRIO):
        linux.limit(kind, 0)
    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK_BYTES if most == -1 else min(_STACK_BYTES, most), most))


def _limit(request: Request, cage: Cage) -> None:
    """Dies with the zygote; time, memory and output. Raises OSError where so much memory cannot be had."""
    linux.prctl(linux.PR_SET_PDEATHSIG, linux.SIGKILL)
    if os.getppid() != cage.zygote:
        raise OSError("the zygote died")
    memory = cage.address_space + request.memory_bytes
    if -1 < cage.most_address_space < memory:
        raise OSError(f"RLIMIT_AS allows {cage.most_address_space >> 20} MiB here, {memory >> 20} MiB are needed")
    seconds = math.ceil(request.cpu_seconds) + 1  # the zygote looks at the clock more finely; this holds without it
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (request.output_bytes + 1, request.output_bytes + 1))


# From here on: the program's own process.


def _run_main(program: bytes, argv: list[str], given: list[int]) -> int:
    """The exit status of the program run as `__main__` on the last input; the report tells of those before.

    Ends early where a thread is still there (it could write into the next input's output, and joining is for once),
    and where the program has closed what it writes to.
    """
    code = _compiled(program)
    if code is None:
        return 1
    status, own = 0, _written()[0]
    for place, descriptor in enumerate(given):
        if place:
            if not _told(status, own):
                break
            _fresh_main()
        os.dup2(descriptor, 0)
        os.close(descriptor)
        if place:
            _open_streams()
        sys.argv = ["program.py", *argv]
        status = _executed(code)
        has_threads = _thread._count() > 0  # type: ignore[attr-defined]
        status = max(status, _finish())
        if has_threads:
            break
    return status


def _told(status: int, own: list[int]) -> bool:
    """Whether the report has this input's status, and how much is written; these must be the files of the start."""
    try:
        files, (out, err, _) = _written()
        if files != own:
            return False
        _report("ran", End.OK, [status, out, err])
    except OSError:
        return False
    return True


def _written() -> tuple[list[int], list[int]]:
    found = [os.fstat(descriptor) for descriptor in (1, 2, REPORT)]
    return [each.st_ino for each in found], [each.st_size for each in found]


def _fresh_main() -> None:
    """A `__main__` as at the start, and settings too."""
    sys.setrecursionlimit(_RECURSION_LIMIT)
    sys.set_int_max_str_digits(_MOST_DIGITS)
    decimal.setcontext(decimal.Context())
    seed_random()
    sys.modules["__main__"] = ModuleType("__main__")


def _open_streams() -> None:
    """As the interpreter opens them at its start."""
    output = partial(open, mode="w", newline="\n", closefd=False)
    for name, stream in (
        ("stdin", open(0, errors="surrogateescape", newline="\n", closefd=False)),  # noqa: SIM115
        ("stdout", output(1, errors="surrogateescape")),
        ("stderr", output(2, errors="backslashreplace")),
    ):
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def seed_random() -> None:
    """As the hash seed, so that a verdict can be repeated."""
    random.seed(int(os.environ["PYTHONHASHSEED"]))


def _compiled(program: bytes) -> CodeType | None:
    try:
        return compile(program, "program.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OverflowError, RecursionError) as error:
        _ended(error, End.SYNTAX)
    except MemoryError as error:
        _ended(error, End.MEMORY)
    return None


def _executed(code: CodeType, module: str = "__main__") -> int:
    """The exit status of running `code` as that module, by name: who holds the module keeps what it holds alive."""
    try:
        exec(code, sys.modules[module].__dict__)
    except SystemExit as error:
        return _status(error.code)
    # A program may raise anything at all.
    except BaseException as error:
        return _ended(error, _kind(error))
    return 0


def _finish() -> int:
    """In the interpreter's own order: threads joined, exit functions run, output flushed, the module dropped."""
    try:
        if _thread._count():  # type: ignore[attr-defined]
            threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        _flush()
        sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
        _drop_main()
    except BaseException as error:  # the program may have put anything in these places
        return _ended(error, _kind(error))
    with contextlib.suppress(BaseException):  # in case that more was printed
        _flush()
    return 0


def _flush() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name, None)
        if stream is not None and not _is_closed(stream):
            stream.flush()


def _is_closed(stream: Any) -> bool:
    try:
        return bool(stream.closed)
    except Exception:  # what a program puts in its place need not know
        return False


def _drop_main() -> None:
    """With all its names in place for what `__del__` does, where nothing outside it holds it."""
    main = sys.modules.pop("__main__", None)
    left = weakref.ref(main) if main is not None else None
    del main
    gc.collect()  # a file object that owns descriptor 0 would close the next input
    main = left() if left is not None else None
    if main is not None:
        main.__dict__.clear()
        gc.collect()


def _status(code: object) -> int:
    """What Python makes of `sys.exit(code)`."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _kind(error: BaseException) -> End:
    if isinstance(error, MemoryError):
        return End.MEMORY
    if isinstance(error, ModuleNotFoundError) or (isinstance(error, ImportError) and "shared object" in str(error.msg)):
        return End.UNSUPPORTED
    return End.EXCEPTION


def _ended(error: BaseException, end: End) -> int:
    _report("end", end, _described(error))
    if end is not End.MEMORY:
        # Printing runs the program's own code (`__str__`) and may fail in any way; the report is written already.
        with contextlib.suppress(BaseException):
            traceback.print_exception(error)
    return 1


def _described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:_DETAIL_CHARACTERS]
    except BaseException:  # its `__str__` is the program's
        return type(error).__name__


def _report(what: str, end: End, payload: object) -> None:
    _write(REPORT, json.dumps([what, end.value, payload]).encode("ascii") + b"\n")


def _make_calls(program: bytes, entry: str, given: list[int]) -> int:
    """Each call's result is written before the next is made. Values go out; nothing is compared in here."""
    todo: Any = values.loads(_whole(given[0]))
    os.close(given[0])
    module = ModuleType("solution")
    sys.modules["solution"] = module
    code = _compiled(program)
    status = 1 if code is None else _executed(code, "solution")
    if status:
        return status
    for args, kwargs in todo:
        _report("call", *_outcome(module, entry, args, kwargs))
    return 0


def _found(module: ModuleType, entry: str) -> Callable[..., object]:
    """A function, or a method of a fresh instance."""
    owner, _, name = entry.rpartition(".")
    found: Callable[..., object] = getattr(getattr(module, owner)() if owner else module, name)
    return found


def _outcome(module: ModuleType, entry: str, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[End, object]:
    try:
        return End.OK, values.encode(_found(module, entry)(*args, **kwargs))
    except values.UnencodableError as error:
        return End.EXCEPTION, str(error)
    except SystemExit as error:
        return End.EXIT, f"exit status {error.code}" if isinstance(error.code, int) else "exit"
    # A program may raise anything at all.
    except BaseException as error:
        return _kind(error), _described(error)
