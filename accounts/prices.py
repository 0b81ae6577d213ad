"""What tokens cost: exact decimal prices a million tokens, and costs in whole millionths of the currency.

A price of X a million tokens is X micros a token, so a cost is a sum of products. It is rounded up, once a request: a request is
never free because it is small, and is charged at most one micro too much.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, localcontext

MICROS = 1_000_000


@dataclass(frozen=True)
class Price:
    """Prices of a million tokens; give decimals as text or Decimal, never as float."""

    prompt: Decimal = Decimal(0)
    completion: Decimal = Decimal(0)
    cached: Decimal | None = None
    """Of prompt tokens that were in the engine's prefix cache; None: as the others."""
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in ("prompt", "completion", "cached"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Decimal) and value.is_finite() and value >= 0):
                raise ValueError(f"the price {name!r} is a Decimal that is not negative, not {value!r}")

    def micros(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> int:
        """Return the cost in micros; `cached_tokens` are among `prompt_tokens`. Raises ValueError for counts that cannot be."""
        if not 0 <= cached_tokens <= prompt_tokens or completion_tokens < 0:
            raise ValueError(f"{cached_tokens} cached of {prompt_tokens} prompt tokens, {completion_tokens} completion tokens")
        cached = self.prompt if self.cached is None else self.cached
        with localcontext(prec=60):
            cost = self.prompt * (prompt_tokens - cached_tokens) + cached * cached_tokens + self.completion * completion_tokens
            return int(cost.to_integral_value(ROUND_CEILING))


def micros_of(amount: Decimal) -> int:
    """Return an amount of the currency, such as a budget, in micros; raises ValueError for what is negative or no number."""
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"an amount is a number that is not negative, not {amount}")
    with localcontext(prec=60):
        return int((amount * MICROS).to_integral_value(ROUND_CEILING))


def shown(micros: int) -> str:
    """Return micros as an amount with six places: 1500000 is 1.500000."""
    sign = "-" if micros < 0 else ""
    return f"{sign}{abs(micros) // MICROS}.{abs(micros) % MICROS:06d}"
