"""The memory files of one process, made anew each time: sealed ones go in, capped ones come out."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Files:
    """`descriptors`: program, standard output, standard error, report, then the inputs. A context manager.

    Raises OSError when there is no memory or no descriptor for them.
    """

    def __init__(self, program: bytes, inputs: Sequence[bytes]) -> None:
        self.descriptors: list[int] = []
        try:
            self.descriptors.append(_sealed(program))
            for name in ("out", "err", "report"):
                self.descriptors.append(os.memfd_create(name, os.MFD_CLOEXEC))
                fcntl.fcntl(self.descriptors[-1], fcntl.F_SETFL, os.O_APPEND)  # nothing written is written over
            for content in inputs:
                self.descriptors.append(_sealed(content))
        except OSError:
            self.close()
            raise

    def outputs(self, most_bytes: int) -> tuple[bytes, bytes]:
        """Standard output and standard error, at most `most_bytes` of each."""
        return os.pread(self.descriptors[1], most_bytes, 0), os.pread(self.descriptors[2], most_bytes, 0)

    def report(self, most_bytes: int) -> bytes:
        return os.pread(self.descriptors[3], most_bytes, 0)

    def largest(self) -> int:
        """Bytes in the largest of the three files that come out."""
        return max(os.fstat(descriptor).st_size for descriptor in self.descriptors[1:4])

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sealed(content: bytes) -> int:
    """Its offset stays at 0, so that a child may read it as standard input."""
    descriptor = os.memfd_create("given", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        written = 0
        while written < len(content):
            written += os.pwrite(descriptor, content[written : written + (1 << 30)], written)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
