"""What the layer should compute, written for plainness: Python loops and float64."""

import math
from collections.abc import Callable, Sequence

import torch

__all__ = [
    "E4M3_STEP",
    "FakeQuantization",
    "combine",
    "dense_moe",
    "expert_rows",
    "fp8_values",
    "quantization_error_bound",
    "relative_error",
]

E4M3_STEP = 2.0**-3
"""Relative distance of neighbouring e4m3 values just above a power of two: 3 mantissa bits."""


def expert_rows(topk_ids: torch.Tensor, local_of: Callable[[int], int | None], local: int) -> list[list[int]]:
    """Tokens that each local expert gets, in token order; a token that names it twice comes once."""
    rows: list[list[int]] = [[] for _ in range(local)]
    for token, named in enumerate(topk_ids.tolist()):
        here = {local_of(expert) for expert in named if expert >= 0}
        for expert in sorted(one for one in here if one is not None):
            rows[expert].append(token)
    return rows


def combine(
    rows_of: Callable[[int, int], torch.Tensor | None],
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor | None,
    hidden: int,
) -> torch.Tensor:
    """Sum of the rows of each token's slots, weighted, float64 ``[tokens, hidden]``.

    ``rows_of(token, k)`` is the row of a slot, or None where there is none.
    """
    tokens, topk = topk_ids.shape
    output = torch.zeros(tokens, hidden, dtype=torch.float64)
    for token in range(tokens):
        for k in range(topk):
            row = rows_of(token, k)
            if row is not None:
                weight = 1.0 if topk_weights is None else float(topk_weights[token, k])
                output[token] += weight * row.double()
    return output


def _activate(activation: str, values: torch.Tensor) -> torch.Tensor:
    half = values.size(-1) // 2
    if activation == "silu":
        return torch.nn.functional.silu(values[..., :half]) * values[..., half:]
    if activation == "gelu":
        return torch.nn.functional.gelu(values[..., :half]) * values[..., half:]
    if activation == "silu_no_mul":
        return torch.nn.functional.silu(values)
    if activation == "gelu_no_mul":
        return torch.nn.functional.gelu(values)
    assert activation == "relu2_no_mul"
    return torch.relu(values) ** 2


def _as_it_is(expert: int, row: torch.Tensor) -> torch.Tensor:
    return row


def dense_moe(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str = "silu",
    *,
    weights_on_input: bool = False,
    local: Sequence[int] | None = None,
    on_input: Callable[[int, torch.Tensor], torch.Tensor] = _as_it_is,
    on_middle: Callable[[int, torch.Tensor], torch.Tensor] = _as_it_is,
) -> torch.Tensor:
    """Compute the whole layer in float64, ``[tokens, hidden]``, one token and slot after the other.

    ``w1`` ``[experts, n, hidden]`` and ``w2`` ``[experts, hidden, n']`` hold all experts; ``local`` names
    those that take part (all if None). Ids below zero take no part. ``on_input`` and ``on_middle`` may round
    an expert's row before each of the two products.
    """
    w1, w2 = w1.double(), w2.double()
    output = torch.zeros(hidden_states.shape, dtype=torch.float64)
    for token, named in enumerate(topk_ids.tolist()):
        for k, expert in enumerate(named):
            if expert < 0 or (local is not None and expert not in local):
                continue
            weight = float(topk_weights[token, k])
            row = on_input(expert, hidden_states[token].double() * (weight if weights_on_input else 1.0))
            row = on_middle(expert, _activate(activation, w1[expert] @ row))
            row = w2[expert] @ row
            output[token] += row if weights_on_input else weight * row
    return output


class FakeQuantization:
    """Rounds rows as a quantization does, in float64, for ``dense_moe``; all scales by their definition.

    ``static`` are the two scales where they are given. A computed scale that several rows share is known
    only once all of them were seen, so the layer is computed three times, to find the first scale, the
    second, and the result. ``shared`` says which rows share: those of an expert (``lambda expert: expert``),
    or all.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        how: str,
        shared: Callable[[int], int],
        static: tuple[float, float] | None = None,
    ) -> None:
        self.dtype = dtype
        self.how = how
        self.shared = shared
        self.static = static
        self._finding = 2
        self._amax: dict[tuple[int, int], float] = {}

    def moe(self, *arguments: object, **options: object) -> torch.Tensor:
        """Compute ``dense_moe`` with rows rounded before both products."""
        self._amax = {}
        output = torch.empty(0)
        for finding in (0, 1, 2) if self.how == "tensor" and self.static is None else (2,):
            self._finding = finding
            output = dense_moe(
                *arguments,
                **options,
                on_input=lambda expert, row: self._round(0, expert, row),
                on_middle=lambda expert, row: self._round(1, expert, row),
            )
        return output

    def _round(self, which: int, expert: int, row: torch.Tensor) -> torch.Tensor:
        limit = 127.0 if self.dtype is torch.int8 else 448.0
        key = (which, self.shared(expert))
        if which == self._finding:
            self._amax[key] = max(self._amax.get(key, 0.0), float(row.abs().amax()))
        if which >= self._finding:
            return row
        if self.static is not None:
            scale = torch.tensor(self.static[which], dtype=torch.float64)
        elif self.how == "block":
            scale = torch.cat([block.abs().amax().expand(block.shape) for block in row.split(128)]) / limit
        elif self.how == "token":
            scale = row.abs().amax() / limit
        else:
            scale = torch.tensor(self._amax[key] / limit, dtype=torch.float64)
        scaled = (row / scale.clamp(min=1e-30)).clamp(-limit, limit)
        rounded = scaled.round() if self.dtype is torch.int8 else scaled.to(self.dtype).double()
        return rounded * scale


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was expected; infinite when something is not a number."""
    found, expected = found.double().cpu(), expected.double().cpu()
    if not expected.numel():
        return 0.0
    error = ((found - expected).norm() / expected.norm().clamp(min=1e-300)).item()
    return error if math.isfinite(error) else math.inf


def fp8_values() -> torch.Tensor:
    """Every finite e4m3 value, ascending, float64."""
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    return values[values.isfinite()].unique()


def quantization_error_bound(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Give the most that rounding to nearest may move each of ``values`` under ``scale``, float64.

    A hair (1e-5 of a step) is left for float32 scales. Rounding the wrong way moves some value by twice as
    much.
    """
    scaled = (values.double() / scale.double()).abs()
    if dtype is torch.int8:
        step = torch.ones_like(scaled)
    else:
        # Steps double at each power of two, and stay at 2^-9 below the smallest normal value, 2^-6.
        step = torch.exp2(scaled.clamp(min=2.0**-6).log2().floor()) * E4M3_STEP
    return (step / 2 + scaled * 1e-5) * scale.double()
