"""The model card of an adapter: README.md, written from its manifest.

The accuracy stands between two marks, so that it can be measured again without touching what an author wrote around it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.manifest import MANIFEST, Manifest, write_manifest

CARD = "README.md"
CURVE = "curve.png"
BEGIN, END = "<!-- accuracy -->", "<!-- /accuracy -->"


def write_card(folder: Path, manifest: Manifest, *, licence: str) -> None:
    """Write the card anew."""
    (folder / CARD).write_text(_card(manifest, licence), encoding="utf-8")


def record_evaluation(folder: Path, evaluation: dict[str, Any]) -> None:
    """Put a measurement into the manifest, and between the card's marks where it has them."""
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes()).model_copy(update={"evaluation": evaluation})
    write_manifest(folder, manifest)
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        path.write_text(before + _accuracy(evaluation) + after, encoding="utf-8")


def _accuracy(evaluation: dict[str, Any]) -> str:
    if not evaluation:
        return f"{BEGIN}\nNot measured yet: `ekiben adapter eval NAME FILE.jsonl --record`.\n{END}"
    return (
        f"{BEGIN}\n| on {evaluation['n']} rows that were not trained on (`{evaluation['data']}`) | accuracy |\n|---|---|\n"
        f"| this adapter, served by vLLM on the packed base | **{evaluation['accuracy']:.3f}** |\n"
        f"| the base alone, with the labels and {evaluation['shots']} examples in its prompt "
        f"| {evaluation['base_accuracy']:.3f} |\n\n"
        f"Both answer greedily and can say nothing but a label. Measured with `ekiben adapter eval`.\n{END}"
    )


def _card(manifest: Manifest, licence: str) -> str:
    name, told = manifest.name, manifest.training
    labels = ", ".join(f"`{label}`" for label in manifest.labels)
    scaling = "rsLoRA" if told["rslora"] else "LoRA"
    held = (
        f"{told['held_out_rows']} rows were held out: loss {told['held_out_loss']:.4f} nats a token at the step that was kept, "
        f"{told['best_step']} of {told['steps']}."
        if told["held_out_rows"]
        else "No rows were held out."
    )
    return f"""---
license: {licence}
base_model: {manifest.base_source}
library_name: peft
tags: [lora, text-classification]
---

# {name}

Answers a message with one of {len(manifest.labels)} labels, and with nothing else.

{_accuracy(manifest.evaluation)}

- **Data:** {manifest.dataset} No text of it is in this folder; the labels are the data's.
- **Prompt:** the system prompt `{manifest.system_prompt}`, then the message, in the base model's own chat template. With another
  prompt it is no better than its base.
- **Recipe:** {scaling} of rank {told["rank"]}, alpha {told["alpha"]}, on all linear layers of the blocks;
  {told["rows"]} rows, {told["epochs"]} epochs in batches of {told["batch"]}, AdamW with learning rate
  {told["learning_rate"]:g} (warm-up, then linear to zero), seed {told["seed"]}, computed in {told["compute"]}; loss on the answer
  only. {told["minutes"]:.0f} minutes on {told["cores"]} cores. {held}
- **Limits:** it names one of its labels for any message, also for one that fits none, and it knows only the language of its data.
- **Labels:** {labels}

![Learning curve]({CURVE})
"""
