"""Tier A's world by bubblewrap, where this user may not make namespaces and bubblewrap may.

That is so where a distribution leaves user namespaces to the programs it names, or where bubblewrap is set-uid. The
zygote has no capability in there with which it could build its own root: the interpreter, its shared libraries and
/proc stay in sight, and only Landlock, without which this way is refused, keeps programs from opening them. Not
needed where `namespaces.py` works, which shows less; of no use to root, whom bubblewrap leaves as root. bubblewrap ends
with the thread that started it: a sandbox that another thread goes on using then starts anew.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path

_SHARED_LIBRARIES = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")


def may_help() -> bool:
    """Whether there is a bubblewrap, and a user whom it does not leave as root."""
    return os.geteuid() != 0 and shutil.which("bwrap") is not None


def command(interpreter: str, project: str, packages_from: Sequence[str]) -> list[str]:
    """What stands before the interpreter's own command line. Descriptors are inherited through it."""
    library = sysconfig.get_path("stdlib")
    covered = [f"{library}/{name}" for name in ("site-packages", "dist-packages", "test")]
    prefix = str(Path(interpreter).parent.parent)
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--proc", "/proc"]
    words += _bound([*_SHARED_LIBRARIES, prefix, library, f"{project}/model"])
    for folder in filter(os.path.isdir, covered):
        words += ["--tmpfs", folder]
    return [*words, *_bound(packages_from), "--remount-ro", "/", "--"]


def _bound(places: Sequence[str]) -> list[str]:
    return [word for place in dict.fromkeys(places) for word in ("--ro-bind-try", place, place)]
