"""Checks for tests only: the first does to its worker what the sample's text says."""

from __future__ import annotations

import os
import signal
import sys
import time

from model.rewards.check import Judgement, Scored, passed
from model.rewards.settings import CheckSettings


class HostileCheck:
    """`sleep` hangs politely, `power` inside C code that holds the GIL, the others as they are named."""

    name = "hostile"
    version = "1"

    def __init__(self, settings: CheckSettings) -> None:
        self.language = settings.language.target

    def warm_up(self) -> None:
        if self.language == "de":
            raise RuntimeError("no models for this language")
        if self.language == "fr":
            os._exit(3)

    def __call__(self, item: Scored) -> Judgement:
        if item.text == "sleep":
            time.sleep(60)
        if item.text == "power":
            7 ** (10**9)
        if item.text == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if item.text == "memory":
            bytearray(1 << 40)
        if item.text == "raise":
            raise KeyError("a bug")
        if item.text == "modules":
            return passed(",".join(name for name in ("torch", "sympy", "py3langid", "prefect") if name in sys.modules))
        return passed(item.text, detail=str(os.getpid()))


class PatientCheck:
    """Takes its time, as a check that runs programs does, and says so."""

    name = "patient"
    version = "1"
    timeout_seconds = 20.0

    def __init__(self, settings: CheckSettings) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def __call__(self, item: Scored) -> Judgement:
        if item.text == "sleep a second":
            time.sleep(1.0)
            return passed("slept")
        return passed(item.text)


class LateCheck(PatientCheck):
    """The same in a worker that the system keeps waiting before it begins a verdict."""

    name = "late"

    def warm_up(self) -> None:
        whereabouts = sys.modules["__main__"].Whereabouts
        begin = whereabouts.begin

        def begin_late(self: object, position: int) -> None:
            time.sleep(0.2)
            begin(self, position)

        whereabouts.begin = begin_late
