"""What a Mixture-of-Experts layer is: its sizes, its place among the ranks, its quantization.

Names follow vLLM's ``fused_moe/config.py``; only what this package uses is here.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, NamedTuple

import torch

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

FP8_DTYPE = torch.float8_e4m3fn
"""The 8-bit floating point type: 4 exponent bits, 3 mantissa bits, largest value 448."""

_QUANT_DTYPES = (FP8_DTYPE, torch.int8)


class RoutingMethodType(IntEnum):
    """How the router turns logits into weights; the numbers are FlashInfer's, which vLLM keeps."""

    Default = 0
    """Softmax over all experts, then topk."""
    Renormalize = 1
    """Topk, then softmax over the chosen."""


class _Group(NamedTuple):
    row: int
    col: int


class GroupShape(_Group):
    """Rows and columns that share one scale; -1 means the whole extent."""

    __slots__ = ()

    PER_TENSOR: ClassVar["GroupShape"]
    PER_TOKEN: ClassVar["GroupShape"]


GroupShape.PER_TENSOR = GroupShape(-1, -1)
GroupShape.PER_TOKEN = GroupShape(1, -1)


class QuantKey(NamedTuple):
    """A quantization scheme as a comparable value, for experts to say which ones they support."""

    dtype: torch.dtype
    static: bool
    """True when the scale is known beforehand, False when it is computed from the values."""
    group_shape: GroupShape

    def __str__(self) -> str:
        names = {GroupShape.PER_TENSOR: "per tensor", GroupShape.PER_TOKEN: "per token"}
        where = names.get(self.group_shape, f"per {self.group_shape.row}x{self.group_shape.col} block")
        return f"{str(self.dtype).removeprefix('torch.')} {'static' if self.static else 'dynamic'} {where}"


@dataclass(frozen=True)
class FusedMoEQuantDesc:
    """Quantization of one tensor of the layer."""

    dtype: torch.dtype | None = None
    """The quantized type; None leaves the tensor as it is."""
    shape: GroupShape | None = None
    scale: torch.Tensor | None = None
    """float32. For activations one element, or None to compute it from values; for weights see ``make``."""


@dataclass(frozen=True)
class FusedMoEQuantConfig:
    """Quantization of the activations before each of the two matrix products, and of the two weights.

    Build one with :meth:`make`. The source of names and scale shapes is vLLM's class of the same name.
    """

    _a1: FusedMoEQuantDesc
    _a2: FusedMoEQuantDesc
    _w1: FusedMoEQuantDesc
    _w2: FusedMoEQuantDesc

    @property
    def quant_dtype(self) -> torch.dtype | None:
        """The dtype that ``prepare`` quantizes activations to; None means not at all."""
        return self._a1.dtype

    @property
    def weight_quant_dtype(self) -> torch.dtype | None:
        """The dtype of the expert weights; None means as the activations come."""
        return self._w1.dtype

    @property
    def is_quantized(self) -> bool:
        """Whether activations are quantized."""
        return self.quant_dtype is not None

    @property
    def is_per_act_token(self) -> bool:
        """Whether each token (row) has its own activation scale."""
        return self._a1.shape == GroupShape.PER_TOKEN

    @property
    def per_act_token_quant(self) -> bool:
        """The same as :attr:`is_per_act_token`, under vLLM's other name."""
        return self.is_per_act_token

    @property
    def per_out_ch_quant(self) -> bool:
        """Whether each output channel of the weights has its own scale."""
        return self._w1.shape == GroupShape.PER_TOKEN

    @property
    def is_per_tensor(self) -> bool:
        """Whether one activation scale serves a whole tensor (one expert's rows in the batched format)."""
        return self._a1.shape == GroupShape.PER_TENSOR

    @property
    def block_shape(self) -> list[int] | None:
        """``[rows, columns]`` of a weight block; activations use one row by that many columns."""
        shape = self._a1.shape
        if shape is None or shape in {GroupShape.PER_TENSOR, GroupShape.PER_TOKEN}:
            return None
        return [shape.row, shape.col]

    @property
    def is_block_quantized(self) -> bool:
        """Whether a row's columns are quantized in blocks, each with its scale."""
        return self.block_shape is not None

    @property
    def a1_scale(self) -> torch.Tensor | None:
        """The static scale of the layer's input, float32 of one element."""
        return self._a1.scale

    @property
    def a2_scale(self) -> torch.Tensor | None:
        """The static scale of the activation's output, float32 of one element."""
        return self._a2.scale

    @property
    def w1_scale(self) -> torch.Tensor | None:
        """Scales of the first weight."""
        return self._w1.scale

    @property
    def w2_scale(self) -> torch.Tensor | None:
        """Scales of the second weight."""
        return self._w2.scale

    @property
    def use_fp8_w8a8(self) -> bool:
        """Whether activations are fp8."""
        return self.quant_dtype == FP8_DTYPE

    @property
    def use_int8_w8a8(self) -> bool:
        """Whether activations are int8."""
        return self.quant_dtype == torch.int8

    @property
    def activation_key(self) -> QuantKey | None:
        """The activations' scheme as a comparable value; None when they are not quantized."""
        if self.quant_dtype is None or self._a1.shape is None:
            return None
        shape = self._a1.shape if self.block_shape is None else GroupShape(1, self._a1.shape.col)
        return QuantKey(self.quant_dtype, self.a1_scale is not None, shape)

    @property
    def weight_key(self) -> QuantKey | None:
        """The weights' scheme as a comparable value; None when they are not quantized."""
        if self._w1.dtype is None:
            return None
        return QuantKey(self._w1.dtype, True, self._w1.shape or GroupShape.PER_TENSOR)

    def scale_shape(self, max_tokens: int, hidden_dim: int) -> tuple[int, int] | None:
        """Give the shape of the float32 scale of ``[max_tokens, hidden_dim]``; None if unquantized."""
        if not self.is_quantized:
            return None
        if self.block_shape is not None:
            return (max_tokens, -(-hidden_dim // self.block_shape[1]))
        return (max_tokens, 1) if self.is_per_act_token else (1, 1)

    def batched_scale_shape(
        self, num_experts: int, max_tokens: int, hidden_dim: int
    ) -> tuple[int, int, int] | None:
        """Give the shape of the scale of ``[num_experts, max_tokens, hidden_dim]``; None if unquantized."""
        shape = self.scale_shape(max_tokens, hidden_dim)
        return None if shape is None else (num_experts, *shape)

    @staticmethod
    def make(
        quant_dtype: torch.dtype | None = None,
        per_act_token_quant: bool = False,
        per_out_ch_quant: bool = False,
        block_shape: list[int] | None = None,
        w1_scale: torch.Tensor | None = None,
        w2_scale: torch.Tensor | None = None,
        a1_scale: torch.Tensor | None = None,
        a2_scale: torch.Tensor | None = None,
        weight_dtype: torch.dtype | None = None,
    ) -> "FusedMoEQuantConfig":
        """Build a configuration from flags, as vLLM's method of this name does.

        - ``quant_dtype``: ``torch.float8_e4m3fn``, ``torch.int8``, or None for unquantized activations.
        - ``per_act_token_quant``: one activation scale a token; otherwise one a tensor, unless
          ``block_shape``.
        - ``per_out_ch_quant``: one weight scale an output channel, ``[experts, out, 1]``.
        - ``block_shape``: ``[rows, columns]`` of a weight block; the activations then have one scale for
          each ``columns`` consecutive elements of a row. Weight scales are ``[experts, out / rows, in /
          columns]``.
        - ``w1_scale``, ``w2_scale``: weight scales, float32; per tensor they are ``[experts]`` or
          ``[experts, 1, 1]``.
        - ``a1_scale``, ``a2_scale``: static activation scales of one element; None computes them from the
          values.
        - ``weight_dtype``: the weights' dtype if it differs from ``quant_dtype``.

        Raises ValueError for a combination that means nothing.
        """
        if quant_dtype is not None and quant_dtype not in _QUANT_DTYPES:
            raise ValueError(
                f"FusedMoEQuantConfig: activations cannot be quantized to {quant_dtype}, expected one of "
                f"{', '.join(str(dtype) for dtype in _QUANT_DTYPES)} or None."
            )
        if block_shape is not None and (per_act_token_quant or per_out_ch_quant):
            raise ValueError(
                f"FusedMoEQuantConfig: block_shape={block_shape} already says which elements share a "
                "scale. Leave per_act_token_quant and per_out_ch_quant False, or block_shape None."
            )
        if block_shape is not None and (len(block_shape) != 2 or min(block_shape) < 1):
            raise ValueError(
                f"FusedMoEQuantConfig: block_shape is {block_shape}, expected [rows, columns], both >= 1."
            )
        dynamic_only = per_act_token_quant or block_shape is not None
        for name, scale in (("a1_scale", a1_scale), ("a2_scale", a2_scale)):
            if scale is None:
                continue
            if quant_dtype is None:
                raise ValueError(
                    f"FusedMoEQuantConfig: {name} is given, but quant_dtype is None. Leave one out."
                )
            if dynamic_only:
                raise ValueError(
                    f"FusedMoEQuantConfig: {name} is given, but per token and per block scales are "
                    f"computed from the values. Leave {name} out."
                )
            if scale.numel() != 1 or scale.dtype != torch.float32:
                raise ValueError(
                    f"FusedMoEQuantConfig: {name} is {scale.dtype} of shape {tuple(scale.shape)}, expected "
                    "torch.float32 of one element (one static scale for the whole tensor)."
                )
        a_shape: GroupShape | None = None
        w_shape: GroupShape | None = None
        if block_shape is not None:
            a_shape = w_shape = GroupShape(block_shape[0], block_shape[1])
        else:
            if quant_dtype is not None:
                a_shape = GroupShape.PER_TOKEN if per_act_token_quant else GroupShape.PER_TENSOR
            if per_out_ch_quant:
                w_shape = GroupShape.PER_TOKEN
        weight_dtype = quant_dtype if weight_dtype is None else weight_dtype
        return FusedMoEQuantConfig(
            _a1=FusedMoEQuantDesc(quant_dtype, a_shape, a1_scale),
            _a2=FusedMoEQuantDesc(quant_dtype, a_shape, a2_scale),
            _w1=FusedMoEQuantDesc(weight_dtype, w_shape, w1_scale),
            _w2=FusedMoEQuantDesc(weight_dtype, w_shape, w2_scale),
        )


FUSED_MOE_UNQUANTIZED_CONFIG = FusedMoEQuantConfig.make()
"""Nothing is quantized."""


def fp8_w8a8_moe_quant_config(
    w1_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    a1_scale: torch.Tensor | None = None,
    a2_scale: torch.Tensor | None = None,
    per_act_token_quant: bool = False,
    per_out_ch_quant: bool = False,
    block_shape: list[int] | None = None,
) -> FusedMoEQuantConfig:
    """fp8 activations and fp8 weights; see :meth:`FusedMoEQuantConfig.make` for the arguments."""
    return FusedMoEQuantConfig.make(
        FP8_DTYPE,
        per_act_token_quant=per_act_token_quant,
        per_out_ch_quant=per_out_ch_quant,
        block_shape=block_shape,
        w1_scale=w1_scale,
        w2_scale=w2_scale,
        a1_scale=a1_scale,
        a2_scale=a2_scale,
    )


def int8_w8a8_moe_quant_config(
    w1_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    per_act_token_quant: bool = True,
) -> FusedMoEQuantConfig:
    """int8 activations and int8 weights; see :meth:`FusedMoEQuantConfig.make` for the arguments."""
    return FusedMoEQuantConfig.make(
        torch.int8,
        per_act_token_quant=per_act_token_quant,
        w1_scale=w1_scale,
        w2_scale=w2_scale,
    )


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
