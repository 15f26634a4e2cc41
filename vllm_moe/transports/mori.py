"""MoRI's dispatch and combine: the vendor's interface, and one on ``torch.distributed``.

Source of names, shapes and behaviour: ``python/mori/ops/dispatch_combine.py`` and
``src/ops/dispatch_combine/intranode.hpp`` of https://github.com/ROCm/mori.
"""

from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from vllm_moe.transports._group import EpGroup, TransportError
from vllm_moe.transports._vendor import load_vendor
from vllm_moe.transports._wire import (
    RoutingPlan,
    check_ids,
    check_tensor,
    garbage_ids,
    pack_rows,
    poison_,
    unpack_rows,
)

__all__ = [
    "EpDispatchCombineConfig",
    "EpDispatchCombineOp",
    "TorchEpDispatchCombineConfig",
    "TorchEpDispatchCombineOp",
    "vendor_mori_op",
]

MORI_DTYPES = (torch.bfloat16, torch.float32, torch.float8_e4m3fn)
"""What the kernels are compiled for (and fp8 e4m3fnuz, on the devices that have that instead)."""


class EpDispatchCombineConfig(Protocol):
    """The fields of ``mori.ops.EpDispatchCombineConfig`` that a caller of the op has to know."""

    data_type: torch.dtype
    rank: int
    world_size: int
    hidden_dim: int
    scale_dim: int
    scale_type_size: int
    max_token_type_size: int
    max_num_inp_token_per_rank: int
    num_experts_per_rank: int
    num_experts_per_token: int


@runtime_checkable
class EpDispatchCombineOp(Protocol):
    """``mori.ops.EpDispatchCombineOp``.

    Preconditions, which the library does not check: tensors are contiguous; ``input`` has at most
    ``max_num_inp_token_per_rank`` rows; every id names an expert (an id of -1 would be taken for rank 0's,
    since C++ division rounds towards zero); scales have ``scale_dim`` columns of ``scale_type_size`` bytes.
    """

    config: EpDispatchCombineConfig

    def dispatch(
        self,
        input: torch.Tensor,  # noqa: A002 -- the vendor's name
        weights: torch.Tensor,
        scales: torch.Tensor | None,
        indices: torch.Tensor,
        block_num: int = -1,
        rdma_block_num: int = -1,
        warp_per_block: int = -1,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Send each row once to every rank that owns one of its experts.

        Takes ``input`` ``[tokens, hidden]``, ``weights`` float32 and ``indices`` int32 ``[tokens, topk]``.
        Gives ``(rows [max_recv, hidden], weights [max_recv, topk], scales | None, ids [max_recv, topk], total
        int32 [1])`` with ``max_recv = world_size * max_num_inp_token_per_rank``: views of the op's own
        memory, valid until the next dispatch, of which the first ``total`` rows hold anything. Ids and
        weights are the row's own, those of other ranks' experts included.
        """

    def combine(
        self,
        input: torch.Tensor,  # noqa: A002 -- the vendor's name
        weights: torch.Tensor | None,
        indices: torch.Tensor,
        block_num: int = -1,
        rdma_block_num: int = -1,
        warp_per_block: int = -1,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Sum what the ranks made of each of this rank's rows, unweighted.

        Takes ``input`` ``[>= total, hidden]`` and the ``indices`` that this rank gave to dispatch. Gives
        ``([max_num_inp_token_per_rank, hidden], None)``, again the op's own memory; rows past this rank's own
        number of tokens hold anything.
        """


@dataclass
class TorchEpDispatchCombineConfig:
    """Configuration of :class:`TorchEpDispatchCombineOp`; see the vendor's class for what the fields mean."""

    data_type: torch.dtype
    rank: int
    world_size: int
    hidden_dim: int
    scale_dim: int
    scale_type_size: int
    max_token_type_size: int
    max_num_inp_token_per_rank: int
    num_experts_per_rank: int
    num_experts_per_token: int


@dataclass(frozen=True)
class _Sent:
    plan: RoutingPlan
    recv_counts: list[int]
    indices: torch.Tensor


class TorchEpDispatchCombineOp:
    """:class:`EpDispatchCombineOp` over an :class:`EpGroup`.

    Owns its output memory and reuses it, with garbage in the rows that nobody wrote: NaN activations, weights
    and scales, ids that exist. The preconditions are checked.

    Raises TransportError for a broken precondition, and when combine is given other ids than dispatch was.
    """

    def __init__(self, config: EpDispatchCombineConfig, group: EpGroup) -> None:
        self.config = config
        self.group = group
        max_recv = config.world_size * config.max_num_inp_token_per_rank
        topk = config.num_experts_per_token
        device = group.device
        token_bytes = config.hidden_dim * max(config.max_token_type_size, config.data_type.itemsize)
        self._out = torch.empty((max_recv, token_bytes), dtype=torch.uint8, device=device)
        self._scales = torch.empty(
            (max_recv, config.scale_dim * config.scale_type_size), dtype=torch.uint8, device=device
        )
        self._weights = torch.empty((max_recv, topk), dtype=torch.float32, device=device)
        self._ids = torch.empty((max_recv, topk), dtype=torch.int32, device=device)
        self._total = torch.empty(1, dtype=torch.int32, device=device)
        self._combined = torch.empty(
            (config.max_num_inp_token_per_rank, config.hidden_dim * 4), dtype=torch.uint8, device=device
        )
        self._sent: _Sent | None = None

    def dispatch(
        self,
        input: torch.Tensor,  # noqa: A002 -- the vendor's name
        weights: torch.Tensor,
        scales: torch.Tensor | None,
        indices: torch.Tensor,
        block_num: int = -1,
        rdma_block_num: int = -1,
        warp_per_block: int = -1,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Send each row once to every rank that owns one of its experts; see the protocol."""
        where = "mori dispatch"
        config = self.config
        self._check_dispatch(where, input, weights, scales, indices)
        with_scales = scales is not None and config.scale_dim > 0
        plan = RoutingPlan.make(indices // config.num_experts_per_rank, config.world_size)
        recv_counts = [row[config.rank] for row in self.group.gather_ints(f"{where} (counts)", plan.counts)]
        hidden, topk = input.size(1), config.num_experts_per_token
        sending = [input, weights, indices, *([scales] if with_scales and scales is not None else [])]
        packed = pack_rows(sending).index_select(0, plan.rows)
        rows = self.group.exchange(where, packed, plan.counts, recv_counts)
        parts = [(input.dtype, hidden), (torch.float32, topk), (torch.int32, topk)]
        if with_scales and scales is not None:
            parts.append((scales.dtype, config.scale_dim))
        received = unpack_rows(rows, parts)

        total = rows.size(0)
        out = self._view(self._out, hidden, input.dtype)
        self._fill(out, received[0])
        self._fill(self._weights, received[1])
        garbage_ids(self._ids, config.num_experts_per_rank * config.world_size)[:total] = received[2]
        self._total.fill_(total)
        out_scales = None
        if with_scales and scales is not None:
            out_scales = self._view(self._scales, config.scale_dim, scales.dtype)
            self._fill(out_scales, received[3])
        self._sent = _Sent(plan, recv_counts, indices.clone())
        return out, self._weights, out_scales, self._ids, self._total

    def combine(
        self,
        input: torch.Tensor,  # noqa: A002 -- the vendor's name
        weights: torch.Tensor | None,
        indices: torch.Tensor,
        block_num: int = -1,
        rdma_block_num: int = -1,
        warp_per_block: int = -1,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Sum what the ranks made of each of this rank's rows; see the protocol.

        ``weights`` have to be None: what the library does with them here is of no use to a caller that
        weighted.
        """
        where = "mori combine"
        sent = self._sent
        if sent is None:
            raise TransportError(f"{where}: called before dispatch.")
        if weights is not None:
            raise TransportError(
                f"{where}: weights were given, expected None. Weight the rows before the call."
            )
        total = sum(sent.recv_counts)
        check_tensor(where, "input", input, [None, None], MORI_DTYPES)
        if input.size(0) < total:
            raise TransportError(
                f"{where}: input has {input.size(0)} rows, expected the {total} that were received."
            )
        if indices.shape != sent.indices.shape or not torch.equal(indices, sent.indices):
            raise TransportError(
                f"{where}: indices {list(indices.shape)} are not those that dispatch was given "
                f"({list(sent.indices.shape)}). Pass this rank's own ids, not the dispatched ones."
            )
        packed = pack_rows([input[:total]])
        rows = self.group.exchange(where, packed, sent.recv_counts, sent.plan.counts)
        (parts,) = unpack_rows(rows, [(input.dtype, input.size(1))])
        out = self._view(self._combined, input.size(1), input.dtype)
        self._fill(out, sent.plan.sum(parts, indices.size(0)).to(input.dtype))
        return out, None

    def _check_dispatch(
        self,
        where: str,
        rows: torch.Tensor,
        weights: torch.Tensor,
        scales: torch.Tensor | None,
        indices: torch.Tensor,
    ) -> None:
        config = self.config
        tokens = rows.size(0)
        check_tensor(where, "input", rows, [None, None], MORI_DTYPES)
        if rows.size(1) > config.hidden_dim or rows.dtype.itemsize > self._out.size(1) // config.hidden_dim:
            raise TransportError(
                f"{where}: a row of {rows.size(1)} x {rows.dtype} does not fit the op, which was made for "
                f"{config.hidden_dim} elements of {self._out.size(1) // config.hidden_dim} bytes."
            )
        if tokens > config.max_num_inp_token_per_rank:
            raise TransportError(
                f"{where}: {tokens} tokens, but the op was made for max_num_inp_token_per_rank = "
                f"{config.max_num_inp_token_per_rank}. Pass fewer tokens or make a larger op."
            )
        check_tensor(where, "weights", weights, [tokens, config.num_experts_per_token], [torch.float32])
        check_tensor(where, "indices", indices, [tokens, config.num_experts_per_token], [torch.int32])
        check_ids(where, indices, 0, config.num_experts_per_rank * config.world_size)
        if scales is not None and config.scale_dim > 0:
            check_tensor(where, "scales", scales, [tokens, config.scale_dim], [scales.dtype])
            if scales.dtype.itemsize != config.scale_type_size:
                raise TransportError(
                    f"{where}: scales are {scales.dtype}, but the op was made for scale_type_size = "
                    f"{config.scale_type_size} bytes."
                )

    @staticmethod
    def _view(memory: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
        """Give the memory as ``[rows, width]`` of a dtype, packed from its start as the vendor packs it."""
        rows = memory.size(0)
        return memory.view(-1)[: rows * width * dtype.itemsize].view(dtype).view(rows, width)

    @staticmethod
    def _fill(memory: torch.Tensor, rows: torch.Tensor) -> None:
        poison_(memory)[: rows.size(0)].copy_(rows)


def vendor_mori_op(group: EpGroup, config: TorchEpDispatchCombineConfig, gpus_per_node: int) -> Any:
    """Build the genuine ``mori.ops.EpDispatchCombineOp`` for a group; within a node if all ranks are on one.

    Raises TransportError when the library cannot be imported.
    """
    module, why = load_vendor("mori")
    if module is None:
        raise TransportError(f"mori: the library cannot be imported: {why}.")
    # The library finds its ranks through a process group that torch knows by this name.
    register: Any = torch._C._distributed_c10d._register_process_group  # noqa: SLF001 -- what the library documents
    register("mori", group.process_group)
    module.shmem.shmem_torch_process_group_init("mori")
    kinds = module.ops.EpDispatchCombineKernelType
    one_node = group.world_size <= gpus_per_node
    return module.ops.EpDispatchCombineOp(
        module.ops.EpDispatchCombineConfig(
            **asdict(config),
            kernel_type=kinds.IntraNode if one_node else kinds.InterNodeV1,
            gpu_per_node=min(gpus_per_node, group.world_size),
            rdma_block_num=0 if one_node else 16,
        )
    )
