"""Convert, quantize and judge a base model. Run by `models.making` in the quantization environment; it imports nothing of Ekiben.

Output: one JSON object a line, {"note"}, {"progress": [done, total]} or {"error"}.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import sys
from pathlib import Path
from typing import Any


def say(**event: Any) -> None:
    """Write one event."""
    print(json.dumps(event, ensure_ascii=False), file=sys.__stdout__, flush=True)


def load(source: Path, scratch: Path) -> tuple[Any, Any]:
    """Return the unquantized model in bfloat16 and its tokenizer, with the special tokens that a GGUF reader loses.

    A GGUF is written to `scratch` as safetensors and read back: llmcompressor wants a folder with a configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if source.suffix == ".gguf":
        from transformers import GgufConfig

        where = {"gguf_file": source.name}
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        source = scratch
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source)
    end = model.generation_config.eos_token_id or model.config.eos_token_id
    if isinstance(end, int):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def mean_nll(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Return the mean negative log-likelihood of the texts, in nats a token."""
    import torch

    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        total, count = total + losses.item(), count + ids.shape[1] - 1
    return total / count


def quantize(model: Any, tokenizer: Any, target: Path) -> None:
    """INT8 weights and dynamic INT8 activations; needs no calibration text."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]))
    model.save_pretrained(target, save_compressed=True)
    tokenizer.save_pretrained(target)


def main() -> None:
    """Read the command line and do the work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--recipe", choices=("none", "w8a8"), required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--max-nll-increase", type=float, required=True)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    sys.stdout = sys.stderr  # libraries print what they like; only events may stand on standard output
    texts = [block.strip() for block in args.texts.read_text(encoding="utf-8").split("\n\n") if block.strip()]
    say(progress=[0, 5])
    model, tokenizer = load(args.source, args.scratch)
    say(progress=[1, 5])
    card: dict[str, Any] = {"recipe": args.recipe, "nll": {}}
    if args.recipe == "none":
        model.save_pretrained(args.target)
        tokenizer.save_pretrained(args.target)
        card["nll"]["unquantized"] = round(mean_nll(model.float(), tokenizer, texts), 4)
    else:
        before = mean_nll(model.float(), tokenizer, texts)
        say(progress=[2, 5])
        quantize(model.bfloat16(), tokenizer, args.target)
        say(progress=[3, 5])
        from transformers import AutoModelForCausalLM

        # The files that will be served, not the model that is still in memory.
        after = mean_nll(AutoModelForCausalLM.from_pretrained(args.target), tokenizer, texts)
        card["nll"] = {"unquantized": round(before, 4), "quantized": round(after, 4)}
        say(progress=[4, 5])
        if not math.isfinite(after) or after - before > args.max_nll_increase:
            say(
                error=f"the quantized model is worse than allowed: mean negative log-likelihood {before:.4f} -> {after:.4f} "
                f"nats a token, max_nll_increase is {args.max_nll_increase}; take another recipe or allow more"
            )
            shutil.rmtree(args.target, ignore_errors=True)
            raise SystemExit(1)
    (args.target / "ekiben_model.json").write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    say(progress=[5, 5])
    say(note=f"mean negative log-likelihood, nats a token: {card['nll']}")


if __name__ == "__main__":
    main()
