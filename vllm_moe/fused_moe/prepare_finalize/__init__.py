"""Every prepare/finalize backend, one a module."""

from vllm_moe.fused_moe.prepare_finalize.batched import BatchedPrepareAndFinalize
from vllm_moe.fused_moe.prepare_finalize.no_dp_ep import (
    MoEPrepareAndFinalizeNoDPEPModular,
    MoEPrepareAndFinalizeNoDPEPMonolithic,
    make_moe_prepare_and_finalize_no_dp_ep,
)

__all__ = [
    "BatchedPrepareAndFinalize",
    "MoEPrepareAndFinalizeNoDPEPModular",
    "MoEPrepareAndFinalizeNoDPEPMonolithic",
    "make_moe_prepare_and_finalize_no_dp_ep",
]
