"""Quantities as Kubernetes writes them: `500m` processors, `6Gi` of memory."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$"
_FACTORS = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    "k": Decimal(1000),
    **{f"{unit}i": Decimal(1024**power) for power, unit in enumerate("KMGTPE", 1)},
    **{unit: Decimal(1000**power) for power, unit in enumerate("MGTPE", 2)},
}


def _written(told: object) -> object:
    # YAML reads `cpu: 2` as a number.
    return f"{told:g}" if isinstance(told, int | float) and not isinstance(told, bool) else told


Quantity = Annotated[
    str,
    Field(pattern=QUANTITY),
    BeforeValidator(_written),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": QUANTITY}, {"type": "number"}], "examples": ["500m", "6Gi"]}),
]


def amount(quantity: str) -> Decimal:
    """Return a quantity in its unit (bytes, processors); raises ValueError for what is none."""
    if not (found := re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", quantity)) or not re.match(QUANTITY, quantity):
        raise ValueError(f"{quantity!r} is no quantity, such as 500m or 6Gi")
    return Decimal(found[1]) * _FACTORS[found[2]]


def gib(count: int) -> str:
    """Return bytes as people read them."""
    return f"{count / 2**30:.1f} GiB"
