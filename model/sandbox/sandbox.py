"""The parent's side: chooses the tier, starts the zygote, hands out tests, reads what came of them.

Everything about the result is judged here from what the kernel says (status, times, sizes) and from the report,
which is hostile text. Outputs and results are read after the process is dead, from memory files that no living
process but this one and the zygote holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

from model.errors import SandboxError
from model.sandbox import bubblewrap, values
from model.sandbox.files import Files
from model.sandbox.limits import MOST_INPUTS, Call, CallResult, Execution, Limits, Tier
from model.sandbox.link import Link, LinkError
from model.sandbox.outcome import call_results, executions

_Result = TypeVar("_Result")


class Sandbox:
    """One zygote. A context manager; not for several threads at once, nor across a fork; starts its zygote
    anew when it died.

    `tier` None takes the best that passes its self-test. `preload` names packages that programs may import besides
    the standard library. `unsafe` gives Tier.NONE: no isolation at all but resource limits. `hash_seed` is
    PYTHONHASHSEED. A failure of the sandbox itself, after one new start, raises SandboxError; it is never an
    Execution.
    """

    def __init__(
        self,
        *,
        tier: Tier | None = None,
        preload: Sequence[str] = (),
        unsafe: bool = False,
        hash_seed: int = 0,
    ) -> None:
        if tier is Tier.NONE and not unsafe:
            raise ValueError("Tier.NONE isolates nothing: say unsafe=True to want it")
        self._wanted = Tier.NONE if unsafe else tier
        self._preload, self._hash_seed = tuple(preload), hash_seed
        self._link: Link | None = None
        self.in_bubblewrap = False
        self.tier = self._wanted or Tier.NONE  # the real one after `start`

    def start(self) -> None:
        """Raises SandboxError that names what is missing when no tier holds."""
        from model.sandbox.probes import broken_promises

        if self._link is not None:
            return
        refused: list[str] = []
        for tier, in_bubblewrap in self._ways():
            self.tier, self.in_bubblewrap = tier, in_bubblewrap
            try:
                self._link = self._started()
                broken = [] if tier is Tier.NONE else broken_promises(self)
            except (LinkError, SandboxError, OSError) as error:
                broken = [str(error)]
            if not broken:
                return
            refused.append(f"tier {tier}{' in bubblewrap' * in_bubblewrap}: {'; '.join(broken)}")
            self.close()
        raise SandboxError(
            "no safe way to run programs here; allow user namespaces, or a kernel with Landlock, or seccomp "
            f"and setuid to an ordinary user ({' | '.join(refused)})"
        )

    def run(
        self,
        program: str,
        inputs: Sequence[bytes],
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        argv: Sequence[str] = (),
    ) -> list[Execution]:
        """Runs `program` in one process, as a new `__main__` for each of at most MOST_INPUTS inputs.

        Gives an execution for each input up to the one in which the process ended, so at least one. Only the first is
        sure to have met a clean process; what an input leaves behind (in a module, in memory) may reach later ones.
        """
        if not 0 < len(inputs) <= MOST_INPUTS:
            raise ValueError(f"{len(inputs)} inputs; 1 to {MOST_INPUTS} go into one process")
        source = program.encode("utf-8", "surrogatepass")
        return self._twice(lambda link: _execute(link, source, inputs, limits, argv))

    def call(
        self,
        program: str,
        entry: str,
        calls: Sequence[Call],
        limits: Limits = Limits(),  # noqa: B008 (frozen)
    ) -> list[CallResult]:
        """Calls `entry` (`function`, or `Class.method` of a fresh instance) once per `Call`, all in one process.

        A call that never reports gets the process's end. Raises ValueError for arguments that have no encoding.
        """
        source = program.encode("utf-8", "surrogatepass")
        todo = values.dumps([(tuple(call.args), dict(call.kwargs)) for call in calls]).encode("ascii")
        return self._twice(lambda link: _call(link, source, entry, todo, len(calls), limits))

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ways(self) -> list[tuple[Tier, bool]]:
        """Tiers, and whether bubblewrap is to make the namespaces, the best first."""
        by_bubblewrap = [(Tier.A, True)] if bubblewrap.may_help() else []
        ways = [(Tier.A, False), *by_bubblewrap, (Tier.B, False), (Tier.C, False), (Tier.NONE, False)]
        return [way for way in ways if way[0] is self._wanted or (self._wanted is None and way[0] is not Tier.NONE)]

    def _started(self) -> Link:
        return Link(self.tier, self._preload, self._hash_seed, in_bubblewrap=self.in_bubblewrap)

    def _twice(self, work: Callable[[Link], _Result]) -> _Result:
        """Once more with a new zygote when the first one failed."""
        if self._link is None:
            self.start()
        assert self._link is not None
        try:
            return work(self._link)
        except (LinkError, OSError):
            self.close()
        try:
            self._link = self._started()
            return work(self._link)
        except (LinkError, OSError) as error:
            self.close()
            raise SandboxError(f"the sandbox itself failed, twice; the program was not judged: {error}") from error


def _execute(
    link: Link, source: bytes, inputs: Sequence[bytes], limits: Limits, argv: Sequence[str]
) -> list[Execution]:
    with Files(source, inputs) as files:
        reply = link.exchange(files, limits, "", argv)
        return executions(reply, files, limits, len(inputs))


def _call(link: Link, source: bytes, entry: str, todo: bytes, count: int, limits: Limits) -> list[CallResult]:
    with Files(source, [todo]) as files:
        reply = link.exchange(files, limits, entry, ())
        return call_results(reply, files, limits, count)
