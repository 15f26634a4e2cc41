"""What backends that dispatch have in common: where to quantize, which slots are ours, what to refuse."""

from dataclasses import dataclass

import torch

import vllm_moe.fused_moe.modular_kernel as mk
from vllm_moe.fused_moe.config import FP8_DTYPE, FusedMoEQuantConfig
from vllm_moe.fused_moe.kernels.quantize import (
    UNQUANTIZED,
    QuantKind,
    QuantScheme,
    quantize_rows,
    quantize_scheme,
    quantize_with_scale,
    scale_from_amax,
)
from vllm_moe.fused_moe.topk_weight_and_reduce import (
    TopKWeightAndReduceContiguous,
    TopKWeightAndReduceDelegate,
)
from vllm_moe.fused_moe.utils import validate_topk, weigh_input

__all__ = [
    "DispatchQuantization",
    "check_activations",
    "check_capacity",
    "is_fp8_block128",
    "keep_own_slots",
    "quantize_batched",
    "reduce_rows",
    "refuse_ids_out_of_range",
    "routed_input",
    "somewhere_valid",
]

_BLOCK = 128


def routed_input(
    where: str,
    a1: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    apply_router_weight_on_input: bool,
) -> torch.Tensor:
    """``a1``, times its router weight if that is asked for; always out of place.

    Raises ValueError or TypeError when the shapes or dtypes do not fit, or there is more than one weight a
    row.
    """
    validate_topk(where, a1, topk_weights, topk_ids)
    return weigh_input(where, a1, topk_weights) if apply_router_weight_on_input else a1


def check_activations(where: str, a1: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise ValueError when the transport cannot carry ``a1``'s dtype."""
    if a1.dtype not in dtypes:
        names = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(
            f"{where}: a1 is {a1.dtype}, but its transport carries {names}. Convert the layer, or use "
            "another backend."
        )


def check_capacity(where: str, a1: torch.Tensor, max_tokens: int) -> None:
    """Raise ValueError for more tokens than the transport was made for."""
    if a1.size(0) > max_tokens:
        raise ValueError(
            f"{where}: {a1.size(0)} tokens, but the transport was made for {max_tokens} a rank. Pass fewer "
            "tokens, or "
            "make it for more."
        )


def refuse_ids_out_of_range(where: str, topk_ids: torch.Tensor, num_experts: int) -> None:
    """Raise ValueError for ids outside -1 to ``num_experts - 1``, on the CPU.

    A device would have to be waited for.
    """
    if topk_ids.device.type != "cpu" or topk_ids.numel() == 0:
        return
    low, high = (int(bound) for bound in topk_ids.to(torch.int64).aminmax())
    if low < -1 or high >= num_experts:
        raise ValueError(
            f"{where}: topk_ids holds {high if high >= num_experts else low}, expected -1 (no expert) or an "
            "id from 0 "
            f"to {num_experts - 1}. Check the router and the table that maps its ids."
        )


def is_fp8_block128(quant_config: FusedMoEQuantConfig) -> bool:
    """Whether activations are fp8 with a scale for 128 elements, which is what DeepEP-like kernels make."""
    shape = quant_config.block_shape
    return quant_config.quant_dtype == FP8_DTYPE and shape is not None and shape[1] == _BLOCK


@dataclass(frozen=True)
class DispatchQuantization:
    """Quantizes before the dispatch where that saves bytes and is right, and after it otherwise.

    A scale that belongs to a row travels with it, and a static one is the same on every rank. A computed
    scale for the whole tensor is neither: each rank would compute its own, so that one is computed from the
    rows received.
    """

    scheme: QuantScheme
    before: bool

    @staticmethod
    def make(
        quant_config: FusedMoEQuantConfig,
        *,
        defer_input_quant: bool,
        carries_rows: bool,
        carries_scales: bool,
    ) -> "DispatchQuantization":
        """Decide for a transport that can carry rows of the quantized dtype, and scales beside them."""
        scheme = UNQUANTIZED if defer_input_quant else quantize_scheme(quant_config)
        row_scales = scheme.kind in {QuantKind.TOKEN, QuantKind.BLOCK}
        static = scheme.kind is QuantKind.STATIC_TENSOR
        return DispatchQuantization(scheme, carries_rows and (static or (row_scales and carries_scales)))

    def send(self, a1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows to dispatch, and the scales ``[tokens, n]`` that have to travel with them, if any."""
        if not self.before:
            return a1, None
        rows, scale = quantize_rows(a1, self.scheme)
        return rows, None if self.scheme.kind is QuantKind.STATIC_TENSOR else scale

    def receive(
        self, rows: torch.Tensor, scale: torch.Tensor | None, valid: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Give what ``prepare`` returns for received rows.

        ``valid``, bool ``[rows]``, keeps padding out of a shared scale.
        """
        if not self.before:
            return quantize_rows(rows, self.scheme, valid)
        if self.scheme.static_scale is not None:
            return rows, self.scheme.static_scale.view(1, 1)
        return rows, scale


def quantize_batched(
    x: torch.Tensor, counts: torch.Tensor, quant_config: FusedMoEQuantConfig
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Quantize ``[experts, rows, hidden]``, of which expert e's first ``counts[e]`` rows hold anything.

    The scales have :meth:`FusedMoEQuantConfig.batched_scale_shape`; a computed scale per tensor is that of
    the expert's own rows, as in the batched backend.
    """
    scheme = quantize_scheme(quant_config)
    experts, rows, hidden = x.shape
    if scheme.kind is QuantKind.NONE or scheme.dtype is None:
        return x, None
    if scheme.kind is QuantKind.DYNAMIC_TENSOR:
        padding = torch.arange(rows, device=x.device) >= counts.unsqueeze(1)
        amax = x.abs().amax(dim=2).float().masked_fill(padding, 0.0).amax(dim=1)
        scale = scale_from_amax(amax, scheme.limit).view(experts, 1, 1)
        return quantize_with_scale(x, scale, scheme.dtype), scale
    flat, flat_scale = quantize_rows(x.view(-1, hidden), scheme)
    if flat_scale is not None:
        one = scheme.kind is QuantKind.STATIC_TENSOR
        flat_scale = (
            flat_scale.view(1, 1, 1).repeat(experts, 1, 1) if one else flat_scale.view(experts, rows, -1)
        )
    return flat.view(experts, rows, hidden), flat_scale


def keep_own_slots(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    first_expert: int,
    num_local_experts: int,
    valid: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Set ids to -1 and weights to 0 in slots of other ranks' experts and of rows not ``valid``."""
    own = (topk_ids >= first_expert) & (topk_ids < first_expert + num_local_experts)
    if valid is not None:
        own &= valid.unsqueeze(1)
    return torch.where(own, topk_ids, -1), torch.where(own, topk_weights, 0)


def somewhere_valid(topk_ids: torch.Tensor, home_expert: int) -> torch.Tensor:
    """Ids with an existing expert in every slot, for transports that know no -1.

    A slot of -1 repeats an expert of its row, so that the row goes nowhere else for it; a row without any
    expert goes to ``home_expert``. Whoever receives the row has to be told by other means which slots mean
    nothing.
    """
    present = topk_ids.amax(dim=1, keepdim=True)
    return torch.where(topk_ids < 0, torch.where(present < 0, home_expert, present), topk_ids)


def reduce_rows(
    weight_and_reduce_impl: mk.TopKWeightAndReduce,
    fused_expert_output: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    apply_router_weight_on_input: bool,
) -> torch.Tensor:
    """Weight and reduce the experts' output to one row for each received row, ``[rows, hidden]``."""
    if isinstance(weight_and_reduce_impl, TopKWeightAndReduceDelegate):
        weight_and_reduce_impl = TopKWeightAndReduceContiguous()
    return weight_and_reduce_impl.apply(
        None, fused_expert_output, topk_weights, topk_ids, apply_router_weight_on_input
    )
