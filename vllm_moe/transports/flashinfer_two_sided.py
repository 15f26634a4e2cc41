"""FlashInfer's two-sided NVLink all-to-all: the vendor's interface, and one on ``torch.distributed``.

Source of names, shapes and behaviour: ``flashinfer/comm/trtllm_alltoall.py``, ``csrc/trtllm_alltoall.cu`` and
``csrc/trtllm_alltoall_prepare.cu`` of https://github.com/flashinfer-ai/flashinfer.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from vllm_moe.transports._group import EpGroup, TransportError
from vllm_moe.transports._vendor import load_vendor
from vllm_moe.transports._wire import RoutingPlan, check_ids, check_tensor, pack_rows, poison_, unpack_rows

__all__ = [
    "MNNVL_ALIGNMENT_BYTES",
    "MnnvlMoe",
    "MnnvlTransport",
    "MoEAlltoallInfo",
    "TorchMnnvlMoe",
    "vendor_mnnvl_transport",
]

MNNVL_ALIGNMENT_BYTES = 16
"""A row that is sent has to be a multiple of this long."""

_MAX_EXPERTS = 511


@dataclass(frozen=True)
class MoEAlltoallInfo:
    """What the prepare call found out, under the vendor's names; all tensors int32.

    Cumulative counts are ``[ranks]``; entry r is how many rows go to (come from) ranks 0 to r.
    """

    local_gather_indices: torch.Tensor | None
    send_rank_count_cumsum: torch.Tensor
    send_rank_local_indices: torch.Tensor
    recv_rank_count_cumsum: torch.Tensor
    recv_rank_local_indices: torch.Tensor
    backward_recv_rank_local_indices: torch.Tensor
    local_token_allocation_count: int


@runtime_checkable
class MnnvlMoe(Protocol):
    """``flashinfer.comm.trtllm_alltoall.MnnvlMoe`` (static methods there).

    Preconditions: ids are int32 and an id of ``slot_count`` goes nowhere (-1 would be taken for rank 0's);
    ``expert_count`` and ``slot_count`` are multiples of 4, and at most 511; scales (the router's weights) are
    float32; what is sent has two dimensions and rows of a multiple of 16 bytes.
    """

    def mnnvl_moe_alltoallv_prepare_without_allgather(
        self,
        expert_ids: torch.Tensor,
        scales: torch.Tensor,
        expert_statics: torch.Tensor | None,
        workspace: torch.Tensor,
        max_token_count_per_rank: int,
        ep_rank: int,
        ep_size: int,
        expert_count: int,
        slot_count: int,
        top_k: int,
    ) -> tuple[MoEAlltoallInfo, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Exchange the routing: ``(info, ids, scales, gathered statistics | None)``.

        Ids and scales are ``[max_token_count_per_rank * ep_size, top_k]``, the received rows first, in rank
        order; past them ids are ``slot_count`` and scales are whatever was there.
        """

    def mnnvl_moe_alltoallv(
        self,
        x: torch.Tensor,
        alltoall_info: MoEAlltoallInfo,
        workspace: torch.Tensor,
        ep_rank: int,
        ep_size: int,
    ) -> torch.Tensor:
        """Send ``x`` ``[tokens, width]``; gives ``[local_token_allocation_count, width]``, rows first."""

    def mnnvl_moe_alltoallv_combine(
        self,
        x: torch.Tensor,
        alltoall_info: MoEAlltoallInfo,
        workspace: torch.Tensor,
        ep_rank: int,
        ep_size: int,
        top_k: int,
        token_count: int,
    ) -> torch.Tensor:
        """Send rows back and add up those of one token, unweighted: ``[token_count, width]``."""


@dataclass(frozen=True)
class MnnvlTransport:
    """The functions, the two workspaces that they need, and the ranks."""

    moe: MnnvlMoe
    workspace_tensor: torch.Tensor
    prepare_workspace_tensor: torch.Tensor
    group: EpGroup


class TorchMnnvlMoe:
    """:class:`MnnvlMoe` over an :class:`EpGroup`; workspaces are taken and not used.

    Raises TransportError for a broken precondition.
    """

    def __init__(self, group: EpGroup) -> None:
        self.group = group

    def transport(self) -> MnnvlTransport:
        """Bundle this with empty workspaces."""
        workspace = torch.empty((self.group.world_size, 0), dtype=torch.uint8, device=self.group.device)
        return MnnvlTransport(self, workspace, workspace, self.group)

    def mnnvl_moe_alltoallv_prepare_without_allgather(
        self,
        expert_ids: torch.Tensor,
        scales: torch.Tensor,
        expert_statics: torch.Tensor | None,
        workspace: torch.Tensor,
        max_token_count_per_rank: int,
        ep_rank: int,
        ep_size: int,
        expert_count: int,
        slot_count: int,
        top_k: int,
    ) -> tuple[MoEAlltoallInfo, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Exchange the routing; see the protocol. ``expert_statics`` have to be None."""
        where = "flashinfer two-sided prepare"
        self._check_place(where, ep_rank, ep_size)
        tokens = expert_ids.size(0)
        check_tensor(where, "expert_ids", expert_ids, [None, top_k], [torch.int32])
        check_tensor(where, "scales", scales, [tokens, top_k], [torch.float32])
        if expert_statics is not None:
            raise TransportError(f"{where}: expert_statics have to be None over torch.distributed.")
        for name, count in (("expert_count", expert_count), ("slot_count", slot_count)):
            if count % 4 or count > _MAX_EXPERTS or count % ep_size:
                raise TransportError(
                    f"{where}: {name} is {count}, expected a multiple of 4 and of the {ep_size} ranks, at "
                    "most "
                    f"{_MAX_EXPERTS}."
                )
        if tokens > max_token_count_per_rank:
            raise TransportError(
                f"{where}: {tokens} tokens, but max_token_count_per_rank is {max_token_count_per_rank}. Pass "
                "the "
                "largest number that any rank has, the same on all."
            )
        check_ids(where, expert_ids, 0, slot_count + 1)

        owner = expert_ids // (slot_count // ep_size)
        plan = RoutingPlan.make(owner, ep_size)
        everyone = self.group.gather_ints(f"{where} (counts)", [max_token_count_per_rank, *plan.counts])
        capacities = {row[0] for row in everyone}
        if len(capacities) > 1:
            raise TransportError(
                f"{where}: ranks disagree on max_token_count_per_rank: {[row[0] for row in everyone]}."
            )
        recv_counts = [row[1 + ep_rank] for row in everyone]
        packed = pack_rows([expert_ids, scales]).index_select(0, plan.rows)
        rows = self.group.exchange(where, packed, plan.counts, recv_counts)
        ids, weights = unpack_rows(rows, [(torch.int32, top_k), (torch.float32, top_k)])

        device = expert_ids.device
        allocated = max_token_count_per_rank * ep_size
        received = rows.size(0)
        local_ids = torch.full((allocated, top_k), slot_count, dtype=torch.int32, device=device)
        local_ids[:received] = ids
        local_scales = poison_(torch.empty((allocated, top_k), dtype=torch.float32, device=device))
        local_scales[:received] = weights
        # Where each sent row's result goes: the slot of its token that first names the rank it went to.
        rank_of_row = torch.repeat_interleave(
            torch.arange(ep_size, device=device), torch.tensor(plan.counts, device=device)
        )
        first_slot = (owner[plan.rows] == rank_of_row.unsqueeze(1)).int().argmax(dim=1)
        info = MoEAlltoallInfo(
            None,
            _cumsum(plan.counts, device),
            plan.rows.to(torch.int32),
            _cumsum(recv_counts, device),
            torch.arange(received, dtype=torch.int32, device=device),
            (plan.rows * top_k + first_slot).to(torch.int32),
            allocated,
        )
        return info, local_ids, local_scales, None

    def mnnvl_moe_alltoallv(
        self,
        x: torch.Tensor,
        alltoall_info: MoEAlltoallInfo,
        workspace: torch.Tensor,
        ep_rank: int,
        ep_size: int,
    ) -> torch.Tensor:
        """Send ``x``; see the protocol."""
        where = "flashinfer two-sided dispatch"
        self._check_place(where, ep_rank, ep_size)
        self._check_rows(where, x)
        info = alltoall_info
        result = poison_(
            torch.empty((info.local_token_allocation_count, x.size(1)), dtype=x.dtype, device=x.device)
        )
        self._move(
            where,
            x,
            info.send_rank_local_indices,
            info.send_rank_count_cumsum,
            result,
            info.recv_rank_local_indices,
            info.recv_rank_count_cumsum,
        )
        return result

    def mnnvl_moe_alltoallv_combine(
        self,
        x: torch.Tensor,
        alltoall_info: MoEAlltoallInfo,
        workspace: torch.Tensor,
        ep_rank: int,
        ep_size: int,
        top_k: int,
        token_count: int,
    ) -> torch.Tensor:
        """Send rows back and add up those of one token; see the protocol."""
        where = "flashinfer two-sided combine"
        self._check_place(where, ep_rank, ep_size)
        self._check_rows(where, x)
        info = alltoall_info
        if x.size(0) != info.local_token_allocation_count:
            raise TransportError(
                f"{where}: x has {x.size(0)} rows, expected the {info.local_token_allocation_count} that "
                "dispatch gave."
            )
        result = torch.zeros((token_count * top_k, x.size(1)), dtype=x.dtype, device=x.device)
        self._move(
            where,
            x,
            info.recv_rank_local_indices,
            info.recv_rank_count_cumsum,
            result,
            info.backward_recv_rank_local_indices,
            info.send_rank_count_cumsum,
        )
        return result.view(token_count, top_k, x.size(1)).sum(dim=1)

    def _move(
        self,
        where: str,
        source: torch.Tensor,
        send_rows: torch.Tensor,
        send_cumsum: torch.Tensor,
        target: torch.Tensor,
        recv_rows: torch.Tensor,
        recv_cumsum: torch.Tensor,
    ) -> None:
        packed = pack_rows([source]).index_select(0, send_rows)
        rows = self.group.exchange(where, packed, _counts(send_cumsum), _counts(recv_cumsum))
        # Through bytes, which indexing takes for every dtype.
        target.view(torch.uint8)[recv_rows.long()] = rows

    def _check_place(self, where: str, ep_rank: int, ep_size: int) -> None:
        if (ep_rank, ep_size) != (self.group.rank, self.group.world_size):
            raise TransportError(
                f"{where}: rank {ep_rank} of {ep_size} was given, but the group has rank {self.group.rank} "
                "of "
                f"{self.group.world_size}. Pass the expert-parallel rank and size."
            )

    @staticmethod
    def _check_rows(where: str, x: torch.Tensor) -> None:
        check_tensor(where, "x", x, [None, None], [x.dtype])
        row_bytes = x.size(1) * x.element_size()
        if row_bytes % MNNVL_ALIGNMENT_BYTES:
            raise TransportError(
                f"{where}: rows of {x.size(1)} x {x.dtype} are {row_bytes} bytes, expected a multiple of "
                f"{MNNVL_ALIGNMENT_BYTES}. Pad them."
            )


def vendor_mnnvl_transport(group: EpGroup, gpus_per_node: int) -> MnnvlTransport:
    """Build the genuine functions and workspaces for a group, which needs GPUs that share memory over NVLink.

    Raises TransportError when the library cannot be imported.
    """
    module, why = load_vendor("flashinfer")
    if module is None:
        raise TransportError(f"flashinfer: the library cannot be imported: {why}.")
    mapping, config = vendor_mapping(module, group, gpus_per_node)
    moe = module.comm.trtllm_alltoall.MnnvlMoe
    return MnnvlTransport(
        moe,
        moe.get_moe_workspaces(mapping, config),
        moe.get_moe_prepare_workspace(mapping, config),
        group,
    )


def vendor_mapping(module: Any, group: EpGroup, gpus_per_node: int) -> tuple[Any, Any]:
    """FlashInfer's description of the ranks, and how they reach each other: ``(Mapping, MnnvlConfig)``."""
    mapping = module.comm.Mapping(
        group.world_size, group.rank, gpus_per_node, tp_size=group.world_size, moe_ep_size=group.world_size
    )
    backend = module.comm.mnnvl.TorchDistBackend(group.process_group)
    return mapping, module.comm.mnnvl.MnnvlConfig(comm_backend=backend)


def _cumsum(counts: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(counts, device=device).cumsum(0).to(torch.int32)


def _counts(cumsum: torch.Tensor) -> list[int]:
    counts: list[int] = cumsum.diff(prepend=cumsum.new_zeros(1)).tolist()
    return counts
