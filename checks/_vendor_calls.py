"""The vendors' signatures and demands, as recorded from their releases; nothing of their libraries is needed."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["ID_PARAMETERS", "VENDORS", "VendorCalls", "pairing_problem"]

ID_PARAMETERS = frozenset({"topk_idx", "indices", "token_selected_experts", "expert_ids"})
"""What the vendors call expert ids."""
_WEIGHT_PARAMETERS = frozenset({"topk_weights", "weights"})
_STRIDES_DO_NOT_MATTER = frozenset({"workspace", "all_workspaces", "out", "handle"})
_LOW_LATENCY_HIDDEN = frozenset({2048, 2560, 3072, 4096, 5120, 6144, 7168, 8192})


def _signature(text: str) -> inspect.Signature:
    """A signature from ``"a, b=., *, c=."``; a dot stands for whatever the default is."""
    kind, parameters = inspect.Parameter.POSITIONAL_OR_KEYWORD, []
    for item in text.replace("\n", " ").split(","):
        name, _, default = item.strip().partition("=")
        if name == "*":
            kind = inspect.Parameter.KEYWORD_ONLY  # type: ignore[assignment]  # of the same enum
        else:
            parameters.append(inspect.Parameter(name, kind, default=None if default else inspect.Parameter.empty))
    return inspect.Signature(parameters)


@dataclass(frozen=True)
class VendorCalls:
    """A library's methods, and what it demands."""

    name: str
    methods: Mapping[str, inspect.Signature]
    lowest_id: int
    """-1 where the library knows slots without an expert, 0 where -1 would be taken for an expert."""
    low_latency: tuple[str, ...] = ()
    """Methods with the low-latency kernels' demands."""

    def demands(self, method: str, arguments: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with the arguments of a call."""
        for name, value in arguments.items():
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if not isinstance(tensor, torch.Tensor) or name in _STRIDES_DO_NOT_MATTER:
                    continue
                if not tensor.is_contiguous():
                    strides, shape = list(tensor.stride()), list(tensor.shape)
                    yield f"{name} has strides {strides} for shape {shape}, expected contiguous"
            if (
                name in ID_PARAMETERS
                and isinstance(value, torch.Tensor)
                and value.numel()
                and value.device.type == "cpu"
            ) and int(value.min()) < self.lowest_id:
                yield f"{name} holds {int(value.min())}, expected at least {self.lowest_id}"
            if name in _WEIGHT_PARAMETERS and isinstance(value, torch.Tensor) and value.dtype is not torch.float32:
                yield f"{name} is {value.dtype}, expected torch.float32"
        if method in self.low_latency:
            yield from _low_latency_demands(arguments)


def _low_latency_demands(arguments: Mapping[str, Any]) -> Iterator[str]:
    x = arguments["x"]
    if x.dtype is not torch.bfloat16:
        yield f"x is {x.dtype}, expected torch.bfloat16"
    if x.size(-1) not in _LOW_LATENCY_HIDDEN:
        yield f"x has hidden size {x.size(-1)}, expected one of {sorted(_LOW_LATENCY_HIDDEN)}"
    most = arguments.get("num_max_dispatch_tokens_per_rank")
    if most is not None and x.size(0) > most:
        yield f"x has {x.size(0)} rows, expected at most num_max_dispatch_tokens_per_rank, {most}"
    if arguments.get("use_fp8") and x.size(-1) % 512:
        yield f"use_fp8 with hidden size {x.size(-1)}, expected a multiple of 512"


def _vendor(name: str, lowest_id: int, *low_latency: str, **methods: str) -> VendorCalls:
    return VendorCalls(name, {method: _signature(text) for method, text in methods.items()}, lowest_id, low_latency)


_LL_TAIL = """cumulative_local_expert_recv_stats=., dispatch_wait_recv_cost_stats=., use_fp8=., round_scale=.,
    use_ue8m0=., async_finish=., return_recv_hook=."""

VENDORS = {
    # The honest backend's own small library.
    "wire": _vendor(
        "wire",
        -1,
        dispatch="rows, weights, indices, scales=., slot=., return_recv_hook=.",
        combine="rows, indices, received, return_recv_hook=.",
    ),
    # nixl_ep/buffer.py of the nixl-cu13 1.3.0 wheel.
    "nixl_ep": _vendor(
        "nixl_ep.Buffer",
        -1,
        "dispatch",
        "combine",
        dispatch=f"x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts=., {_LL_TAIL}",
        combine="""x, topk_idx, topk_weights, handle, use_logfmt=., zero_copy=., async_finish=., return_recv_hook=.,
            out=., combine_wait_recv_cost_stats=.""",
    ),
    # deep_ep/buffer.py of DeepEP 1.2.
    "deep_ep": _vendor(
        "deep_ep.Buffer",
        -1,
        "low_latency_dispatch",
        "low_latency_combine",
        get_dispatch_layout="topk_idx, num_experts, previous_event=., async_finish=., allocate_on_comm_stream=.",
        dispatch="""x, handle=., num_tokens_per_rank=., num_tokens_per_rdma_rank=., is_token_in_rank=.,
            num_tokens_per_expert=., topk_idx=., topk_weights=., expert_alignment=., num_worst_tokens=., config=.,
            previous_event=., async_finish=., allocate_on_comm_stream=.""",
        combine="""x, handle, topk_weights=., bias=., config=., previous_event=., async_finish=.,
            allocate_on_comm_stream=.""",
        low_latency_dispatch=f"""x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts,
            {_LL_TAIL}""",
        low_latency_combine="""x, topk_idx, topk_weights, handle, use_logfmt=., zero_copy=., async_finish=.,
            return_recv_hook=., out=., combine_wait_recv_cost_stats=.""",
    ),
    # mori.ops.EpDispatchCombineOp.
    "mori": _vendor(
        "mori.ops.EpDispatchCombineOp",
        0,
        dispatch="input, weights, scales, indices, block_num=., rdma_block_num=., warp_per_block=.",
        combine="input, weights, indices, block_num=., rdma_block_num=., warp_per_block=.",
    ),
    # flashinfer.comm.trtllm_moe_alltoall.MoeAlltoAll.
    "flashinfer_one_sided": _vendor(
        "flashinfer MoeAlltoAll",
        0,
        dispatch="""token_selected_experts, input_payloads, runtime_max_tokens_per_rank, invalid_token_expert_id=.,
            expert_id_payload_index=.""",
        combine="payload, runtime_max_tokens_per_rank, payload_in_workspace=.",
    ),
    # flashinfer.comm.trtllm_alltoall.MnnvlMoe.
    "flashinfer_two_sided": _vendor(
        "flashinfer MnnvlMoe",
        0,
        mnnvl_moe_alltoallv_prepare_without_allgather="""expert_ids, scales, expert_statics, workspace,
            max_token_count_per_rank, ep_rank, ep_size, expert_count, slot_count, top_k""",
        mnnvl_moe_alltoallv="x, alltoall_info, workspace, ep_rank, ep_size",
        mnnvl_moe_alltoallv_combine="x, alltoall_info, workspace, ep_rank, ep_size, top_k, token_count",
    ),
}


class _Call(Protocol):
    @property
    def method(self) -> str: ...
    @property
    def arguments(self) -> dict[str, Any]: ...


def pairing_problem(calls: Sequence[_Call]) -> str | None:
    """What is wrong with the calls together: a combine has to go by the ids that its dispatch was given."""
    sent: torch.Tensor | None = None
    for call in calls:
        name = next((name for name in call.arguments if name in ID_PARAMETERS), None)
        ids = None if name is None else call.arguments[name]
        if not isinstance(ids, torch.Tensor):
            continue
        if "combine" not in call.method:
            sent = ids
        elif sent is None:
            return f"{call.method} was called before any dispatch"
        elif ids.shape != sent.shape or not torch.equal(ids, sent):
            return f"{name} of {call.method} {list(ids.shape)} are not those that dispatch was given {list(sent.shape)}"
    return None
