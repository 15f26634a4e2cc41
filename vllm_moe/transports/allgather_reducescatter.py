"""Allgather to dispatch, reduce-scatter to combine: it needs nothing but ``torch.distributed``.

The interface is that of vLLM's group coordinator (``vllm/distributed/parallel_state.py``: ``dispatch``,
``dispatch_router_logits``, ``combine``; the work is done in ``device_communicators/all2all.py``,
``AgRsAll2AllManager``). There each rank's number of tokens comes from the scheduler; here the ranks tell each
other.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from vllm_moe.transports._group import EpGroup, TransportError
from vllm_moe.transports._wire import check_tensor, pack_rows, unpack_rows

__all__ = ["AllGatherReduceScatter", "TorchAllGatherReduceScatter"]


@runtime_checkable
class AllGatherReduceScatter(Protocol):
    """Gathers every rank's rows on every rank, and sums what all made of them back to their owners."""

    @property
    def last_sizes(self) -> list[int]:
        """Rows that each rank gave to the last dispatch."""

    def dispatch(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        is_sequence_parallel: bool = False,
        extra_tensors: list[torch.Tensor] | None = None,
    ) -> (
        tuple[torch.Tensor, torch.Tensor, torch.Tensor]
        | tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]
    ):
        """Give all ranks' rows of the arguments, by rank; the list only when ``extra_tensors`` was given."""

    def dispatch_router_logits(
        self,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        is_sequence_parallel: bool = False,
        extra_tensors: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Do the same with router logits."""

    def combine(
        self,
        hidden_states: torch.Tensor,
        is_sequence_parallel: bool = False,
        sizes: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Sum ``[all rows, hidden]`` over ranks; ``sizes`` None: those of the last dispatch."""

    def world_size(self, is_sequence_parallel: bool = False) -> int:
        """Ranks that rows are gathered from."""


class TorchAllGatherReduceScatter:
    """:class:`AllGatherReduceScatter` over an :class:`EpGroup`.

    Rows travel over the whole group when tokens are split over all its ranks (``is_sequence_parallel``), and
    over ``group.dp_group`` when tensor-parallel ranks hold the same tokens. Sums are made in float32 in rank
    order, so equal calls give equal bits.
    """

    def __init__(self, group: EpGroup) -> None:
        self.group = group
        self._sizes: list[int] = []

    @property
    def last_sizes(self) -> list[int]:
        """Rows that each rank gave to the last dispatch."""
        return list(self._sizes)

    def world_size(self, is_sequence_parallel: bool = False) -> int:
        """Ranks that rows are gathered from."""
        return self._group(is_sequence_parallel).world_size

    def dispatch(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        is_sequence_parallel: bool = False,
        extra_tensors: list[torch.Tensor] | None = None,
    ) -> (
        tuple[torch.Tensor, torch.Tensor, torch.Tensor]
        | tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]
    ):
        """Give all ranks' rows of the arguments, by rank; the list only when ``extra_tensors`` was given.

        Raises TransportError when the arguments differ in their number of rows.
        """
        gathered = self._gather(
            "allgather dispatch", [hidden_states, topk_weights, topk_ids], extra_tensors, is_sequence_parallel
        )
        if extra_tensors is None:
            return gathered[0], gathered[1], gathered[2]
        return gathered[0], gathered[1], gathered[2], gathered[3:]

    def dispatch_router_logits(
        self,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        is_sequence_parallel: bool = False,
        extra_tensors: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Do the same with router logits."""
        gathered = self._gather(
            "allgather dispatch of router logits",
            [hidden_states, router_logits],
            extra_tensors,
            is_sequence_parallel,
        )
        if extra_tensors is None:
            return gathered[0], gathered[1]
        return gathered[0], gathered[1], gathered[2:]

    def combine(
        self,
        hidden_states: torch.Tensor,
        is_sequence_parallel: bool = False,
        sizes: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Sum ``[all rows, hidden]`` over the ranks, give this rank's; ``sizes`` None: the last dispatch's.

        Raises TransportError when the number of rows is not that of the dispatch.
        """
        where = "reduce-scatter combine"
        group = self._group(is_sequence_parallel)
        sizes = list(self._sizes if sizes is None else sizes)
        check_tensor(
            where, "hidden_states", hidden_states, [sum(sizes), None], [hidden_states.dtype], contiguous=False
        )
        mine = sizes[group.rank]
        rows = pack_rows([hidden_states])
        received = group.exchange(where, rows, sizes, [mine] * group.world_size)
        (parts,) = unpack_rows(received, [(hidden_states.dtype, hidden_states.size(1))])
        shape = (group.world_size, mine, hidden_states.size(1))
        return parts.view(shape).sum(dim=0, dtype=torch.float32).to(hidden_states.dtype)

    def _group(self, is_sequence_parallel: bool) -> EpGroup:
        return self.group if is_sequence_parallel else self.group.dp_group

    def _gather(
        self,
        where: str,
        tensors: list[torch.Tensor],
        extra_tensors: list[torch.Tensor] | None,
        is_sequence_parallel: bool,
    ) -> list[torch.Tensor]:
        group = self._group(is_sequence_parallel)
        tensors = [*tensors, *(extra_tensors or [])]
        found = [tensor.size(0) for tensor in tensors]
        if len(set(found)) != 1:
            raise TransportError(f"{where}: tensors have {found} rows, expected one row a token in each.")
        self._sizes = [size for (size,) in group.gather_ints(f"{where} (sizes)", [found[0]])]
        rows = group.gather_rows(where, pack_rows(tensors), self._sizes)
        return unpack_rows(rows, [(tensor.dtype, tensor.size(1)) for tensor in tensors])
