"""Small transports and their arguments, for tests."""

import pytest
import torch

from vllm_moe.transports import (
    EpGroup,
    TorchEpDispatchCombineConfig,
    TorchEpDispatchCombineOp,
)

BF16, F32, I32, I64, FP8 = torch.bfloat16, torch.float32, torch.int32, torch.int64, torch.float8_e4m3fn


def message(error: pytest.ExceptionInfo) -> str:
    return str(error.value)


def mori_op(group: EpGroup | None = None, **changes: object) -> TorchEpDispatchCombineOp:
    group = EpGroup() if group is None else group
    fields = {
        "data_type": BF16,
        "rank": group.rank,
        "world_size": group.world_size,
        "hidden_dim": 64,
        "scale_dim": 0,
        "scale_type_size": 0,
        "max_token_type_size": 2,
        "max_num_inp_token_per_rank": 4,
        "num_experts_per_rank": 4,
        "num_experts_per_token": 2,
    }
    return TorchEpDispatchCombineOp(TorchEpDispatchCombineConfig(**{**fields, **changes}), group)


def routing(tokens: int, topk: int = 2, dtype: torch.dtype = I32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(tokens, topk), torch.arange(tokens * topk, dtype=dtype).view(tokens, topk) % 4
