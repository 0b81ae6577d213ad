"""What a bundle may switch on in its engine, each switch measured off and on: `make bench-features` after `ekiben pack`.

Every variant is an engine of its own, with the bundle's model and without adapters, started and ended in turn. Answers are
greedy; prompts are made here, so no data is needed. The last line is JSON with every figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from services.bundle import Bundle, Engine, load_bundle
from services.engine import GIB, vllm_arguments, vllm_environment
from services.engine_client import EngineClient
from services.engine_process import EngineFailed, RunningEngine, engine_process, free_port
from services.layout import default_layout, this_machine
from services.lock import read_lock
from services.measure import CHAT, distinct_prompt
from services.settings import load_settings
from services.store import stored_path

RESULTS = Path(__file__).parent / "results"
Figures = dict[str, float]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"enum": ["Paris", "Tokyo", "Lima"]},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}


@dataclass
class Streamed:
    """One answer as it came: the times of its pieces since the request, its text, and its tokens as the engine counted them."""

    times: list[float] = field(default_factory=list)
    text: str = ""
    tokens: int = 0

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


async def ask(client: EngineClient, question: str, tokens: int, *, system: str = "", **more: Any) -> Streamed:
    """Stream one answer of at most `tokens` tokens."""
    messages = [{"role": "system", "content": system}] if system else []
    body = {
        "model": "model", "messages": [*messages, {"role": "user", "content": question}], "max_tokens": tokens,
        "temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **more,
    }  # fmt: skip
    answer, began = Streamed(), time.perf_counter()
    async for event in client.stream(CHAT, body):
        for choice in event["choices"]:
            if text := choice["delta"].get("content"):
                answer.text += text
                answer.times.append(time.perf_counter() - began)
        answer.tokens = (event.get("usage") or {}).get("completion_tokens", answer.tokens)
    return answer


async def together(client: EngineClient, questions: list[str], tokens: int, **more: Any) -> tuple[list[Streamed], float]:
    """Stream all answers at once; return them and tokens a second."""
    began = time.perf_counter()
    answers = await asyncio.gather(*(ask(client, question, tokens, **more) for question in questions))
    return answers, sum(answer.tokens for answer in answers) / (time.perf_counter() - began)


async def shared_prompt(client: EngineClient) -> Figures:
    """64 users ask short questions below one system prompt of some 900 tokens."""
    system = "You are the assistant of a railway. " + distinct_prompt(1, 0, 700)
    await ask(client, "Hello?", 4, system=system)
    questions = [distinct_prompt(2, number, 8) for number in range(64)]
    answers, rate = await together(client, questions, 32, system=system, ignore_eos=True)
    first = [answer.times[0] for answer in answers if answer.times]
    return {"tok_s": rate, "ttft_p50_ms": statistics.median(first) * 1000, "ttft_max_ms": max(first) * 1000}


async def copying(client: EngineClient) -> Figures:
    """Answers that copy from the prompt, and free ones: alone, and eight at a time."""
    passages = [distinct_prompt(3, number, 120) for number in range(8)]
    copies = [f"Repeat this text word for word, and add nothing:\n\n{passage}" for passage in passages]
    free = [f"Tell a story about {distinct_prompt(4, number, 6)}" for number in range(8)]
    figures: Figures = {}
    for name, questions in (("copy", copies), ("free", free)):
        alone = [(await together(client, [question], 96, ignore_eos=True))[1] for question in questions[:3]]
        figures[f"{name}_1_tok_s"] = statistics.median(alone)
        figures[f"{name}_8_tok_s"] = (await together(client, questions, 96, ignore_eos=True))[1]
    return {**figures, **await _accepted(client)}


async def _accepted(client: EngineClient) -> Figures:
    counts = {"draft": 0.0, "accepted": 0.0}
    for line in (await client.metrics()).splitlines():
        for name in counts:
            if line.startswith(f"vllm:spec_decode_num_{name}_tokens_total"):
                counts[name] += float(line.rsplit(" ", 1)[1])
    return {"accepted_share": counts["accepted"] / counts["draft"]} if counts["draft"] else {}


async def long_prompt_between(client: EngineClient) -> Figures:
    """Eight answers are running when a prompt of some 3,500 tokens comes: how long do they stand still?"""
    running = [asyncio.create_task(ask(client, distinct_prompt(5, number, 8), 160, ignore_eos=True)) for number in range(8)]
    await asyncio.sleep(1.5)
    late = await ask(client, distinct_prompt(6, 0, 2700), 8, ignore_eos=True)
    gaps = sorted(gap for answer in await asyncio.gather(*running) for gap in answer.gaps)
    return {
        "gap_p50_ms": statistics.median(gaps) * 1000, "gap_p99_ms": gaps[int(len(gaps) * 0.99)] * 1000,
        "gap_max_ms": gaps[-1] * 1000, "long_ttft_ms": late.times[0] * 1000,
    }  # fmt: skip


async def json_schema(client: EngineClient) -> Figures:
    """A JSON schema: the first request compiles it; then eight at a time, beside eight free answers."""
    held = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    questions = [f"Invent a person: {distinct_prompt(7, number, 4)}. Answer in JSON." for number in range(8)]
    free = (await together(client, questions, 48, ignore_eos=True))[1]
    began = time.perf_counter()
    first = await ask(client, questions[0], 96, response_format=held)
    seconds = time.perf_counter() - began
    answers, rate = await together(client, questions, 96, response_format=held)
    return {
        "first_ms": seconds * 1000, "tok_s": rate, "free_tok_s": free,
        "valid_share": statistics.mean(_valid(answer.text) for answer in [first, *answers]),
    }  # fmt: skip


def _valid(text: str) -> bool:
    try:
        person = json.loads(text)
    except ValueError:
        return False
    return set(person) == {"name", "age", "city"} and person["city"] in ("Paris", "Tokyo", "Lima") and person["age"] in range(121)


BACKENDS = ("xgrammar", "guidance", "outlines")
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
FEATURES: dict[str, tuple[Callable[[EngineClient], Awaitable[Figures]], dict[str, dict[str, Any]]]] = {
    "prefix": (shared_prompt, {"off": {"enable_prefix_caching": False}, "on": {"enable_prefix_caching": True}}),
    "speculative": (copying, {"off": {}, "ngram": {"speculative_config": NGRAM}}),
    "chunked": (
        long_prompt_between,
        {
            "off": {"enable_chunked_prefill": False, "max_num_batched_tokens": 4096},
            "2048": {"enable_chunked_prefill": True, "max_num_batched_tokens": 2048},
            "256": {"enable_chunked_prefill": True, "max_num_batched_tokens": 256},
        },
    ),
    "structured": (json_schema, {backend: {"structured_outputs_config": {"backend": backend}} for backend in BACKENDS}),
}


async def variant(
    bundle: Bundle, model: Path, options: dict[str, Any], scenario: Callable[[EngineClient], Awaitable[Figures]]
) -> Figures:
    """Start an engine with these options, warm it, and return what the scenario gave."""
    engine = Engine.model_validate({**bundle.engine.model_dump(), "kv_cache_memory_bytes": GIB, **options})
    named = bundle.model.model_copy(update={"name": "model"})
    bundle, layout, port = (
        bundle.model_copy(update={"engine": engine, "model": named}),
        default_layout(this_machine()),
        free_port(),
    )
    arguments = vllm_arguments(bundle, model=model, adapters={}, device="cpu", port=port, free_bytes=GIB, layout=layout)
    running: RunningEngine
    async with engine_process(arguments, vllm_environment("cpu", this_machine().cores, layout), port=port) as running:
        await together(running.client, [distinct_prompt(0, number, 8) for number in range(4)], 8)
        return {
            name: round(value, 3) for name, value in {"start_s": running.start_seconds, **await scenario(running.client)}.items()
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python benchmarks/features.py", description=__doc__)
    parser.add_argument("features", nargs="*", help=f"any of {', '.join(FEATURES)} [default: all]")
    parser.add_argument("--cores", type=int, default=2, help="processors that the engine and the load share")
    args = parser.parse_args()
    me = psutil.Process()
    me.cpu_affinity(me.cpu_affinity()[: args.cores])
    settings = load_settings()
    bundle, model = load_bundle(settings.bundle, packed=True).bundle, stored_path(read_lock(settings.lock).model)
    found: dict[str, dict[str, Figures | str]] = {}
    for feature in args.features or FEATURES:
        scenario, variants = FEATURES[feature]
        for name, options in variants.items():
            try:
                figures: Figures | str = asyncio.run(variant(bundle, model, options, scenario))
            except EngineFailed as error:
                figures = str(error).splitlines()[-1]
            found.setdefault(feature, {})[name] = figures
            print(f"{feature:<12}{name:<20}{figures}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "features.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
