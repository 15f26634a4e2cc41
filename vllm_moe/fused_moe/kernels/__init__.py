"""Kernels of the layer: each ``f`` is Triton on CUDA tensors, and ``f_torch`` beside it the same in torch.

On the device none waits for the host, so every one can be captured in a CUDA graph, and each gives the same
bits for the same input: rows are placed by counting, not by atomics, and added up in a fixed order.
"""

from vllm_moe.fused_moe.kernels.batched import batched_prepare, batched_prepare_torch
from vllm_moe.fused_moe.kernels.grouped import grouped_mlp, grouped_mlp_torch
from vllm_moe.fused_moe.kernels.permute import permute_tokens, permute_tokens_torch
from vllm_moe.fused_moe.kernels.quantize import (
    QuantKind,
    QuantScheme,
    dequantize,
    quantize_rows,
    quantize_rows_torch,
    quantize_scheme,
)
from vllm_moe.fused_moe.kernels.reduce import (
    batched_finalize,
    batched_finalize_torch,
    combine_rows,
    combine_rows_torch,
    weight_and_reduce,
    weight_and_reduce_torch,
)
from vllm_moe.fused_moe.kernels.routing import (
    ExpertPlacement,
    count_expert_num_tokens,
    count_expert_num_tokens_torch,
    route,
    route_torch,
)

__all__ = [
    "ExpertPlacement",
    "QuantKind",
    "QuantScheme",
    "batched_finalize",
    "batched_finalize_torch",
    "batched_prepare",
    "batched_prepare_torch",
    "combine_rows",
    "combine_rows_torch",
    "count_expert_num_tokens",
    "count_expert_num_tokens_torch",
    "dequantize",
    "grouped_mlp",
    "grouped_mlp_torch",
    "permute_tokens",
    "permute_tokens_torch",
    "quantize_rows",
    "quantize_rows_torch",
    "quantize_scheme",
    "route",
    "route_torch",
    "weight_and_reduce",
    "weight_and_reduce_torch",
]
