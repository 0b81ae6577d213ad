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
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

RECIPES = ("none", "w8a8", "w4a16-gptq", "w4a16-awq", "fp8")
GROUP_SIZES = (128, 64, 32)
AWQ_GRID = 10  # scales tried for each layer; time is proportional to it
# Calibration: what a text of the model's own is cut to, and the most that is taken from a user's file.
OWN_TOKENS = 128
SEED = 20
BATCH = 32
MAX_TOKENS = 512
MAX_SAMPLES = 512


def say(**event: Any) -> None:
    """Write one event."""
    print(json.dumps(event, ensure_ascii=False), file=sys.__stdout__, flush=True)


def refuse(message: str) -> NoReturn:
    """Write the error event, and end."""
    say(error=message)
    raise SystemExit(1)


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


def blocks(text: str) -> list[str]:
    """Return the texts of a file: what blank lines part."""
    return [block.strip() for block in text.split("\n\n") if block.strip()]


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


def group_size(input_sizes: Iterable[int]) -> int:
    """Return how many weights share a scale: the largest of 128, 64 and 32 that divides every layer's input size.

    Raises:
        ValueError: none does; vLLM's 4-bit kernels could not take the layer.
    """
    sizes = sorted(set(input_sizes))
    for size in GROUP_SIZES:
        if all(inputs % size == 0 for inputs in sizes):
            return size
    msg = f"4-bit weights need layers whose input sizes are multiples of {GROUP_SIZES[-1]}; this model has {sizes}: take w8a8"
    raise ValueError(msg)


def read_calibration(file: Path, tokenizer: Any) -> list[list[int]]:
    """Return a user's texts as tokens: rows of {"text"} in a .jsonl file, or what blank lines part in any other."""
    content = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        texts = [json.loads(line)["text"] for line in content.splitlines() if line.strip()]
    else:
        texts = blocks(content)
    samples = [tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"] for text in texts[:MAX_SAMPLES]]
    return [sample for sample in samples if len(sample) > 1]


def write_calibration(model: Any, tokenizer: Any, openings: list[str]) -> list[list[int]]:
    """Let the unquantized model go on from each opening, and return the texts as tokens.

    So it is calibrated on what it says itself, in its own chat format: an opening that begins with `user:` is a question to
    it. The draws are seeded.
    """
    import torch

    tokenizer.padding_side = "left"
    samples: list[list[int]] = []
    for start in range(0, len(openings), BATCH):
        batch = [_opening(tokenizer, text) for text in openings[start : start + BATCH]]
        inputs = tokenizer.pad({"input_ids": batch}, return_tensors="pt")
        torch.manual_seed(SEED + start)
        with torch.no_grad():
            written = model.generate(
                **inputs, max_new_tokens=OWN_TOKENS, do_sample=True, temperature=0.8, top_p=0.95,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        width = inputs["input_ids"].shape[1]
        for opening, row in zip(batch, written.tolist(), strict=True):
            answer = row[width:]
            if tokenizer.eos_token_id in answer:
                answer = answer[: answer.index(tokenizer.eos_token_id) + 1]
            samples.append(opening + answer)
        say(note=f"calibration: {len(samples)} of {len(openings)} texts written by the unquantized model")
    return samples


def _opening(tokenizer: Any, text: str) -> list[int]:
    question = text.removeprefix("user: ")
    if question == text or tokenizer.chat_template is None:
        return tokenizer(question)["input_ids"]
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def modifiers(recipe: str, group: int) -> list[Any]:
    """Return llmcompressor's modifiers of a recipe; `group` is the group size of the 4-bit ones."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    where: dict[str, Any] = {"targets": ["Linear"], "ignore": ["lm_head"]}
    if recipe in {"w8a8", "fp8"}:
        return [QuantizationModifier(scheme={"w8a8": "W8A8", "fp8": "FP8_DYNAMIC"}[recipe], **where)]
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=group)
    int4 = {"config_groups": {"int4": QuantizationScheme(targets=["Linear"], weights=weights)}, "ignore": ["lm_head"]}
    if recipe == "w4a16-gptq":
        return [GPTQModifier(**int4)]
    return [AWQModifier(duo_scaling="both", n_grid=AWQ_GRID), QuantizationModifier(**int4)]


def quantize(model: Any, tokenizer: Any, recipe: str, samples: list[list[int]] | None, target: Path) -> None:
    """Quantize every linear layer but the last, and write the model to `target`; `samples` are the 4-bit recipes' texts."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        # AWQ pins memory for an accelerator's sake, and in llmcompressor 0.14.0.1 also where there is none: torch refuses.
        IntermediatesCache.pin_memory = lambda *_: None
    data, group = None, 0
    if samples is not None:
        layers = [module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]
        group = group_size(layer.in_features for layer in layers)
        data = torch.utils.data.DataLoader([_sample(ids) for ids in samples], batch_size=None)
    oneshot(model=model, recipe=modifiers(recipe, group), dataset=data)
    model.save_pretrained(target, save_compressed=True)
    tokenizer.save_pretrained(target)


def _sample(ids: list[int]) -> dict[str, Any]:
    import torch

    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}


def calibration(model: Any, tokenizer: Any, file: Path, *, own: bool) -> list[list[int]]:
    """Return the texts to calibrate on: a user's own file, or what the model writes from the openings in ours."""
    if own:
        samples = read_calibration(file, tokenizer)
        if not samples:
            refuse(f"{file} holds no text to calibrate on; write texts with blank lines between them, or JSONL rows of text")
    else:
        samples = write_calibration(model, tokenizer, blocks(file.read_text(encoding="utf-8")))
    tokens = sum(len(sample) for sample in samples)
    say(note=f"calibration: {len(samples)} texts, {tokens} tokens")
    widest = model.config.intermediate_size
    if tokens < widest:
        say(note=f"calibration: fewer tokens than the widest layer has inputs ({widest}); a longer text would serve better")
    return samples


def main() -> None:
    """Read the command line and do the work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--recipe", choices=RECIPES, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--max-nll-increase", type=float, required=True)
    parser.add_argument("--openings", type=Path, help="texts that the model goes on from, to calibrate on")
    parser.add_argument("--calibration", type=Path, help="texts to calibrate on, in the place of the model's own")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    sys.stdout = sys.stderr  # libraries print what they like; only events may stand on standard output
    texts = blocks(args.texts.read_text(encoding="utf-8"))
    say(progress=[0, 6])
    model, tokenizer = load(args.source, args.scratch)
    say(progress=[1, 6])
    card: dict[str, Any] = {"recipe": args.recipe, "nll": {}}
    if args.recipe == "none":
        model.save_pretrained(args.target)
        tokenizer.save_pretrained(args.target)
        card["nll"]["unquantized"] = round(mean_nll(model.float(), tokenizer, texts), 4)
    else:
        before = mean_nll(model.float(), tokenizer, texts)
        model.bfloat16()
        say(progress=[2, 6])
        samples = None
        if file := args.calibration or args.openings:
            samples = calibration(model, tokenizer, file, own=file == args.calibration)
        say(progress=[3, 6])
        try:
            quantize(model, tokenizer, args.recipe, samples, args.target)
        except ValueError as error:
            refuse(str(error))
        say(progress=[4, 6])
        from transformers import AutoModelForCausalLM

        # The files that will be served, not the model that is still in memory.
        after = mean_nll(AutoModelForCausalLM.from_pretrained(args.target), tokenizer, texts)
        card["nll"] = {"unquantized": round(before, 4), "quantized": round(after, 4)}
        say(progress=[5, 6])
        if not math.isfinite(after) or after - before > args.max_nll_increase:
            shutil.rmtree(args.target, ignore_errors=True)
            refuse(
                f"the quantized model is worse than allowed: mean negative log-likelihood {before:.4f} -> {after:.4f} "
                f"nats a token, max_nll_increase is {args.max_nll_increase}; take another recipe or allow more"
            )
    (args.target / "ekiben_model.json").write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    say(progress=[6, 6])
    say(note=f"mean negative log-likelihood, nats a token: {card['nll']}")


if __name__ == "__main__":
    main()
