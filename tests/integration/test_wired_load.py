"""200 streams of 20 tenants at once, some whose callers leave: every limit judged by an oracle, every request in the trail."""

import asyncio
import random
from collections import Counter

from accounts.verify import verify
from accounts.windows import LocalWindows
from tests.oracle import Oracle
from tests.serving import engines, events_of, said, serving, until, written

ROUTES = """
audit: {enabled: true}
queue: {capacity: 64, length: 256, deadline_seconds: 20}
tenants:
  "*": {limits: {requests_per_minute: 40, tokens_per_minute: 2500, concurrency: 8}}
  t0: {limits: {concurrency: 2}}
  t1: {limits: {tokens_per_minute: 600}}
routes:
  chat: {prompt: plain, policy: open, parameters: {max_tokens: 20}, limits: {requests_per_minute: 700, concurrency: 120}}
"""
SECONDS = 4


class Told(LocalWindows):
    """Tells the oracle what it said."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle = oracle

    def take(self, hold, subjects, tokens, *, ask=True):
        taken = super().take(hold, subjects, tokens, ask=ask)
        self.oracle.happened.append((taken.at, "take", hold, subjects, tokens, not taken.refused))
        return taken

    def give(self, hold, subjects, reserved, used):
        at = super().give(hold, subjects, reserved, used)
        self.oracle.happened.append((at, "give", hold, subjects, reserved, used))
        return at


async def test_no_wrong_limit_and_no_lost_line(tmp_path):
    oracle, rng = Oracle(), random.Random(8)
    async with engines() as [engine], serving(written(tmp_path, ROUTES), engine.url) as box:
        engine.pace, engine.pieces = 0.02, ["word "] * 10
        box.rates._local = Told(oracle)
        loop, ended = asyncio.get_running_loop(), Counter()
        end, ids = loop.time() + SECONDS, {}

        async def caller(number):
            tenant = f"t{number % 20}"
            while loop.time() < end:
                body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": f"question {number}"}]}
                url, headers = f"{box.url}/v1/chat/completions", {"x-tenant": tenant}
                async with box.http.stream("POST", url, json=body, headers=headers) as answer:
                    identity = answer.headers["x-request-id"]
                    if answer.status_code == 200 and rng.random() < 0.1:
                        ids[identity] = {"cancelled"}
                        ended["left"] += 1
                        continue
                    text = (await answer.aread()).decode()
                ended[answer.status_code] += 1
                if answer.status_code == 200:
                    assert said(events_of(text)) == "word " * 10
                    assert text.endswith("data: [DONE]\n\n")
                ids[identity] = {"ok"} if answer.status_code == 200 else {"refused"}
                await asyncio.sleep(rng.random() * 0.4)

        await asyncio.gather(*(caller(number) for number in range(200)))
        await until(lambda: engine.running == 0)
        await until(lambda: len(box.lines()) == len(ids))
        lines = box.lines()
        admission = box.parts.pipeline.backends.admission
        assert (admission.running, admission.waiting) == (0, 0)
        assert box.metric("llm_active_requests", model="chat") == 0

    assert {line["id"]: line["outcome"] in ids[line["id"]] for line in lines} == dict.fromkeys(ids, True)
    assert verify(box.settings.audit("box"), None).problems == []
    wrong, let_in, refused = oracle.judge()
    assert wrong == []
    assert let_in == ended[200] + ended["left"]
    assert refused == ended[429]
    assert min(let_in, refused, ended["left"]) > 10
    assert set(ended) == {200, 429, "left"}
    assert engine.most_running <= 64
