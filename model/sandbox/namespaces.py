"""Tier A's world: own user, pid, mount, network, ipc and host name, and a root that holds only what is read.

The new root is an empty read-only tmpfs; the folders asked for are bound into it read-only at their own paths
(whatever the permissions of the folders above them: these are made anew). No /proc, no /dev, nothing writable.
Root uses its own privilege for this and drops it afterwards; anybody else takes a user namespace.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Sequence
from pathlib import Path

from model.sandbox import linux

_APART = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
_BASE = "/tmp"  # any folder will do as the place where the new root is put together
_KEPT = {
    os.ST_NOSUID: linux.MS_NOSUID,
    os.ST_NODEV: linux.MS_NODEV,
    os.ST_NOEXEC: linux.MS_NOEXEC,
    os.ST_NOATIME: 1024,
    os.ST_NODIRATIME: 2048,
    os.ST_RELATIME: 1 << 21,
}  # mount flags that a remount inside a user namespace must not lose

_READ_ONLY = linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV


def leave() -> None:
    """Into new namespaces; the pid namespace begins with the next child. Raises OSError where not allowed."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        return linux.unshare(_APART)
    linux.unshare(_APART | linux.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return None


def build_root(library: Sequence[str], hidden: Sequence[str], packages: Sequence[str]) -> None:
    """Replaces the root by one with `library`, whose folders `hidden` are covered by empty ones, and `packages`."""
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    # Opened before the base is covered: a folder below it stays reachable by its descriptor.
    sources = {folder: _opened(folder) for folder in [*library, *packages]}
    covers = [folder for folder in hidden if Path(folder).is_dir()]
    linux.mount("tmpfs", _BASE, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,nr_inodes=512,mode=755")
    for folder in library:
        _bind(sources[folder], _BASE + folder)
    for folder in covers:
        linux.mount("tmpfs", _BASE + folder, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=64k,mode=755")
    for folder in packages:
        _bind(sources[folder], _BASE + folder)
    for folder in ["", *covers]:
        linux.mount("none", _BASE + folder, None, _READ_ONLY)
    os.chdir(_BASE)
    linux.pivot_root_here()
    os.chdir("/")
    for source in sources.values():
        os.close(source)


def _opened(folder: str) -> int:
    try:
        return os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(f"{folder}, which programs import from, cannot be reached: {error.strerror}") from error


def _bind(source: int, place: str) -> None:
    Path(place).mkdir(parents=True, exist_ok=True)
    linux.mount(f"/proc/self/fd/{source}", place, None, linux.MS_BIND)
    found = os.statvfs(place).f_flag
    kept = [flag for bit, flag in _KEPT.items() if found & bit]
    linux.mount("none", place, None, functools.reduce(operator.or_, kept, _READ_ONLY))
