"""Measure how often a served model names the right label: `python -m adapters.evaluate --help`.

Rows of {"text", "label"} are sent to an OpenAI-compatible server, and the answers compared with the labels. With
--list-labels the labels stand in the system prompt and the answer can be nothing else (structured output): what a base
model that was not trained on the task needs to stand a chance.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp

from adapters.train import read_rows


async def accuracy(url: str, model: str, rows: list[dict[str, str]], extra: dict[str, Any], system: str | None) -> float:
    """Return the share of rows whose answer is the label; 32 requests at a time."""
    gate = asyncio.Semaphore(32)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def right(row: dict[str, str]) -> bool:
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": row["text"]})
            async with gate, session.post(url, json={"model": model, "messages": messages, **extra}) as response:
                body = await response.json()
            if "choices" not in body:
                raise SystemExit(f"the server refused a row: {body}")
            return body["choices"][0]["message"]["content"].strip() == row["label"]

        return sum(await asyncio.gather(*map(right, rows))) / len(rows)


def main() -> None:
    """Parse the command line, measure, and print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m adapters.evaluate", description=__doc__)
    parser.add_argument("--url", default="http://localhost:3000/v1/chat/completions")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True, help='JSONL rows of {"text", "label"}')
    parser.add_argument("--list-labels", action="store_true", help="name the labels in the prompt and allow nothing else")
    args = parser.parse_args()
    rows = read_rows(args.data)
    labels = sorted({row["label"] for row in rows})
    extra: dict[str, Any] = {"temperature": 0, "max_tokens": 16}
    system = None
    if args.list_labels:
        extra["structured_outputs"] = {"choice": labels}
        system = "Name the intent of the request. The intents are: " + ", ".join(labels) + "."
    result = asyncio.run(accuracy(args.url, args.model, rows, extra, system))
    print(json.dumps({"model": args.model, "n": len(rows), "labels": len(labels), "accuracy": round(result, 4)}))


if __name__ == "__main__":
    main()
