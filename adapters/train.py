"""Train a LoRA adapter on JSONL rows of {"text", "label"} with PEFT.

Run as ``python -m adapters.train --help``. The loss covers the answer only; rows are grouped by length, so that little is
padded. Everything random follows from ``--seed``. Needs the `train` dependency group.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.manifest import Manifest, digest_file, write_manifest

if TYPE_CHECKING:
    import torch

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Example:
    """Token ids of one conversation; the first `prompt_length` of them carry no loss."""

    ids: list[int]
    prompt_length: int


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read JSONL rows; raises ValueError that names the line which is not a {"text", "label"} object."""
    rows: list[dict[str, str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append({"text": str(row["text"]), "label": str(row["label"])})
        except (ValueError, KeyError, TypeError) as error:
            msg = f'{path}:{number}: expected {{"text": ..., "label": ...}}: {error}'
            raise ValueError(msg) from error
    if not rows:
        msg = f"{path} holds no rows"
        raise ValueError(msg)
    return rows


def encode(tokenizer: Any, system: str, row: dict[str, str], end: int) -> Example:
    """Render one row with the model's own chat template."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": row["text"]}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(row["label"], add_special_tokens=False)["input_ids"]
    return Example([*prompt_ids, *answer_ids, end], len(prompt_ids))


def batches(examples: list[Example], size: int, rng: random.Random) -> list[list[Example]]:
    """Group examples of like length, then shuffle the groups."""
    shuffled = rng.sample(examples, len(examples))
    window = size * 32
    groups: list[list[Example]] = []
    for start in range(0, len(shuffled), window):
        part = sorted(shuffled[start : start + window], key=lambda example: len(example.ids))
        groups.extend(part[i : i + size] for i in range(0, len(part), size))
    rng.shuffle(groups)
    return groups


def collate(batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return input ids, attention mask and labels, each of shape (batch, longest)."""
    import torch

    longest = max(len(example.ids) for example in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    mask = torch.zeros((len(batch), longest), dtype=torch.long)
    labels = torch.full((len(batch), longest), -100)
    for row, example in enumerate(batch):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(example.ids)
        mask[row, :length] = 1
        labels[row, example.prompt_length : length] = ids[row, example.prompt_length : length]
    return ids, mask, labels


def train(args: argparse.Namespace) -> float:
    """Train, write the adapter to `args.out`, and return the mean loss of the last epoch."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)  # noqa: S311  not for security
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    config = LoraConfig(
        r=args.rank, lora_alpha=args.alpha, lora_dropout=0.05, target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config)
    model.train()
    examples = [encode(tokenizer, args.system, row, model.config.eos_token_id) for row in read_rows(args.data)]
    steps = args.epochs * len(batches(examples, args.batch, rng))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=steps + 1, pct_start=0.1)
    started, step, mean = time.monotonic(), 0, 0.0
    for epoch in range(args.epochs):
        losses: list[float] = []
        for batch in batches(examples, args.batch, rng):
            ids, mask, labels = collate(batch)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bfloat16):
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            losses.append(loss.item())
            if step % 10 == 0:
                left = (time.monotonic() - started) / step * (steps - step)
                recent = sum(losses[-20:]) / len(losses[-20:])
                print(f"epoch {epoch + 1} step {step}/{steps} loss {recent:.4f} about {left:.0f} s left", file=sys.stderr)
        mean = sum(losses) / len(losses)
    args.out.mkdir(parents=True, exist_ok=True)
    saved: Any = model.peft_config["default"]
    saved.base_model_name_or_path = args.base_source  # not a path of this machine
    saved.target_modules = sorted(TARGETS)
    model.to(torch.bfloat16).save_pretrained(args.out, safe_serialization=True)
    return mean


def main() -> None:
    """Parse the command line, train, and write the manifest."""
    parser = argparse.ArgumentParser(prog="python -m adapters.train", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the unquantized base model (safetensors)")
    parser.add_argument("--base-source", required=True, help="the base model's source as bundle.yaml names it")
    parser.add_argument("--data", type=Path, required=True, help='JSONL rows of {"text", "label"}')
    parser.add_argument("--dataset", required=True, help="name, origin and licence of the data, for the manifest")
    parser.add_argument("--system", required=True, help="system prompt; the served prompt must say the same")
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16 (faster on CPUs that have it)")
    args = parser.parse_args()
    loss = train(args)
    write_manifest(
        args.out,
        Manifest(
            name=args.name,
            base_source=args.base_source,
            dataset=args.dataset,
            system_prompt=args.system,
            sha256=digest_file(args.out / "adapter_model.safetensors"),
            training={
                "rows": len(read_rows(args.data)),
                "epochs": args.epochs,
                "batch": args.batch,
                "learning_rate": args.learning_rate,
                "seed": args.seed,
                "final_loss": round(loss, 4),
            },
        ),
    )
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
