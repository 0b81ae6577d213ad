"""What a comparison asks of the engine, and how a bundle's adapter becomes a task."""

import math

import pytest

from adapters.manifest import read_manifest
from services.bundle import load_bundle
from services.compare import NotComparable, adapter_task, served_nll
from services.settings import ROOT


class Engine:
    """Answers with the likelihood 1/2 for each token of a text, and none for the first."""

    async def complete(self, path, payload):
        assert (path, payload["model"], payload["prompt_logprobs"]) == ("/v1/completions", "m", 0)
        words = len(payload["prompt"].split())
        known = [{str(n): {"logprob": math.log(0.5), "rank": 1}} for n in range(words - 1)]
        return {"choices": [{"prompt_logprobs": [None, *known]}]}


async def test_the_likelihood_is_a_mean_over_tokens_and_not_over_texts():
    assert await served_nll(Engine(), "m", ["one two three", "one two"]) == pytest.approx(math.log(2))


def test_an_adapter_is_asked_as_it_was_trained_to_be():
    loaded = load_bundle(ROOT / "bundle.yaml")
    rows = [{"text": "a", "label": "b"}]
    task = adapter_task(loaded, "travel-intents", rows)

    assert task.manifest == read_manifest(task.folder)
    assert task.manifest.system_prompt.strip()
    assert (task.name, task.rows) == ("travel-intents", rows)
    assert (task.folder / "adapter_config.json").is_file()
    with pytest.raises(NotComparable, match=r"no adapter named 'other' in the bundle; there is: .*travel-intents"):
        adapter_task(loaded, "other", rows)
