"""Which of several equal replicas most likely holds a prompt's prefix, and the adapter, in its cache.

A prompt is cut into blocks, each known by the hash of all up to its end under its adapter: two prompts share as many blocks as
they share text. The replica that was last sent the longest run of them comes first; else rendezvous hashing of adapter and first
block decides, the same in every gateway. A replica takes no more than its bounded share of what is in flight, so that a prefix
that everybody asks for spreads (consistent hashing with bounded loads, Mirrokni, Thorup and Zadimoghaddam 2018).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from cachetools import LRUCache

from targets.choice import Candidate, rendezvous

BLOCK_CHARACTERS = 512  # about eight of vLLM's blocks of 16 tokens in English, more in Chinese
MOST_BLOCKS = 64


def prefix_blocks(
    prompt: str, adapter: str | None = None, block_characters: int = BLOCK_CHARACTERS, most: int = MOST_BLOCKS
) -> tuple[bytes, ...]:
    """Return the chained hashes of a prompt's whole blocks, shortest prefix first; a prompt shorter than a block is one block.

    The engine's caches are by adapter, so the same text under two adapters shares nothing.
    """
    head = hashlib.blake2b(digest_size=8, person=b"prefix")
    head.update(b"\0" if adapter is None else b"\1" + adapter.encode() + b"\0")
    blocks: list[bytes] = []
    whole = max(len(prompt) // block_characters, 1)
    for block in range(min(whole, most)):
        part = prompt[block * block_characters : (block + 1) * block_characters]
        head.update(part.encode("utf-8", "surrogatepass"))
        blocks.append(head.digest())
    return tuple(blocks)


def room(candidate: Candidate, candidates: Sequence[Candidate], bound: float, free: int) -> bool:
    """Whether a candidate may take one request more: at most `bound` times its share by weight, or `free`, are in flight then."""
    weights = sum(other.weight for other in candidates if other.healthy)
    if not weights:
        return True
    total = sum(other.in_flight for other in candidates if other.healthy) + 1
    return candidate.in_flight < max(free, math.ceil(bound * total * candidate.weight / weights))


class PrefixAffinity:
    """Remembers which replica was sent which prefix.

    `bound` is 1 or more: how much over its share a replica may be loaded; `free` requests each are always allowed, since a few
    more in a batch cost next to nothing. `remembered` blocks are kept, the least lately used forgotten. Raises ValueError.
    """

    def __init__(self, bound: float = 1.25, free: int = 4, remembered: int = 100_000) -> None:
        if bound < 1 or free < 0 or remembered < 1:
            raise ValueError("affinity needs a bound of 1 or more, free of 0 or more, and at least 1 remembered block")
        self._bound, self._free = bound, free
        self._sent: LRUCache[bytes, str] = LRUCache(remembered)

    def order(self, candidates: Sequence[Candidate], blocks: Sequence[bytes]) -> list[Candidate]:
        """Return the replicas with room before those without, healthy ones first; `blocks` are those of `prefix_blocks`."""
        holder = next((name for block in reversed(blocks) if (name := self._sent.get(block)) is not None), None)
        key = blocks[0].hex() if blocks else ""

        def rank(candidate: Candidate) -> tuple[bool, bool, bool, float]:
            full = not room(candidate, candidates, self._bound, self._free)
            # Full replicas go by load: the prefix's own is the last that should take more.
            liking = rendezvous(key, candidate.name, candidate.weight)
            held = candidate.name == holder
            return not candidate.healthy, full, not held, candidate.in_flight if full else -liking

        return sorted(candidates, key=rank)

    def sent(self, name: str, blocks: Sequence[bytes]) -> None:
        """Remember that a replica was sent a prompt: once it has answered, it holds the prompt's prefix."""
        for block in blocks:
            self._sent[block] = name

    def forget(self, name: str) -> None:
        """Forget a replica that went away or began anew: its cache is empty."""
        for block in [block for block, holder in self._sent.items() if holder == name]:
            del self._sent[block]
