"""`python -m model.sandbox` says which tier programs get on this machine, by the self-test of every run."""

from __future__ import annotations

import sys

from model.errors import SandboxError
from model.sandbox import Sandbox


def main() -> int:
    """Prints the tier, or what is missing for each; returns the exit code."""
    try:
        with Sandbox() as sandbox:
            print(f"tier {sandbox.tier}{' (in bubblewrap)' * sandbox.in_bubblewrap}")
    except SandboxError as error:
        print(f"SandboxError: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
