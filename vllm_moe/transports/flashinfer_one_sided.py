"""FlashInfer's one-sided NVLink all-to-all: the vendor's interface, and one on ``torch.distributed``.

Source of names, shapes and behaviour: ``flashinfer/comm/trtllm_moe_alltoall.py``,
``csrc/trtllm_moe_alltoall.cu`` and the kernels below it, of https://github.com/flashinfer-ai/flashinfer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from vllm_moe.transports._group import EpGroup, TransportError
from vllm_moe.transports._vendor import load_vendor
from vllm_moe.transports._wire import RoutingPlan, check_ids, check_tensor, pack_rows, poison_
from vllm_moe.transports.flashinfer_two_sided import vendor_mapping

__all__ = [
    "SUPPORTED_TOP_K",
    "MoeAlltoAll",
    "MoeAlltoAllTransport",
    "TorchMoeAlltoAll",
    "padded_top_k",
    "vendor_moe_alltoall",
]

SUPPORTED_TOP_K = (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 22)
"""The numbers of experts a token for which there are kernels (fewer in older releases: 1, 2, 4 and 8)."""

_MAX_PAYLOADS = 8
_COMBINE_DTYPES = (torch.bfloat16, torch.float16)


def padded_top_k(topk: int) -> int:
    """Give the smallest supported number of experts a token that is at least ``topk``.

    Raises ValueError when there is none.
    """
    for supported in SUPPORTED_TOP_K:
        if supported >= topk:
            return supported
    raise ValueError(f"flashinfer one-sided: topk is {topk}, but the kernels end at {SUPPORTED_TOP_K[-1]}.")


@runtime_checkable
class MoeAlltoAll(Protocol):
    """``flashinfer.comm.trtllm_moe_alltoall.MoeAlltoAll``.

    Preconditions: dispatch and combine alternate; ``token_selected_experts`` is contiguous int32 ``[tokens,
    top_k]`` and every id names an expert; ``runtime_max_tokens_per_rank`` is positive, the same on all ranks,
    and at most ``max_num_tokens``; a payload has one contiguous row a token, and starts at a multiple of its
    element size when the payloads are laid one after another (put those of wider elements first); combine
    takes bf16 or fp16.
    """

    ep_size: int
    ep_rank: int
    top_k: int
    num_experts: int
    max_num_tokens: int

    def dispatch(
        self,
        token_selected_experts: torch.Tensor,
        input_payloads: list[torch.Tensor],
        runtime_max_tokens_per_rank: int,
        invalid_token_expert_id: int | None = None,
        expert_id_payload_index: int | None = None,
    ) -> list[torch.Tensor]:
        """Send each row of each payload once to every rank that owns one of its experts.

        Gives for each payload ``[ep_size, runtime_max_tokens_per_rank, width]``, views of the op's own
        memory: what rank r sent comes first in entry r, and then whatever was there. With
        ``invalid_token_expert_id`` the ids in payload ``expert_id_payload_index`` (int32) are set to it in
        those other rows.
        """

    def combine(self, payload: torch.Tensor, runtime_max_tokens_per_rank: int) -> torch.Tensor:
        """Sum what the ranks made of each of this rank's rows, unweighted.

        ``payload`` ``[ep_size, runtime_max_tokens_per_rank, hidden]`` lies as dispatch's results do; gives
        ``[tokens, hidden]``.
        """


@dataclass(frozen=True)
class MoeAlltoAllTransport:
    """The op, and the ranks that it spans."""

    op: MoeAlltoAll
    group: EpGroup


@dataclass(frozen=True)
class _Sent:
    plan: RoutingPlan
    recv_counts: list[int]
    tokens: int


class TorchMoeAlltoAll:
    """:class:`MoeAlltoAll` over an :class:`EpGroup`, with the vendor's preconditions checked.

    Owns one workspace for all payloads, which every dispatch reuses, with bytes of 0xFF where nobody wrote.

    Raises TransportError for a broken precondition.
    """

    def __init__(self, group: EpGroup, max_num_tokens: int, top_k: int, num_experts: int) -> None:
        where = "flashinfer one-sided"
        if top_k not in SUPPORTED_TOP_K:
            sizes = ", ".join(str(size) for size in SUPPORTED_TOP_K)
            raise TransportError(
                f"{where}: no kernel for top_k {top_k}, expected one of {sizes}. Use padded_top_k."
            )
        if num_experts < group.world_size or num_experts % group.world_size:
            raise TransportError(
                f"{where}: {num_experts} experts do not divide evenly among {group.world_size} ranks."
            )
        self.group = group
        self.ep_size = group.world_size
        self.ep_rank = group.rank
        self.max_num_tokens = max_num_tokens
        self.top_k = top_k
        self.num_experts = num_experts
        self._workspace = torch.empty(0, dtype=torch.uint8, device=group.device)
        self._sent: _Sent | None = None

    def dispatch(
        self,
        token_selected_experts: torch.Tensor,
        input_payloads: list[torch.Tensor],
        runtime_max_tokens_per_rank: int,
        invalid_token_expert_id: int | None = None,
        expert_id_payload_index: int | None = None,
    ) -> list[torch.Tensor]:
        """Send each row of each payload to the ranks that own its experts; see the protocol."""
        where = "flashinfer one-sided dispatch"
        self._check_dispatch(where, token_selected_experts, input_payloads, runtime_max_tokens_per_rank)
        if (invalid_token_expert_id is None) != (expert_id_payload_index is None):
            raise TransportError(
                f"{where}: invalid_token_expert_id and expert_id_payload_index belong together."
            )
        ep_size, capacity = self.ep_size, runtime_max_tokens_per_rank
        plan = RoutingPlan.make(token_selected_experts // (self.num_experts // ep_size), ep_size)
        everyone = self.group.gather_ints(f"{where} (counts)", [capacity, *plan.counts])
        if len({row[0] for row in everyone}) > 1:
            raise TransportError(
                f"{where}: ranks disagree on runtime_max_tokens_per_rank: {[row[0] for row in everyone]}."
            )
        recv_counts = [row[1 + self.ep_rank] for row in everyone]
        packed = pack_rows(input_payloads).index_select(0, plan.rows)
        rows_in = self.group.exchange(where, packed, plan.counts, recv_counts)
        received = torch.split(rows_in, recv_counts)

        widths = [payload.size(1) * payload.element_size() for payload in input_payloads]
        memory = self._claim(ep_size * capacity * sum(widths))
        results = []
        place = column = 0
        for payload, width in zip(input_payloads, widths, strict=True):
            size = ep_size * capacity * width
            region = memory[place : place + size].view(ep_size, capacity, width)
            for rank, rows in enumerate(received):
                region[rank, : rows.size(0)] = rows[:, column : column + width]
            results.append(region.view(payload.dtype))
            place += size
            column += width
        if invalid_token_expert_id is not None and expert_id_payload_index is not None:
            ids = results[expert_id_payload_index]
            check_tensor(where, "the id payload", ids, [None, None, None], [torch.int32], contiguous=False)
            for rank, count in enumerate(recv_counts):
                ids[rank, count:] = invalid_token_expert_id
        self._sent = _Sent(plan, recv_counts, token_selected_experts.size(0))
        return results

    def combine(self, payload: torch.Tensor, runtime_max_tokens_per_rank: int) -> torch.Tensor:
        """Sum what the ranks made of each of this rank's rows; see the protocol."""
        where = "flashinfer one-sided combine"
        sent = self._sent
        if sent is None:
            raise TransportError(f"{where}: called before a dispatch.")
        check_tensor(
            where, "payload", payload, [self.ep_size, runtime_max_tokens_per_rank, None], _COMBINE_DTYPES
        )
        hidden = payload.size(2)
        rows = torch.cat([payload[rank, :count] for rank, count in enumerate(sent.recv_counts)])
        received = self.group.exchange(where, pack_rows([rows]), sent.recv_counts, sent.plan.counts)
        summed = sent.plan.sum(received.view(payload.dtype), sent.tokens)
        self._sent = None
        if summed.shape != (sent.tokens, hidden):
            raise TransportError(f"{where}: ranks disagree on the hidden size, {hidden} here.")
        return summed.to(payload.dtype)

    def _claim(self, size: int) -> torch.Tensor:
        if self._workspace.numel() < size:
            self._workspace = torch.empty(size, dtype=torch.uint8, device=self.group.device)
        return poison_(self._workspace)[:size]

    def _check_dispatch(
        self, where: str, experts: torch.Tensor, payloads: Sequence[torch.Tensor], capacity: int
    ) -> None:
        if self._sent is not None:
            raise TransportError(f"{where}: called twice without a combine.")
        tokens = experts.size(0)
        check_tensor(where, "token_selected_experts", experts, [None, self.top_k], [torch.int32])
        check_ids(where, experts, 0, self.num_experts)
        if not 0 < capacity <= self.max_num_tokens:
            raise TransportError(
                f"{where}: runtime_max_tokens_per_rank is {capacity}, expected 1 to max_num_tokens, which is "
                f"{self.max_num_tokens}."
            )
        if tokens > capacity:
            raise TransportError(
                f"{where}: {tokens} tokens, but runtime_max_tokens_per_rank is {capacity}. Pass the largest "
                "number "
                "that any rank has, the same on all."
            )
        if not 0 < len(payloads) <= _MAX_PAYLOADS:
            raise TransportError(f"{where}: {len(payloads)} payloads, expected 1 to {_MAX_PAYLOADS}.")
        offset = 0
        for index, payload in enumerate(payloads):
            check_tensor(where, f"payload {index}", payload, [tokens, None], [payload.dtype])
            offset += self.ep_size * capacity * payload.size(1) * payload.element_size()
            if offset % payload.element_size():
                raise TransportError(
                    f"{where}: payload {index} would lie at no multiple of its {payload.element_size()} "
                    "bytes. Put "
                    "payloads of wider elements first."
                )


def vendor_moe_alltoall(
    group: EpGroup,
    gpus_per_node: int,
    max_num_tokens: int,
    top_k: int,
    num_experts: int,
    bytes_per_token: int,
) -> Any:
    """Build the genuine ``MoeAlltoAll``; ``bytes_per_token`` is the most that a dispatch or a combine sends.

    Raises TransportError when the library cannot be imported.
    """
    module, why = load_vendor("flashinfer")
    if module is None:
        raise TransportError(f"flashinfer: the library cannot be imported: {why}.")
    mapping, config = vendor_mapping(module, group, gpus_per_node)
    library = module.comm.trtllm_moe_alltoall
    size = library.moe_a2a_get_workspace_size_per_rank(
        ep_size=group.world_size,
        max_num_tokens=max_num_tokens,
        total_dispatch_payload_size_per_token=bytes_per_token,
        combine_payload_size_per_token=bytes_per_token,
    )
    return library.MoeAlltoAll(
        mapping=mapping,
        max_num_tokens=max_num_tokens,
        top_k=top_k,
        num_experts=num_experts,
        workspace_size_per_rank=size,
        mnnvl_config=config,
    )
