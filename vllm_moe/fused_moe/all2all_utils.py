"""The choice of a prepare/finalize backend and of its transport (vLLM: ``fused_moe/all2all_utils.py``).

This is the only module that imports the backends which need a vendor's library. Adding a backend is adding a
row to the registry at its end.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal
from weakref import WeakKeyDictionary

import torch

from vllm_moe.fused_moe.config import (
    FP8_DTYPE,
    FUSED_MOE_UNQUANTIZED_CONFIG,
    FusedMoEConfig,
    FusedMoEParallelConfig,
    FusedMoEQuantConfig,
)
from vllm_moe.fused_moe.modular_kernel import FusedMoEPrepareAndFinalize
from vllm_moe.fused_moe.prepare_finalize._common import is_fp8_block128
from vllm_moe.fused_moe.prepare_finalize.deepep_ht import DeepEPHTPrepareAndFinalize
from vllm_moe.fused_moe.prepare_finalize.deepep_ll import DeepEPLLPrepareAndFinalize
from vllm_moe.fused_moe.prepare_finalize.flashinfer_nvlink_one_sided import (
    FlashInferNVLinkOneSidedPrepareAndFinalize,
)
from vllm_moe.fused_moe.prepare_finalize.flashinfer_nvlink_two_sided import (
    FlashInferNVLinkTwoSidedPrepareAndFinalize,
)
from vllm_moe.fused_moe.prepare_finalize.mori import MoriPrepareAndFinalize
from vllm_moe.fused_moe.prepare_finalize.naive_dp_ep import make_moe_prepare_and_finalize_naive_dp_ep
from vllm_moe.fused_moe.prepare_finalize.nixl_ep import NixlEPPrepareAndFinalize
from vllm_moe.fused_moe.prepare_finalize.no_dp_ep import make_moe_prepare_and_finalize_no_dp_ep
from vllm_moe.transports import (
    EpGroup,
    MoeAlltoAllTransport,
    TorchAllGatherReduceScatter,
    TorchDeepEpBuffer,
    TorchEpDispatchCombineConfig,
    TorchEpDispatchCombineOp,
    TorchMnnvlMoe,
    TorchMoeAlltoAll,
    TorchNixlEpBuffer,
    VendorName,
    VendorNixlEpBuffer,
    load_vendor,
    padded_top_k,
    vendor_deep_ep_buffer,
    vendor_mnnvl_transport,
    vendor_moe_alltoall,
    vendor_mori_op,
)

__all__ = [
    "all2all_backends",
    "describe_transport",
    "make_all2all_prepare_finalize",
    "maybe_make_prepare_finalize",
    "maybe_roundup_layer_hidden_size",
    "roundup_hidden_size",
]

_LOG = logging.getLogger(__name__)
_DESCRIPTIONS: WeakKeyDictionary[FusedMoEPrepareAndFinalize, str] = WeakKeyDictionary()

RoutingTables = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""``(global_to_physical, physical_to_global, local_expert_global_ids)``."""

Kind = Literal["torch", "vendor"]


@dataclass(frozen=True)
class _Request:
    """What a backend is asked for."""

    moe: FusedMoEConfig
    quant_config: FusedMoEQuantConfig
    routing_tables: RoutingTables | None
    use_monolithic: bool
    group: EpGroup
    kind: Kind = "torch"

    @property
    def vendor(self) -> bool:
        return self.kind == "vendor"

    @property
    def gpus_per_node(self) -> int:
        return torch.cuda.device_count()


@dataclass(frozen=True)
class _Backend:
    """A row of the registry."""

    name: str
    """What ``FusedMoEParallelConfig.all2all_backend`` says."""
    package: VendorName | None
    """The vendor's package; None when ``torch`` is all that it takes."""
    make: Callable[[_Request], FusedMoEPrepareAndFinalize]
    refuse: Callable[[_Request], str | None]
    """Why the sizes, dtypes or devices asked for do not fit, or None."""
    round_up: Callable[[int, torch.dtype], int]
    """The hidden size to give a layer."""
    monolithic: bool = False


def maybe_roundup_layer_hidden_size(
    hidden_size: int, act_dtype: torch.dtype, moe_parallel_config: FusedMoEParallelConfig
) -> int:
    """Give the hidden size that the layer has to have, at least ``hidden_size``; the caller pads and trims.

    Raises ValueError when the backend has nothing that large, or there is no such backend.
    """
    if not moe_parallel_config.use_all2all_kernels:
        return hidden_size
    return roundup_hidden_size(moe_parallel_config.all2all_backend, hidden_size, act_dtype)


def roundup_hidden_size(all2all_backend: str, hidden_size: int, act_dtype: torch.dtype) -> int:
    """Do the same for a backend by name, whatever the number of ranks."""
    return _find(all2all_backend).round_up(hidden_size, act_dtype)


def maybe_make_prepare_finalize(
    moe: FusedMoEConfig,
    quant_config: FusedMoEQuantConfig | None,
    routing_tables: RoutingTables | None = None,
    allow_new_interface: bool = False,
    use_monolithic: bool = False,
    ep_group: EpGroup | None = None,
) -> FusedMoEPrepareAndFinalize:
    """Build the backend that the configuration names, over the vendor's library or ``torch.distributed``.

    - ``quant_config``: None is unquantized.
    - ``routing_tables``: for round-robin placement or copies of experts, in the low-latency backends.
    - ``ep_group``: the ranks that experts are dealt out to; None is all of ``torch.distributed``'s, or this
      one alone. Its ``transport`` says which of the two may be chosen; which one was is logged, and given by
      :func:`describe_transport`.

    Without expert parallelism tokens are gathered over the data-parallel ranks, or stay where they are if
    there are none. Raises ValueError with each candidate's reason when nothing can be built, and when the
    group's size is not that of the configuration.
    """
    quant_config = FUSED_MOE_UNQUANTIZED_CONFIG if quant_config is None else quant_config
    parallel = moe.moe_parallel_config
    if not parallel.use_all2all_kernels and parallel.dp_size == 1:
        made: FusedMoEPrepareAndFinalize = make_moe_prepare_and_finalize_no_dp_ep(use_monolithic)
        return _described(made, "no transport: tokens stay on their rank")
    group = EpGroup(device=moe.device) if ep_group is None else ep_group
    expected = parallel.ep_size if parallel.use_ep else parallel.tp_size
    if group.world_size != expected:
        raise ValueError(
            f"maybe_make_prepare_finalize: the group has {_count(group.world_size, 'rank')}, but the "
            "configuration "
            "deals experts "
            f"out to {expected}. Pass the expert-parallel group (not the data- or tensor-parallel one)."
        )
    name = parallel.all2all_backend if parallel.use_all2all_kernels else "allgather_reducescatter"
    return make_all2all_prepare_finalize(name, moe, quant_config, group, routing_tables, use_monolithic)


def make_all2all_prepare_finalize(
    all2all_backend: str,
    moe: FusedMoEConfig,
    quant_config: FusedMoEQuantConfig,
    ep_group: EpGroup,
    routing_tables: RoutingTables | None = None,
    use_monolithic: bool = False,
) -> FusedMoEPrepareAndFinalize:
    """Build a backend by name, also for a group of one rank, where a configuration would do without.

    Raises ValueError with each candidate's reason when it cannot be built.
    """
    backend = _find(all2all_backend)
    request = _Request(moe, quant_config, routing_tables, use_monolithic, ep_group)
    reasons = []
    for kind in _kinds(backend):
        reason = _reason(backend, replace(request, kind=kind))
        if reason is None:
            made = backend.make(replace(request, kind=kind))
            return _described(made, _transport_name(backend, kind, ep_group))
        reasons.append(f"  {backend.name} ({_kind_name(backend, kind)}): {reason}")
    activations = quant_config.activation_key or "unquantized"
    raise ValueError(
        f"No backend fits device {torch.device(moe.device).type}, {str(moe.in_dtype).removeprefix('torch.')} "
        f"activations {activations}, {moe.num_experts} experts on {_count(ep_group.world_size, 'rank')}:\n"
        + "\n".join(reasons)
    )


def describe_transport(prepare_finalize: FusedMoEPrepareAndFinalize) -> str:
    """Say what carries the tokens of a backend that :func:`maybe_make_prepare_finalize` built.

    Raises KeyError for one that it did not build.
    """
    return _DESCRIPTIONS[prepare_finalize]


def all2all_backends() -> list[str]:
    """Give the names that ``FusedMoEParallelConfig.all2all_backend`` may have, sorted."""
    return sorted(_BACKENDS)


def _find(name: str) -> _Backend:
    backend = _BACKENDS.get(_ALIASES.get(name, name))
    if backend is None:
        raise ValueError(f"There is no all2all backend {name!r}. There are: {', '.join(all2all_backends())}.")
    return backend


def _kinds(backend: _Backend) -> tuple[Kind, ...]:
    return ("torch",) if backend.package is None else ("vendor", "torch")


def _kind_name(backend: _Backend, kind: Kind) -> str:
    return f"package {backend.package}" if kind == "vendor" else "torch.distributed"


def _transport_name(backend: _Backend, kind: Kind, group: EpGroup) -> str:
    if kind == "torch":
        return f"{backend.name} over torch.distributed ({group.carrier})"
    assert backend.package is not None
    _, version = load_vendor(backend.package)
    return f"{backend.name} over package {backend.package} ({version})"


def _reason(backend: _Backend, request: _Request) -> str | None:
    """Why this candidate cannot be built; None if it can."""
    wanted = request.group.transport
    if backend.package is not None and wanted not in {"auto", request.kind}:
        return f"the group's transport is {wanted!r}"
    if request.use_monolithic and not backend.monolithic:
        return "it needs the router's choice, and the experts route for themselves (monolithic)"
    if request.moe.num_experts % request.group.world_size:
        ranks = _count(request.group.world_size, "rank")
        return f"{request.moe.num_experts} experts do not divide evenly among {ranks}"
    if request.vendor and backend.package is not None:
        module, why = load_vendor(backend.package)
        if module is None:
            return f"package {backend.package!r} cannot be imported ({why})"
        device = torch.device(request.moe.device)
        if device.type != "cuda":
            return f"the library works on CUDA tensors, but the layer is on {device}"
    return backend.refuse(request)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _described(made: FusedMoEPrepareAndFinalize, description: str) -> FusedMoEPrepareAndFinalize:
    _DESCRIPTIONS[made] = description
    _LOG.info("%s: %s", type(made).__name__, description)
    return made


def _wrong_dtype(request: _Request, *allowed: torch.dtype) -> str | None:
    if request.moe.in_dtype in allowed:
        return None
    names = " or ".join(str(dtype) for dtype in allowed)
    return f"it carries {names}, but activations are {request.moe.in_dtype}"


def _wrong_hidden(backend: str, request: _Request) -> str | None:
    hidden, dtype = request.moe.hidden_dim, request.moe.in_dtype
    rounded = _find(backend).round_up(hidden, dtype)
    if rounded == hidden:
        return None
    return f"hidden size {hidden} has to be rounded up to {rounded} (maybe_roundup_layer_hidden_size)"


def _same_hidden(hidden_size: int, _dtype: torch.dtype) -> int:
    return hidden_size


def _allgather(request: _Request) -> FusedMoEPrepareAndFinalize:
    transport = request.group.get_or_create(
        "allgather_reducescatter", lambda: TorchAllGatherReduceScatter(request.group)
    )
    parallel = request.moe.moe_parallel_config
    return make_moe_prepare_and_finalize_naive_dp_ep(
        request.use_monolithic, parallel.is_sequence_parallel, request.group.world_size, transport
    )


def _mori_scale_dim(request: _Request) -> int:
    """float32 scales beside each row; 0 when rows are dispatched unquantized."""
    quant_config = request.quant_config
    if quant_config.quant_dtype != FP8_DTYPE or quant_config.is_per_tensor:
        return 0
    if quant_config.block_shape is not None:
        return -(-request.moe.hidden_dim // quant_config.block_shape[1])
    return 1


def _mori(request: _Request) -> FusedMoEPrepareAndFinalize:
    moe, group = request.moe, request.group
    scale_dim = _mori_scale_dim(request)
    use_fp8_dispatch = request.quant_config.quant_dtype == FP8_DTYPE and scale_dim > 0
    config = TorchEpDispatchCombineConfig(
        data_type=FP8_DTYPE if use_fp8_dispatch else moe.in_dtype,
        rank=group.rank,
        world_size=group.world_size,
        hidden_dim=moe.hidden_dim,
        scale_dim=scale_dim,
        scale_type_size=torch.float32.itemsize if scale_dim else 0,
        max_token_type_size=moe.in_dtype.itemsize,
        max_num_inp_token_per_rank=moe.max_num_tokens,
        num_experts_per_rank=moe.num_experts // group.world_size,
        num_experts_per_token=moe.experts_per_token,
    )
    op = group.get_or_create(
        f"mori {request.kind} {config}",
        lambda: (
            vendor_mori_op(group, config, request.gpus_per_node)
            if request.vendor
            else TorchEpDispatchCombineOp(config, group)
        ),
    )
    return MoriPrepareAndFinalize(op, moe.max_num_tokens, group.world_size, use_fp8_dispatch)


def _refuse_mori(request: _Request) -> str | None:
    return _wrong_dtype(request, torch.bfloat16, torch.float32)


def _nixl_ep(request: _Request) -> FusedMoEPrepareAndFinalize:
    moe, group = request.moe, request.group
    local = moe.num_experts // group.world_size
    buffer = group.get_or_create(
        f"nixl_ep {request.kind} {moe.max_num_tokens} {moe.hidden_dim} {local}",
        lambda: (
            VendorNixlEpBuffer(
                group,
                max_tokens_per_rank=moe.max_num_tokens,
                hidden=moe.hidden_dim,
                num_experts_per_rank=local,
            )
            if request.vendor
            else TorchNixlEpBuffer(group, local)
        ),
    )
    use_fp8_dispatch = is_fp8_block128(request.quant_config)
    tables = request.routing_tables or (None, None, None)
    return NixlEPPrepareAndFinalize(buffer, moe.max_num_tokens, group.world_size, use_fp8_dispatch, *tables)


def _deepep_ll(request: _Request) -> FusedMoEPrepareAndFinalize:
    moe, group = request.moe, request.group
    buffer = group.get_or_create(
        f"deep_ep low latency {request.kind} {moe.max_num_tokens} {moe.hidden_dim} {moe.num_experts}",
        lambda: (
            vendor_deep_ep_buffer(
                group,
                max_tokens_per_rank=moe.max_num_tokens,
                hidden=moe.hidden_dim,
                num_experts=moe.num_experts,
            )
            if request.vendor
            else TorchDeepEpBuffer(group)
        ),
    )
    use_fp8_dispatch = is_fp8_block128(request.quant_config)
    tables = request.routing_tables or (None, None, None)
    return DeepEPLLPrepareAndFinalize(buffer, moe.max_num_tokens, group.world_size, use_fp8_dispatch, *tables)


def _refuse_low_latency(backend: str) -> Callable[[_Request], str | None]:
    def refuse(request: _Request) -> str | None:
        moe = request.moe
        slots = request.group.world_size * moe.max_num_tokens
        if slots % 4:
            return (
                f"ranks x max_num_tokens is {request.group.world_size} x {moe.max_num_tokens} = {slots}, "
                "expected a "
                "multiple of 4"
            )
        if is_fp8_block128(request.quant_config) and moe.hidden_dim % 512:
            return f"hidden size {moe.hidden_dim} is no multiple of 512, which fp8 dispatch needs"
        return _wrong_dtype(request, torch.bfloat16) or _wrong_hidden(backend, request)

    return refuse


def _deepep_ht(request: _Request) -> FusedMoEPrepareAndFinalize:
    moe, group = request.moe, request.group
    buffer = group.get_or_create(
        f"deep_ep high throughput {request.kind}",
        lambda: (
            vendor_deep_ep_buffer(
                group, max_tokens_per_rank=None, hidden=moe.hidden_dim, num_experts=moe.num_experts
            )
            if request.vendor
            else TorchDeepEpBuffer(group)
        ),
    )
    first_expert = group.rank * (moe.num_experts // group.world_size)
    return DeepEPHTPrepareAndFinalize(buffer, group.world_size, moe.dp_size, first_expert)


def _refuse_deepep_ht(request: _Request) -> str | None:
    return _wrong_dtype(request, torch.bfloat16) or _wrong_hidden("deepep_high_throughput", request)


def _two_sided(request: _Request) -> FusedMoEPrepareAndFinalize:
    group = request.group
    transport = group.get_or_create(
        f"flashinfer two-sided {request.kind}",
        lambda: (
            vendor_mnnvl_transport(group, request.gpus_per_node)
            if request.vendor
            else TorchMnnvlMoe(group).transport()
        ),
    )
    return FlashInferNVLinkTwoSidedPrepareAndFinalize(group.world_size, transport)


def _refuse_two_sided(request: _Request) -> str | None:
    experts = request.moe.num_experts
    if experts % 4 or experts >= 512:
        return f"{experts} experts, expected a multiple of 4 below 512"
    return _wrong_hidden("flashinfer_nvlink_two_sided", request)


def _one_sided(request: _Request) -> FusedMoEPrepareAndFinalize:
    moe, group = request.moe, request.group
    top_k = padded_top_k(moe.experts_per_token)
    # Rows unquantized, float32 scales for at most each 16 elements, ids and weights: room for every scheme.
    bytes_per_token = moe.hidden_dim * (moe.in_dtype.itemsize + 1) + top_k * 8 + 64
    transport = group.get_or_create(
        f"flashinfer one-sided {request.kind} {moe.max_num_tokens} {top_k} {moe.num_experts} "
        f"{bytes_per_token}",
        lambda: MoeAlltoAllTransport(
            vendor_moe_alltoall(
                group, request.gpus_per_node, moe.max_num_tokens, top_k, moe.num_experts, bytes_per_token
            )
            if request.vendor
            else TorchMoeAlltoAll(group, moe.max_num_tokens, top_k, moe.num_experts),
            group,
        ),
    )
    return FlashInferNVLinkOneSidedPrepareAndFinalize(
        moe.max_num_tokens,
        moe.experts_per_token,
        moe.num_experts,
        moe.hidden_dim,
        group.world_size,
        transport,
    )


def _refuse_one_sided(request: _Request) -> str | None:
    try:
        padded_top_k(request.moe.experts_per_token)
    except ValueError as error:
        return str(error)
    return _wrong_dtype(request, torch.bfloat16, torch.float16)


_BACKENDS = {
    backend.name: backend
    for backend in (
        _Backend("allgather_reducescatter", None, _allgather, lambda _: None, _same_hidden, monolithic=True),
        _Backend(
            "deepep_high_throughput",
            "deep_ep",
            _deepep_ht,
            _refuse_deepep_ht,
            DeepEPHTPrepareAndFinalize.maybe_roundup_layer_hidden_size,
        ),
        _Backend(
            "deepep_low_latency",
            "deep_ep",
            _deepep_ll,
            _refuse_low_latency("deepep_low_latency"),
            lambda hidden, _: DeepEPLLPrepareAndFinalize.maybe_roundup_layer_hidden_size(hidden),
        ),
        _Backend("flashinfer_nvlink_one_sided", "flashinfer", _one_sided, _refuse_one_sided, _same_hidden),
        _Backend(
            "flashinfer_nvlink_two_sided",
            "flashinfer",
            _two_sided,
            _refuse_two_sided,
            lambda hidden, _: FlashInferNVLinkTwoSidedPrepareAndFinalize.maybe_roundup_layer_hidden_size(
                hidden
            ),
        ),
        _Backend("mori", "mori", _mori, _refuse_mori, _same_hidden),
        _Backend(
            "nixl_ep",
            "nixl_ep",
            _nixl_ep,
            _refuse_low_latency("nixl_ep"),
            lambda hidden, _: NixlEPPrepareAndFinalize.maybe_roundup_layer_hidden_size(hidden),
        ),
    )
}
_ALIASES = {"flashinfer_all2allv": "flashinfer_nvlink_two_sided"}
