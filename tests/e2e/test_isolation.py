"""Isolation of LoRA adapters in real vLLM: whatever shares a batch, each request is answered by its own model.

Most tests run on the base model as it is before quantization, in float32: there a greedy answer is that of the same request
alone, whatever else is in the batch, and a token may differ only where two are a NEAR_TIE. As the box is served, rounding to
bfloat16 and int8 depends on how a prompt was cut into steps, by which tokens 0.9 nats apart were seen to change places; there
the last test asks whose the answers are.
"""

import asyncio
import json
import random
from contextlib import asynccontextmanager
from itertools import permutations, product
from pathlib import Path
from statistics import mean
from unittest.mock import Mock

import httpx
import pytest
import pytest_asyncio

from benchmarks.random_lora import write_adapter
from services.bundle import Quantization, load_bundle
from services.engine import usable_cores, vllm_arguments, vllm_environment
from services.engine_process import engine_process, free_port
from services.lock import read_lock
from services.packing import pack_model
from services.store import stored_path

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),  # BentoML's, when it is imported
]

ROOT = Path(__file__).resolve().parents[2]
NEAR_TIE, FAR = 0.001, 0.5  # nats, of one token
DRIFT = 0.03  # nats, of the mean token as served: 0.008 and less were seen, and 0.05 and more by another model
TOKENS, LONG_ANSWER = 10, 120
SLOTS, LOADED = 3, 5  # max_loras, max_cpu_loras
CHUNK = 256  # max_num_batched_tokens: a longer prompt is prefilled in pieces, while others decode
BASE = "base"
STATIC = ("alpha", "bravo", "charlie", "delta", "travel")
RULES = (
    "The night train leaves the northern station at nine and stops in every town along the river. Seats are numbered, and "
    "dogs travel free of charge. The dining car closes at midnight, but tea is served until the morning. Passengers who miss "
    "their stop may ride back with the next train without a new ticket. Lost things are kept in the office near the clock. "
)
# Blocks of 128 tokens are what the prefix cache shares: the last three prompts have one and more, and the same.
PROMPTS = {
    "short": "The capital of France is",
    "tale": "Once upon a time there was a",
    "advice": "If you want to learn how to swim, the first thing that you should do is",
    "rules": RULES * 2 + "In short, the dining car",
    "long": RULES * 4 + "In short, passengers who",
    "twin": RULES * 4 + "In short, dogs and other animals",
}


class Served:
    """An engine; `alone` is what each model says alone in it."""

    def __init__(self, http, folders, ids):
        self.http, self.folders, self.ids = http, folders, ids
        self.alone = {}

    async def ask(self, model, prompt, *, tokens=TOKENS, stream=False, n=1, leave=False):
        """The answers to one prompt, as token ids; with `leave` the caller goes after the first token, and has none."""
        body = {
            "model": model, "prompt": self.ids[prompt], "max_tokens": tokens, "ignore_eos": True, "stream": stream or leave,
            "n": n, "temperature": float(n > 1), "top_k": 1, "return_token_ids": True,
        }  # fmt: skip
        answers = [[] for _ in range(n)]
        async with self.http.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for event in _events(response):
                assert "error" not in event, event
                for choice in event["choices"]:
                    answers[choice["index"]] += choice["token_ids"]
                if leave:
                    return []
        return answers

    async def status(self, model, *, stream=False):
        body = {"model": model, "prompt": "Hello", "max_tokens": 1, "stream": stream}
        return (await self.http.post("/v1/completions", json=body)).status_code

    async def score(self, model, prompt, answer):
        """How far, in nats, each of the answer's tokens is from what this model would have said there."""
        ids = self.ids[prompt]
        body = {"model": model, "prompt": ids + answer, "max_tokens": 1, "prompt_logprobs": 1}
        response = await self.http.post("/v1/completions", json=body)
        scored = response.raise_for_status().json()["choices"][0]["prompt_logprobs"][len(ids) :]
        return [
            max(choice["logprob"] for choice in choices.values()) - choices[str(token)]["logprob"]
            for token, choices in zip(answer, scored, strict=True)
        ]

    async def learn(self, *models):
        """Ask each prompt alone, one after the other; nothing else may be in flight."""
        for model in models:
            for prompt in PROMPTS:
                if (model, prompt) not in self.alone:
                    [self.alone[model, prompt]] = await self.ask(model, prompt)

    async def check(self, model, prompt, answers):
        """Fail unless each of the answers is this model's; nothing else may be in flight."""
        alone = self.alone.get((model, prompt))
        for answer in answers:
            if answer == alone:
                continue
            gaps = await self.score(model, prompt, answer)
            assert own(gaps), f"{model} would not have answered {prompt!r} with {answer}, but with {alone}: {gaps}"

    async def load(self, name, weights):
        body = {"lora_name": name, "lora_path": str(self.folders[weights])}
        (await self.http.post("/v1/load_lora_adapter", json=body)).raise_for_status()

    async def unload(self, name):
        (await self.http.post("/v1/unload_lora_adapter", json={"lora_name": name})).raise_for_status()

    @asynccontextmanager
    async def adapter(self, name, weights=None):
        """An adapter that is there for a while, under its weights' name or another."""
        await self.load(name, weights or name)
        try:
            yield
        finally:
            await self.unload(name)

    async def running(self, requests):
        """Wait until the engine works at that many requests."""
        for _ in range(600):
            text = (await self.http.get("/metrics")).text
            if (
                sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:num_requests_running"))
                >= requests
            ):
                return
            await asyncio.sleep(0.05)
        pytest.fail(f"there were never {requests} requests running")


def own(gaps):
    """Whether these are the gaps of an answer of the model's own."""
    return max(gaps) <= NEAR_TIE


async def _events(response):
    if response.headers["content-type"].startswith("application/json"):
        yield json.loads(await response.aread())
        return
    async for line in response.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


@pytest.fixture(scope="module")
def loaded():
    return load_bundle(ROOT / "bundle.yaml")


@pytest.fixture(scope="module")
def quantized():
    return stored_path(read_lock(ROOT / "bundle.lock").model)


@pytest.fixture(scope="module")
def unquantized(loaded):
    return stored_path(pack_model(loaded.quantized(Quantization(recipe="none")), Mock()))


@pytest.fixture(scope="module")
def folders(quantized, tmp_path_factory):
    """Random adapters of several shapes, and one that was trained."""
    root = tmp_path_factory.mktemp("adapters")
    shapes = {
        "alpha": {"rank": 8}, "bravo": {"rank": 16}, "charlie": {"rank": 16, "targets": ("q_proj", "v_proj"), "strength": 1.0},
        "delta": {"rank": 16, "targets": ("gate_proj", "up_proj", "down_proj")}, "echo": {"rank": 8}, "foxtrot": {"rank": 16},
    }  # fmt: skip
    made = {name: write_adapter(root / name, model=quantized, seed=i, **shape) for i, (name, shape) in enumerate(shapes.items())}
    return {**made, "travel": ROOT / "adapters/travel-intents"}


@asynccontextmanager
async def engine(bundle, model, folders, **settings):
    """A real engine with the static adapters."""
    settings |= {
        "max_loras": SLOTS, "max_cpu_loras": LOADED, "max_num_seqs": 16, "max_num_batched_tokens": CHUNK, "max_model_len": 2048,
        "kv_cache_memory_bytes": 2**30,
    }  # fmt: skip
    bundle = bundle.model_copy(
        update={"engine": bundle.engine.model_copy(update=settings), "model": bundle.model.model_copy(update={"name": BASE})}
    )
    port = free_port()
    arguments = vllm_arguments(
        bundle, model=model, adapters={name: folders[name] for name in STATIC}, device="cpu", port=port, free_bytes=0
    )
    async with (
        engine_process(arguments, vllm_environment("cpu", usable_cores()), port=port) as running,
        httpx.AsyncClient(base_url=running.url, timeout=180) as http,
    ):
        ids = {}
        for prompt, text in PROMPTS.items():
            ids[prompt] = (await http.post("/tokenize", json={"model": BASE, "prompt": text})).json()["tokens"]
        yield Served(http, folders, ids)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[False, True], ids=["uncached", "prefix-cache"])
async def served(request, loaded, unquantized, folders):
    async with engine(loaded.bundle, unquantized, folders, dtype="float32", enable_prefix_caching=request.param) as served:
        await served.learn(BASE, *STATIC)
        yield served


async def random_requests(served, models, *, seed, ns=(1,), leaving=0.0):
    """Send twenty random requests to these models at once; returns (model, prompt, answers) of each."""
    order = random.Random(seed)

    async def one(model, prompt, delay, **how):
        await asyncio.sleep(delay)
        return model, prompt, await served.ask(model, prompt, **how)

    requests = [
        one(
            order.choice(models), order.choice(list(PROMPTS)), order.uniform(0, 1), stream=order.random() < 0.5,
            n=order.choice(ns), leave=order.random() < leaving,
        )
        for _ in range(20)
    ]  # fmt: skip
    return await asyncio.gather(*requests)


async def mix(served, models, *, seeds, **how):
    """Round by round, check the answers to random requests."""
    for seed in seeds:
        for model, prompt, answers in await random_requests(served, models, seed=seed, **how):
            await served.check(model, prompt, answers)


async def test_any_two_models_answer_apart(served):
    """What the other tests rest on."""
    for one, other in permutations((BASE, *STATIC), 2):
        gaps = [await served.score(one, prompt, served.alone[other, prompt]) for prompt in ("short", "tale")]
        assert max(map(max, gaps)) >= FAR


async def test_base_and_adapters_share_batches_with_all_slots_full(served):
    await mix(served, (BASE, *STATIC[:SLOTS]), seeds=(1, 2))


async def test_more_adapters_than_slots(served):
    """Slots change hands; some callers leave, some want two answers."""
    await mix(served, (BASE, *STATIC), seeds=(3, 4, 5), ns=(1, 1, 2), leaving=0.2)


async def test_an_adapter_loaded_while_others_are_in_flight(served):
    busy = [(model, prompt) for model in (BASE, "alpha", "bravo") for prompt in ("tale", "long")]
    tasks = [asyncio.create_task(served.ask(*request, tokens=LONG_ANSWER, stream=True)) for request in busy]
    await served.running(len(busy))
    async with served.adapter("echo"):
        fresh = await asyncio.gather(*(served.ask("echo", prompt) for prompt in PROMPTS))
        assert not any(task.done() for task in tasks)

        for request, answers in zip(busy, await asyncio.gather(*tasks), strict=True):
            await served.check(*request, answers)
        await served.learn("echo")
        for prompt, answers in zip(PROMPTS, fresh, strict=True):
            await served.check("echo", prompt, answers)


async def test_an_adapter_unloaded_while_its_requests_are_in_flight(served):
    """They are answered to their end; the next one is told that there is no such model."""
    busy = [("foxtrot", "tale"), (BASE, "tale"), ("foxtrot", "twin"), ("bravo", "advice")]
    await served.load("foxtrot", "foxtrot")
    tasks = [asyncio.create_task(served.ask(*request, tokens=LONG_ANSWER, stream=True)) for request in busy]
    await served.running(len(busy))
    await served.unload("foxtrot")

    assert await served.status("foxtrot") == httpx.codes.NOT_FOUND
    assert not any(task.done() for task in tasks)
    async with served.adapter("foxtrot"):
        for request, answers in zip(busy, await asyncio.gather(*tasks), strict=True):
            await served.check(*request, answers)


async def test_a_name_loaded_again_with_other_weights_answers_with_these(served):
    """Neither weights nor cached prefixes of what had the name before."""
    async with served.adapter("echo"), served.adapter("foxtrot"):
        await served.learn("echo", "foxtrot")
        for weights in ("echo", "foxtrot", "echo"):
            asked = [(model, prompt) for prompt in PROMPTS for model in ("turncoat", BASE)]
            async with served.adapter("turncoat", weights):
                found = await asyncio.gather(*(served.ask(*request) for request in asked))
            for (model, prompt), answers in zip(asked, found, strict=True):
                await served.check(weights if model == "turncoat" else model, prompt, answers)


async def test_scores_of_prompts_are_right_in_mixed_batches(served):
    """Prompt logprobs are computed apart from the samples of the same step."""
    asked = [(model, prompt) for model in (BASE, *STATIC) for prompt in ("tale", "rules")]
    busy = asyncio.gather(*(served.ask(model, "advice", tokens=LONG_ANSWER) for model in (BASE, "alpha")))
    scores = await asyncio.gather(*(served.score(*request, served.alone[request]) for request in asked))
    await busy

    assert all(map(own, scores))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["nobody", "Alpha", "alpha@1", "base/alpha"])
async def test_an_unknown_adapter_is_not_found(served, name, stream):
    assert await served.status(name, stream=stream) == httpx.codes.NOT_FOUND


async def test_a_seeded_request_whose_prompt_takes_several_steps_ends_well(served):
    """Stock vLLM 0.32.0 on a CPU dies of it, and with it everybody's requests."""
    payload = {"prompt": "word " * (3 * CHUNK), "max_tokens": 16, "temperature": 1.0, "seed": 7, "ignore_eos": True}

    async def ask(model):
        answer = await served.http.post("/v1/completions", json={"model": model, **payload})
        return answer.json()["choices"][0]["text"]

    together = await asyncio.gather(ask("alpha"), ask(BASE), ask("alpha"))

    assert all(together)
    assert await ask("alpha") == await ask("alpha")


async def test_as_the_box_is_served_each_answer_is_its_models_own(loaded, quantized, folders):
    """Quantized, in bfloat16, with a prefix cache: on the mean, an answer is its model's choice and no other's."""
    models = (BASE, *STATIC)
    async with engine(loaded.bundle, quantized, folders) as served:
        asked = [request for seed in (6, 7) for request in await random_requests(served, models, seed=seed)]
        gaps = {pair: [] for pair in product(models, repeat=2)}
        for model, prompt, [answer] in asked:
            scores = await asyncio.gather(*(served.score(judge, prompt, answer) for judge in models))
            for judge, scored in zip(models, scores, strict=True):
                gaps[judge, model] += scored

    for model in models:
        own_gap, *others = (mean(gaps[judge, model]) for judge in (model, *(judge for judge in models if judge != model)))
        assert own_gap <= DRIFT
        assert own_gap < min(others)
