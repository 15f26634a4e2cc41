"""What a Mixture-of-Experts layer is: its sizes, its place among the ranks, its quantization.

Names follow vLLM's ``fused_moe/config.py``; only what this package uses is here.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch

from vllm_moe.fused_moe._quant_config import (
    FP8_DTYPE,
    FUSED_MOE_UNQUANTIZED_CONFIG,
    FusedMoEQuantConfig,
    FusedMoEQuantDesc,
    GroupShape,
    QuantKey,
    fp8_w8a8_moe_quant_config,
    int8_w8a8_moe_quant_config,
)
from vllm_moe.fused_moe.activation import MoEActivation

__all__ = [
    "FP8_DTYPE",
    "FUSED_MOE_UNQUANTIZED_CONFIG",
    "FusedMoEConfig",
    "FusedMoEParallelConfig",
    "FusedMoEQuantConfig",
    "FusedMoEQuantDesc",
    "GroupShape",
    "QuantKey",
    "RoutingMethodType",
    "fp8_w8a8_moe_quant_config",
    "int8_w8a8_moe_quant_config",
]


class RoutingMethodType(IntEnum):
    """How the router turns logits into weights; the numbers are FlashInfer's, which vLLM keeps."""

    Default = 0
    """Softmax over all experts, then topk."""
    Renormalize = 1
    """Topk, then softmax over the chosen."""


@dataclass
class FusedMoEParallelConfig:
    """Sizes and ranks of the parallel groups (tensor, prefill-context, data, expert), and the backend.

    With ``use_ep`` the tensor-parallel ranks are folded into the expert-parallel group: ``tp_size`` is then
    1 and ``ep_size`` counts every device.
    """

    tp_size: int
    pcp_size: int
    dp_size: int
    ep_size: int
    tp_rank: int
    pcp_rank: int
    dp_rank: int
    ep_rank: int
    sp_size: int
    use_ep: bool
    all2all_backend: str
    enable_eplb: bool

    @property
    def is_sequence_parallel(self) -> bool:
        """Whether tokens are split over the tensor-parallel ranks outside the experts."""
        return self.sp_size > 1

    @property
    def use_all2all_kernels(self) -> bool:
        """Whether tokens travel between ranks: data parallel attention over expert parallel experts."""
        return self.dp_size > 1 and self.use_ep

    @property
    def use_deepep_ht_kernels(self) -> bool:
        """Whether DeepEP's high-throughput kernels carry the tokens."""
        return self.use_all2all_kernels and self.all2all_backend == "deepep_high_throughput"

    @property
    def use_deepep_ll_kernels(self) -> bool:
        """Whether DeepEP's low-latency kernels carry the tokens."""
        return self.use_all2all_kernels and self.all2all_backend == "deepep_low_latency"

    @property
    def use_fi_nvl_two_sided_kernels(self) -> bool:
        """Whether FlashInfer's two-sided NVLink kernels carry the tokens (two spellings, as in vLLM)."""
        return self.use_all2all_kernels and self.all2all_backend in {
            "flashinfer_all2allv",
            "flashinfer_nvlink_two_sided",
        }

    @property
    def use_fi_nvl_one_sided_kernels(self) -> bool:
        """Whether FlashInfer's one-sided NVLink kernels carry the tokens."""
        return self.use_all2all_kernels and self.all2all_backend == "flashinfer_nvlink_one_sided"

    @property
    def use_ag_rs_all2all_kernels(self) -> bool:
        """Whether an allgather and a reduce-scatter carry the tokens."""
        return self.use_all2all_kernels and self.all2all_backend == "allgather_reducescatter"

    @property
    def use_mori_kernels(self) -> bool:
        """Whether MoRI's kernels carry the tokens."""
        return self.use_all2all_kernels and self.all2all_backend == "mori"

    @property
    def use_nixl_ep_kernels(self) -> bool:
        """Whether NIXL EP's kernels carry the tokens."""
        return self.use_all2all_kernels and self.all2all_backend == "nixl_ep"

    @property
    def use_batched_activation_format(self) -> bool:
        """Whether experts get ``[experts, tokens, hidden]`` rather than ``[tokens, hidden]``."""
        return self.use_deepep_ll_kernels or self.use_nixl_ep_kernels

    @property
    def needs_round_robin_routing_tables(self) -> bool:
        """Whether a round-robin placement has to be spelled out to the backend as tables."""
        return self.use_deepep_ll_kernels or self.use_nixl_ep_kernels

    @classmethod
    def make(
        cls,
        tp_size_: int,
        pcp_size_: int,
        dp_size_: int,
        sp_size_: int,
        *,
        rank: int,
        enable_expert_parallel: bool,
        all2all_backend: str = "allgather_reducescatter",
        enable_eplb: bool = False,
    ) -> "FusedMoEParallelConfig":
        """Place global ``rank`` in a grid of ``dp_size_ x pcp_size_ x tp_size_`` devices, tp varying fastest.

        Without expert parallelism the experts' weights are cut over all devices (``tp_size`` is then their
        number); with it, whole experts are dealt out to them (``ep_size`` is their number). vLLM reads the
        rank and the switches from its own global state; here they are arguments.

        Raises ValueError when ``rank`` is outside the grid.
        """
        world = dp_size_ * pcp_size_ * tp_size_
        if not 0 <= rank < world:
            raise ValueError(
                f"FusedMoEParallelConfig: rank {rank} is outside the grid of dp {dp_size_} x pcp "
                f"{pcp_size_} x tp {tp_size_}, which has ranks 0 to {world - 1}."
            )
        use_ep = enable_expert_parallel and world > 1
        return cls(
            tp_size=1 if use_ep else world,
            pcp_size=pcp_size_,
            dp_size=dp_size_,
            ep_size=world if use_ep else 1,
            tp_rank=0 if use_ep else rank,
            pcp_rank=rank // tp_size_ % pcp_size_,
            dp_rank=rank // (tp_size_ * pcp_size_),
            ep_rank=rank if use_ep else 0,
            sp_size=sp_size_,
            use_ep=use_ep,
            all2all_backend=all2all_backend,
            enable_eplb=enable_eplb,
        )

    @classmethod
    def make_no_parallel(cls) -> "FusedMoEParallelConfig":
        """One rank that holds everything."""
        return cls.make(1, 1, 1, 1, rank=0, enable_expert_parallel=False)


@dataclass
class FusedMoEConfig:
    """Sizes, dtypes and parallel layout of one layer.

    Raises ValueError at construction when a size is not positive or there are more local experts than
    experts.
    """

    num_experts: int
    """Physical experts over all ranks (logical ones plus redundant copies)."""
    experts_per_token: int
    hidden_dim: int
    intermediate_size_per_partition: int
    num_local_experts: int
    num_logical_experts: int
    activation: MoEActivation
    device: torch.device | str
    routing_method: RoutingMethodType
    moe_parallel_config: FusedMoEParallelConfig
    in_dtype: torch.dtype
    max_num_tokens: int = 256
    """The most tokens that one rank passes to a batched backend in one call."""

    def __post_init__(self) -> None:
        for name in (
            "num_experts",
            "experts_per_token",
            "hidden_dim",
            "intermediate_size_per_partition",
            "num_local_experts",
            "num_logical_experts",
            "max_num_tokens",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"FusedMoEConfig: {name} is {getattr(self, name)}, expected at least 1.")
        if self.num_local_experts > self.num_experts:
            raise ValueError(
                f"FusedMoEConfig: num_local_experts is {self.num_local_experts}, expected at most "
                f"num_experts, {self.num_experts}."
            )

    @property
    def tp_size(self) -> int:
        """Tensor-parallel size of the experts."""
        return self.moe_parallel_config.tp_size

    @property
    def tp_rank(self) -> int:
        """Tensor-parallel rank in the experts."""
        return self.moe_parallel_config.tp_rank

    @property
    def dp_size(self) -> int:
        """Data-parallel size."""
        return self.moe_parallel_config.dp_size

    @property
    def dp_rank(self) -> int:
        """Data-parallel rank."""
        return self.moe_parallel_config.dp_rank

    @property
    def ep_size(self) -> int:
        """Expert-parallel size: the ranks that experts are dealt out to."""
        return self.moe_parallel_config.ep_size

    @property
    def ep_rank(self) -> int:
        """Expert-parallel rank."""
        return self.moe_parallel_config.ep_rank

    @property
    def use_ep(self) -> bool:
        """Whether experts are dealt out to ranks whole."""
        return self.moe_parallel_config.use_ep
