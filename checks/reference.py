"""What dispatch, experts and combine have to amount to, in float64 and without any of the backend's code.

An expert of the reference multiplies a row by a factor of its own, so that whatever is lost, doubled, or sent to the
wrong expert shows in the output.
"""

from collections import Counter

import torch

from checks._package import STATIC_SCALE
from checks.cases import Case, Inputs, hosted_experts, placement_tables

__all__ = [
    "allowed_error",
    "dense_output",
    "dequantized",
    "expected_counts",
    "factors",
    "gains",
    "quantization_error",
    "received_pairs",
    "worst",
]

_FP8_LIMIT = 448.0
_INT8_LIMIT = 127.0
_BLOCK = 128


def factors(num_experts: int) -> torch.Tensor:
    """What each expert multiplies by: float64 ``[num_experts]``, exact in bf16 for up to 100 experts."""
    return 0.5 + 0.375 * torch.arange(num_experts, dtype=torch.float64)


def gains(case: Case, given: Inputs) -> torch.Tensor:
    """What a token is multiplied by altogether: float64 ``[tokens]``, 0 where it has no expert."""
    routed = given.ids >= 0
    each = factors(case.num_experts)[given.ids.long().clamp(min=0)]
    return torch.where(routed, given.weights.double() * each, 0.0).sum(dim=1)


def dense_output(case: Case, given: Inputs) -> torch.Tensor:
    """The layer's output for a rank's tokens, float64 ``[tokens, hidden]``."""
    routed = (given.ids >= 0).any(dim=1, keepdim=True)
    return gains(case, given).unsqueeze(1) * torch.where(routed, given.a1.double(), 0.0)


def _scale(case: Case, x: torch.Tensor, everyone: list[torch.Tensor]) -> torch.Tensor:
    """The largest scale that an element of ``x`` can be quantized with, broadcastable to it."""
    limit = _INT8_LIMIT if case.quantization.startswith("int8") else _FP8_LIMIT
    shared_by = case.quantization.partition("_")[2]
    if shared_by == "static":
        return torch.full((1, 1), STATIC_SCALE, dtype=torch.float64)
    if shared_by == "token":
        return x.abs().amax(dim=1, keepdim=True) / limit
    if shared_by == "block":
        blocks = x.view(x.size(0), x.size(1) // _BLOCK, _BLOCK)
        return (blocks.abs().amax(dim=2) / limit).repeat_interleave(_BLOCK, dim=1)
    amax = max((float(one.abs().max()) for one in everyone if one.numel()), default=0.0)
    return torch.full((1, 1), amax / limit, dtype=torch.float64)


def quantization_error(case: Case, x: torch.Tensor, everyone: list[torch.Tensor]) -> torch.Tensor:
    """How far quantizing may move each element of ``x`` float64 ``[rows, hidden]``; zeros when nothing is quantized.

    fp8 e4m3 rounds by at most 2^-4 of a value, or 2^-10 of the scale where values are subnormal; int8 by half a scale.
    """
    if case.quantization == "none" or case.defer or not x.numel():
        return torch.zeros_like(x)
    scale = _scale(case, x, everyone)
    if case.quantization.startswith("int8"):
        return (scale * 0.505).expand_as(x)
    return x.abs() * (2.0**-4 * 1.01) + scale * 2.0**-10


def allowed_error(case: Case, given: Inputs, everyone: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """How far each output element may be from :func:`dense_output`.

    A row is quantized once, and rounded to the activations' dtype up to four times on its way: as weighted input,
    times its expert's factor, after the sum on a rank, after the sum over ranks. ``everyone`` are all ranks'
    activations, float64, since a computed scale may be shared by them.
    """
    exact = dense_output(case, given)
    routed = (given.ids >= 0).any(dim=1, keepdim=True)
    x = torch.where(routed, given.a1.double(), 0.0)
    if case.weight_on_input:
        # The largest weight, 1.25, may enter a scale that rows share.
        everyone = [1.25 * one for one in everyone]
    off = quantization_error(case, x, everyone)
    rounding = 4.1 * torch.finfo(dtype).eps / 2
    return gains(case, given).unsqueeze(1) * off + exact.abs() * rounding + 1e-9


def worst(found: torch.Tensor, expected: torch.Tensor, allowed: torch.Tensor) -> tuple[float, str]:
    """The largest error in units of what is allowed (at most 1 is right), and which element it is, in words."""
    if not expected.numel():
        return 0.0, "nothing to compare"
    found = found.detach().to("cpu", torch.float64)
    ratio = ((found - expected).abs() / allowed).nan_to_num(nan=torch.inf)
    flat = int(ratio.argmax())
    index = tuple(int(part) for part in torch.unravel_index(torch.tensor(flat), ratio.shape))
    return float(ratio.flatten()[flat]), (
        f"worst element {list(index)}: found {float(found[index]):.6g}, expected {float(expected[index]):.6g} "
        f"to within {float(allowed[index]):.2g}"
    )


def dequantized(rows: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """float64 values of what ``prepare`` gave; scales of a row cover equal parts of it."""
    values = rows.to(torch.float64)
    if scale is None:
        return values
    wide = scale.to(torch.float64)
    if wide.dim() and wide.size(-1) > 1:
        wide = wide.repeat_interleave(-(-values.size(-1) // wide.size(-1)), dim=-1)[..., : values.size(-1)]
    return values * wide


def expected_counts(case: Case, rank: int, world_size: int, all_inputs: list[Inputs], *, merged: bool) -> list[int]:
    """Rows for each local expert from all ranks, by brute force; ``merged`` counts a token once for an expert."""
    counts = dict.fromkeys(range(len(hosted_experts(case, rank, world_size))), 0)
    local_ids = placement_tables(case, rank, world_size)[0].tolist()
    place = {expert: local for expert, local in enumerate(local_ids) if local >= 0}
    for given in all_inputs:
        for row in given.ids.tolist():
            for expert in set(row) if merged else row:
                if expert in place:
                    counts[place[expert]] += 1
    return list(counts.values())


def received_pairs(rows: torch.Tensor, experts: list[list[int]]) -> Counter[tuple[bytes, int]]:
    """Each row's bytes with each expert it is for: what makes a token and an expert a pair, whatever the order."""
    raw = rows.detach().cpu().contiguous().view(-1).view(torch.uint8)
    raw = raw.view(rows.size(0), rows.size(1) * rows.element_size())
    pairs: Counter[tuple[bytes, int]] = Counter()
    for row, its_experts in zip(raw, experts, strict=True):
        key = bytes(row.tolist()) if its_experts else b""
        for expert in its_experts:
            pairs[key, expert] += 1
    return pairs
