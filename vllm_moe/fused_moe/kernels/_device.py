"""The Triton halves of the kernels, imported when the first CUDA tensor comes."""

from functools import cache
from types import ModuleType

__all__ = ["triton_gemm", "triton_rows"]


@cache
def triton_rows() -> ModuleType:
    """Give the launches of the kernels on rows; ImportError without Triton."""
    from vllm_moe.fused_moe.kernels import _triton_rows  # noqa: PLC0415 -- Triton is imported only where CUDA is

    return _triton_rows


@cache
def triton_gemm() -> ModuleType:
    """Give the launches of the experts' kernels; ImportError without Triton."""
    from vllm_moe.fused_moe.kernels import _triton_gemm  # noqa: PLC0415 -- Triton is imported only where CUDA is

    return _triton_gemm
