"""What does a request to an engine cost the process that sends it, the more of them are under way?

Our client (`model/sampling/client.py`) beside `openai.AsyncOpenAI`, which distilabel and curator send with, at the same
bound of requests in flight: 4 requests a slot, to an endpoint on loopback in another process (`tests/fake_endpoint.py`)
that answers each after a second. Ours also with all connections in one pool, as httpx has it by itself. Milliseconds of
this process's processor time a request, and requests a second, all in one run by turns. Not measured: the endpoint,
long texts.

    python -m benchmarks.completions_client
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from openai import AsyncOpenAI

from benchmarks.machine import describe
from model.sampling import client
from model.sampling.client import CompletionsClient
from model.sampling.request import Request, SamplingParams

ROOT = Path(__file__).parents[1]
IN_FLIGHT = (16, 64, 256, 1024)
REQUESTS_A_SLOT = 4
PROMPT, MOST_TOKENS = "Calculate 3 + 4.", 64
_SERVER = """
import time
from tests.fake_endpoint import FakeEndpoint, Faults
with FakeEndpoint(faults=Faults(seconds=1.0)) as server:
    print(server.url, flush=True)
    time.sleep(3600)
"""


@contextmanager
def endpoint() -> Iterator[str]:
    """Its URL; a process of its own, so that its work is not ours."""
    with subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def ours(url: str, in_flight: int) -> int:
    """Sends with our client; how many were answered."""
    params = SamplingParams(0.7, max_tokens=MOST_TOKENS)
    requests = [Request(str(n), PROMPT, n, MOST_TOKENS) for n in range(REQUESTS_A_SLOT * in_flight)]
    with CompletionsClient([url], "fake", params, concurrency=in_flight, timeout_seconds=60) as sending:
        return len(sending.complete(requests))


def one_pool(url: str, in_flight: int) -> int:
    """Sends with ours, its connections not parted."""
    with patch.object(client, "POOL_CONNECTIONS", in_flight):
        return ours(url, in_flight)


def openai(url: str, in_flight: int) -> int:
    """Sends with OpenAI's."""

    async def send() -> int:
        slots = asyncio.Semaphore(in_flight)
        async with AsyncOpenAI(base_url=url, api_key="none", timeout=60) as peer:

            async def one(seed: int) -> str:
                async with slots:
                    answer = await peer.completions.create(
                        model="fake", prompt=PROMPT, seed=seed, temperature=0.7, max_tokens=MOST_TOKENS
                    )
                return answer.choices[0].text

            return len(await asyncio.gather(*map(one, range(REQUESTS_A_SLOT * in_flight))))

    return asyncio.run(send())


def cost(send: Callable[[str, int], int], url: str, in_flight: int) -> dict[str, float]:
    """Of one run of all requests."""
    processor, started = time.process_time(), time.perf_counter()
    answered = send(url, in_flight)
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    return {"cpu_ms_per_request": round(1e3 * processor / answered, 2), "requests_per_s": round(answered / seconds, 1)}


def main() -> None:
    """Runs all by turns and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    found = {}
    with endpoint() as url:
        ours(url, 16), openai(url, 16)  # imports and first connections
        for in_flight in IN_FLIGHT:
            found[in_flight] = {send.__name__: cost(send, url, in_flight) for send in (ours, one_pool, openai)}
            print(in_flight, found[in_flight], flush=True)
    result = {"in_flight": found, "machine": describe(["httpx", "httpcore", "openai"])}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
