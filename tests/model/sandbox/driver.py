"""Runs every attack in one tier and prints, as JSON, what each one achieved. Started by `test_attacks.py`.

    python driver.py PROJECT (A|B|C|best|none) [ATTACK...]

Prints {"tier": …, "in_bubblewrap": …, "uid": …, "refused": null or why, "attacks": {name: [what went wrong, …]}}.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, sys.argv[1])

from model.errors import SandboxError
from model.sandbox import Call, End, Execution, Limits, Sandbox, Tier
from tests.model.sandbox.attacks import ATTACKS, MARKER, Attack
from tests.model.sandbox.world import SECRET, World, descendants_of

_HONEST = f"""
import sys, math, json, collections, threading
total = sum(int(line) for line in sys.stdin.read().split())
box = []
thread = threading.Thread(target=lambda: box.append(math.sqrt(total))); thread.start(); thread.join()
print(json.dumps([box, collections.Counter("aab")["a"]]), "{MARKER}" + str(total))
"""


def judged(sandbox: Sandbox, world: World, attack: Attack) -> list[str]:
    """Everything that this attack achieved; empty when it was contained."""
    zygote = sandbox._link.zygote_process if sandbox._link else 0
    before = descendants_of(zygote)
    wrong = _call(sandbox, world, attack) if attack.entry else _run(sandbox, world, attack)
    wrong += world.harm()
    if sandbox._link is None or sandbox._link.zygote_process != zygote:
        wrong.append("the zygote died")
    elif left := descendants_of(zygote) - before:
        wrong.append(f"processes are left: {left}")
    [honest] = sandbox.run(_HONEST, [b"16\n9\n"], Limits())
    if honest.stdout != b"[[5.0], 2] " + MARKER.encode() + b"25\n" or honest.end is not End.OK:
        wrong.append(f"the next honest program gave {honest}")
    return wrong


def _run(sandbox: Sandbox, world: World, attack: Attack) -> list[str]:
    [done] = sandbox.run(attack.program, [json.dumps(world.told()).encode()], attack.limits)
    wrong = _said(done)
    if attack.ends and done.end not in attack.ends:
        wrong.append(f"ended {done.end} ({done.detail}) {done.stderr[-300:]!r}")
    if done.cpu_seconds > attack.limits.cpu_seconds + 1.5 or done.wall_seconds > attack.limits.wall_seconds + 1.5:
        wrong.append(f"took {done.cpu_seconds:.2f} s of CPU, {done.wall_seconds:.2f} s")
    return wrong


def _said(done: Execution) -> list[str]:
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    lines = [line for line in said.splitlines() if line.startswith("PWNED")]
    return lines[:5] + (["the secret was learned"] if SECRET in said else [])


def _call(sandbox: Sandbox, world: World, attack: Attack) -> list[str]:
    results = sandbox.call(attack.program, attack.entry, [Call((world.told(),))] * 3, attack.limits)
    wrong = [] if len(results) == 3 else [f"{len(results)} results for 3 calls"]
    for result in results:
        if attack.ends and result.end not in attack.ends:
            wrong.append(f"ended {result.end} ({result.error})")
        # Whatever arrives is plain: it equals what it equals, and is no answer that the program cannot know.
        if type(result.value) not in (type(None), int, str, list, dict) or result.value == object():
            wrong.append(f"came out as {type(result.value)}")
    return wrong


def main() -> None:
    wanted = None if sys.argv[2] == "best" else Tier(sys.argv[2])
    attacks = [attack for attack in ATTACKS if not sys.argv[3:] or attack.name in sys.argv[3:]]
    report: dict[str, object] = {"uid": os.getuid(), "refused": None, "attacks": {}}
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        sandbox = Sandbox(tier=wanted, unsafe=wanted is Tier.NONE)
        try:
            sandbox.start()
            report["attacks"] = {attack.name: judged(sandbox, world, attack) for attack in attacks}
        except SandboxError as error:
            report["refused"] = str(error)
        report |= {"tier": sandbox.tier, "in_bubblewrap": sandbox.in_bubblewrap}
        sandbox.close()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
