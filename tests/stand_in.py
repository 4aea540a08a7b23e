"""A stand-in for vLLM's process: takes its arguments, starts an engine in a session of its own, and serves."""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

STAND_IN = """#!{python}
import argparse, os, subprocess, sys, time
sys.path.insert(0, "{repository}")
from tests.fake_endpoint import FakeEndpoint
if os.environ.get("STAND_IN_DIES"):
    print("(EngineCore pid=7) ERROR 11-23 07:00:24 [core.py:1] ValueError: the KV cache is too small")
    sys.exit(1)
parser = argparse.ArgumentParser()
for name in ("-m", "--model", "--served-model-name", "--host", "--port"):
    parser.add_argument(name)
options = parser.parse_known_args()[0]
engine = subprocess.Popen(["sleep", "600"], start_new_session=True)
print("Starting to load model", engine.pid, flush=True)
while "STAND_IN_WAITS_FOR" in os.environ and not os.path.exists(os.environ["STAND_IN_WAITS_FOR"]):
    time.sleep(0.02)
with FakeEndpoint(model=options.served_model_name, port=int(options.port)) as endpoint:
    while True:
        time.sleep(0.05)
        if endpoint.engine_calls:
            print(endpoint.engine_calls.pop(0), flush=True)
"""


def write_stand_in(folder: Path) -> str:
    """The path of the interpreter to name as vLLM's."""
    script = folder / "python"
    script.write_text(STAND_IN.format(python=sys.executable, repository=REPOSITORY))
    script.chmod(0o755)
    return str(script)


def looks_like_a_model(folder: Path) -> Path:
    """Makes a folder with the files of one."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder
