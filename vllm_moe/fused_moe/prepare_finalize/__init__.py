"""Every prepare/finalize backend, one a module.

Those that need a vendor's library are imported on first use of their name, so that nothing but
``all2all_utils`` depends on them.
"""

import importlib
from typing import Any

from vllm_moe.fused_moe.prepare_finalize.batched import BatchedPrepareAndFinalize
from vllm_moe.fused_moe.prepare_finalize.naive_dp_ep import (
    MoEPrepareAndFinalizeNaiveDPEPModular,
    MoEPrepareAndFinalizeNaiveDPEPMonolithic,
    make_moe_prepare_and_finalize_naive_dp_ep,
)
from vllm_moe.fused_moe.prepare_finalize.no_dp_ep import (
    MoEPrepareAndFinalizeNoDPEPModular,
    MoEPrepareAndFinalizeNoDPEPMonolithic,
    make_moe_prepare_and_finalize_no_dp_ep,
)

__all__ = [
    "BatchedPrepareAndFinalize",
    "DeepEPHTPrepareAndFinalize",
    "DeepEPLLPrepareAndFinalize",
    "FlashInferNVLinkOneSidedPrepareAndFinalize",
    "FlashInferNVLinkTwoSidedPrepareAndFinalize",
    "MoEPrepareAndFinalizeNaiveDPEPModular",
    "MoEPrepareAndFinalizeNaiveDPEPMonolithic",
    "MoEPrepareAndFinalizeNoDPEPModular",
    "MoEPrepareAndFinalizeNoDPEPMonolithic",
    "MoriPrepareAndFinalize",
    "NixlEPPrepareAndFinalize",
    "make_moe_prepare_and_finalize_naive_dp_ep",
    "make_moe_prepare_and_finalize_no_dp_ep",
]

_MODULE_OF = {
    "DeepEPHTPrepareAndFinalize": "deepep_ht",
    "DeepEPLLPrepareAndFinalize": "deepep_ll",
    "FlashInferNVLinkOneSidedPrepareAndFinalize": "flashinfer_nvlink_one_sided",
    "FlashInferNVLinkTwoSidedPrepareAndFinalize": "flashinfer_nvlink_two_sided",
    "MoriPrepareAndFinalize": "mori",
    "NixlEPPrepareAndFinalize": "nixl_ep",
}


def __getattr__(name: str) -> Any:
    """Import a backend that needs a vendor's library when its class is asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
