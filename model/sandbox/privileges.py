"""Gives up every privilege for good: user, groups, capabilities, securebits. Refuses when any of it stays.

Only while single-threaded: credentials belong to threads.
"""

from __future__ import annotations

import os

from model.sandbox import linux

NOBODY = 65534
_MOST_CAPABILITIES = 64


def drop() -> None:
    """An ordinary user keeps the user id, root becomes nobody; nobody keeps a capability.

    Raises OSError with what could not be dropped.
    """
    _forbid_regaining()
    if 0 in os.getresuid():
        _become_nobody()
    linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)


def _forbid_regaining() -> None:
    """Bounding set and securebits; needs CAP_SETPCAP. Without it no_new_privs does the same for what comes later."""
    for capability in range(_MOST_CAPABILITIES):
        try:
            linux.prctl(linux.PR_CAPBSET_DROP, capability)
        except OSError:  # beyond this kernel's last capability, or not allowed to
            break
    try:
        linux.prctl(linux.PR_SET_SECUREBITS, linux.SECUREBITS)
    except PermissionError:
        return


def _become_nobody() -> None:
    try:
        if os.getgroups():
            os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError as error:
        raise OSError(f"root cannot become user {NOBODY}: {error.strerror}") from error
    if 0 in (*os.getresuid(), *os.getresgid(), *os.getgroups()):
        raise OSError("user or group 0 is left after it was dropped")
