"""Prefect's temporary server, in a session of its own.

Prefect starts it in the terminal's process group. There Ctrl-C ends the server together with the run, and Prefect
then tries for minutes to tell a server that is gone how the run ended. Here Ctrl-C reaches the run alone, which ends
its flows in order; the server is stopped last, and by `model/sampling/reaper.py` also where the run is killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from prefect.server.api.server import SubprocessASGIServer

from model.sampling import reaper


class TemporaryServer(SubprocessASGIServer):
    """The one that Prefect itself finds where no server is configured: it asks for the instance without a port."""

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        environment = os.environ | {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
        command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--log-level", "error", "--lifespan", "on"]
        return subprocess.Popen(
            [sys.executable, "-I", reaper.__file__, str(os.getpid()), "--", *command],
            env=environment | {"PREFECT__SERVER_FINAL": "1"},
            start_new_session=True,
        )
