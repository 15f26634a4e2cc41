"""NIXL EP's buffer: the vendor's interface, the genuine library, and a stand-in on ``torch.distributed``.

Source of names, shapes and behaviour: ``nixl_ep/buffer.py`` of the ``nixl-cu13`` 1.3.0 wheel and
``examples/device/ep/csrc/nixl_ep.cpp`` of https://github.com/ai-dynamo/nixl.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

import torch

from vllm_moe.transports._group import EpGroup, TransportError
from vllm_moe.transports._low_latency import LOW_LATENCY_HIDDEN_SIZES, EventOverlap, LowLatencyExchange
from vllm_moe.transports._vendor import load_vendor

__all__ = ["LOW_LATENCY_HIDDEN_SIZES", "NixlEpBuffer", "TorchNixlEpBuffer", "VendorNixlEpBuffer"]

NixlEpHandle = tuple[torch.Tensor, torch.Tensor, int, int]
"""``(src_info, layout_range, num_max_dispatch_tokens_per_rank, hidden)``."""


@runtime_checkable
class NixlEpBuffer(Protocol):
    """``nixl_ep.Buffer`` in low-latency mode.

    Preconditions: ``x`` is contiguous bf16 with one of :data:`LOW_LATENCY_HIDDEN_SIZES` columns and at most
    ``num_max_dispatch_tokens_per_rank`` rows, a number that is the same on every rank and times the ranks a
    multiple of 4; ids are contiguous, of the dtype that the library was compiled for, and -1 means no expert;
    ``use_fp8`` needs a hidden size that is a multiple of 512; weights are float32. There are two
    buffers, used in turn, and a send clears the counters of the other one: the receive half of a call has to
    have run before the next call. ``num_experts`` is required up to release 1.2, ignored in
    1.3 and 1.4, and the physical capacity from 1.5 on: pass the number of physical experts, which is right
    for all.
    """

    def dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int | None = None,
        cumulative_local_expert_recv_stats: torch.Tensor | None = None,
        dispatch_wait_recv_cost_stats: torch.Tensor | None = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> tuple[Any, torch.Tensor, Any, Any, Callable[[], None] | None]:
        """Send tokens to their experts: ``(recv_x, counts, handle, event, hook)``.

        ``recv_x`` is bf16 ``[local experts, ranks * num_max_dispatch_tokens_per_rank, hidden]``, or with
        ``use_fp8`` ``(fp8, scales)`` with one float32 scale for 128 elements; ``counts`` int32 ``[local
        experts]`` says how many rows of each expert hold anything. With ``return_recv_hook`` nothing is here
        before the hook was called.
        """

    def combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: Any,
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: torch.Tensor | None = None,
        combine_wait_recv_cost_stats: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Any, Callable[[], None] | None]:
        """Send bf16 rows back and add them up, weighted: ``([tokens, hidden], event, hook)``.

        ``topk_idx`` are the ids that this rank gave to dispatch.
        """


class TorchNixlEpBuffer:
    """:class:`NixlEpBuffer` over an :class:`EpGroup`, with the vendor's preconditions checked.

    Raises TransportError for a broken precondition or an option that only means something on the vendor's
    hardware.
    """

    topk_idx_t = torch.int64

    def __init__(self, group: EpGroup, num_experts_per_rank: int) -> None:
        self.group = group
        self.num_experts_per_rank = num_experts_per_rank
        self._exchange = LowLatencyExchange("nixl_ep", group, self.topk_idx_t)

    def dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int | None = None,
        cumulative_local_expert_recv_stats: torch.Tensor | None = None,
        dispatch_wait_recv_cost_stats: torch.Tensor | None = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> tuple[Any, torch.Tensor, NixlEpHandle, EventOverlap, Callable[[], None] | None]:
        """Send tokens to their experts; ``num_experts`` has to be the physical number, or None."""
        physical = self.num_experts_per_rank * self.group.world_size
        if num_experts not in {None, physical}:
            raise TransportError(
                f"nixl_ep dispatch: num_experts is {num_experts}, but the buffer was made for "
                f"{self.group.world_size} "
                f"ranks of {self.num_experts_per_rank} experts. Pass {physical}."
            )
        _refuse(
            "nixl_ep dispatch",
            cumulative_local_expert_recv_stats=cumulative_local_expert_recv_stats,
            dispatch_wait_recv_cost_stats=dispatch_wait_recv_cost_stats,
        )
        recv_x, counts, (src_info, layout_range), event, hook = self._exchange.dispatch(
            x,
            topk_idx,
            num_max_dispatch_tokens_per_rank,
            self.num_experts_per_rank,
            use_fp8=use_fp8,
            round_scale=round_scale,
            use_ue8m0=use_ue8m0,
            async_finish=async_finish,
            return_recv_hook=return_recv_hook,
        )
        return (
            recv_x,
            counts,
            (src_info, layout_range, num_max_dispatch_tokens_per_rank, x.size(1)),
            event,
            hook,
        )

    def combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: NixlEpHandle,
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: torch.Tensor | None = None,
        combine_wait_recv_cost_stats: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, EventOverlap, Callable[[], None] | None]:
        """Send bf16 rows back and add them up, weighted; see the protocol."""
        _refuse(
            "nixl_ep combine",
            use_logfmt=use_logfmt or None,
            zero_copy=zero_copy or None,
            combine_wait_recv_cost_stats=combine_wait_recv_cost_stats,
        )
        src_info, layout_range, max_tokens, _ = handle
        return self._exchange.combine(
            x,
            topk_idx,
            topk_weights,
            (src_info, layout_range),
            max_tokens,
            async_finish=async_finish,
            return_recv_hook=return_recv_hook,
            out=out,
        )


class VendorNixlEpBuffer:
    """The genuine ``nixl_ep.Buffer``, connected to the group's ranks, that tells when one of them is lost.

    On a timeout the library's low-latency kernels go on without the missing rank, and its tokens are silently
    left out. The list of ranks left out is therefore copied to the host after each combine, without waiting
    for it, and read at the next call, which raises TransportError with the ranks' numbers: at the latest in
    the following layer. :meth:`check` waits for it and raises at once. Nothing is copied while a CUDA graph
    is captured.

    Raises TransportError, with the reason, when the library cannot be imported.
    """

    def __init__(
        self, group: EpGroup, *, max_tokens_per_rank: int, hidden: int, num_experts_per_rank: int
    ) -> None:
        module, why = load_vendor("nixl_ep")
        if module is None:
            raise TransportError(f"nixl_ep: the library cannot be imported: {why}.")
        if group.device.type != "cuda":
            raise TransportError(
                f"nixl_ep: the library works on CUDA tensors, but the group's device is {group.device}."
            )
        self.group = group
        self.topk_idx_t: torch.dtype = getattr(module, "topk_idx_t", torch.int64)
        world = group.world_size
        store = _UndeletingStore(group.store())
        self.buffer = module.Buffer(
            rank=group.rank,
            low_latency_mode=True,
            explicitly_destroy=True,
            tcp_store_group=store,
            timeout_ms=int(group.timeout.total_seconds() * 1000),
        )
        size = module.Buffer.get_rdma_size_hint(
            max_tokens_per_rank, hidden, world, world * num_experts_per_rank
        )
        self.buffer.update_memory_buffers(
            num_ranks=world, num_experts_per_rank=num_experts_per_rank, num_rdma_bytes=size
        )
        # This rank is among them because the library takes no empty list; it leaves itself out.
        self.buffer.connect_ranks(list(range(world)))
        group.barrier("nixl_ep connection")
        store.delete_all()
        self._mask = torch.zeros(world, dtype=torch.int32, device=group.device)
        self._mask_on_host = torch.zeros(world, dtype=torch.int32, pin_memory=True)
        self._copied: Any = None

    def dispatch(
        self, *args: Any, **kwargs: Any
    ) -> tuple[Any, torch.Tensor, Any, Any, Callable[[], None] | None]:
        """Call the library's ``dispatch``."""
        self._raise_if_lost()
        result: tuple[Any, torch.Tensor, Any, Any, Callable[[], None] | None] = self.buffer.dispatch(
            *args, **kwargs
        )
        return result

    def combine(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any, Callable[[], None] | None]:
        """Call the library's ``combine``, and have it looked at who took part."""
        self._raise_if_lost()
        combined, event, hook = self.buffer.combine(*args, **kwargs)
        if hook is None:
            self._copy_mask()
            return combined, event, None

        def receive() -> None:
            hook()
            self._copy_mask()

        return combined, event, receive

    def check(self) -> None:
        """Wait for the device and raise TransportError if a rank was lost."""
        self._copy_mask()
        if self._copied is not None:
            self._copied.synchronize()
        self._raise_if_lost()

    def destroy(self) -> None:
        """Release the library's memory."""
        self.buffer.destroy()

    def _copy_mask(self) -> None:
        if torch.cuda.is_current_stream_capturing():
            return
        self.buffer.query_mask_buffer(self._mask)
        self._mask_on_host.copy_(self._mask, non_blocking=True)
        cuda: Any = torch.cuda  # whose events are not typed
        self._copied = cuda.Event()
        self._copied.record()

    def _raise_if_lost(self) -> None:
        if self._copied is None or torch.cuda.is_current_stream_capturing() or not self._copied.query():
            return
        lost = self._mask_on_host.nonzero()[:, 0].tolist()
        if lost:
            raise TransportError(
                f"nixl_ep: rank{'s' if len(lost) > 1 else ''} {', '.join(map(str, lost))} of "
                f"{self.group.world_size} died or did not answer within "
                f"{self.group.timeout.total_seconds():g} s, and the last results lack "
                "their experts. Start all ranks again."
            )


class _UndeletingStore:
    """The part of a store that the library connects through, keeping keys until every rank has read them.

    The library deletes its own key as soon as its own connections stand, and a slower rank then waits for it
    in vain.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._prefix = "vllm_moe/"
        self._keys: list[str] = []

    def set(self, key: str, value: bytes) -> None:
        """Set a key."""
        self._store.set(self._prefix + key, value)

    def wait(self, keys: Sequence[str], timeout: timedelta) -> None:
        """Wait for keys."""
        self._store.wait([self._prefix + key for key in keys], timeout)

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Get the values of keys."""
        values: list[bytes] = self._store.multi_get([self._prefix + key for key in keys])
        return values

    def delete_key(self, key: str) -> bool:
        """Put the deletion off."""
        self._keys.append(key)
        return True

    def delete_all(self) -> None:
        """Delete what was to be deleted."""
        while self._keys:
            self._store.delete_key(self._prefix + self._keys.pop())


def _refuse(where: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise TransportError(f"{where}: {name} is not available over torch.distributed. Leave it out.")
