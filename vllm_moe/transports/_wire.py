"""What the torch transports share: rows as bytes, routing plans, argument checks, and garbage."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_moe.transports._group import TransportError

__all__ = [
    "RoutingPlan",
    "check_ids",
    "check_tensor",
    "garbage_ids",
    "pack_rows",
    "pad_row_bytes",
    "poison_",
    "unpack_rows",
]


def pack_rows(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Lay tensors ``[n, width_i]`` of any dtypes side by side as bytes: ``[n, total]`` uint8."""
    return torch.cat([_bytes(part) for part in parts], dim=1)


def _bytes(rows: torch.Tensor) -> torch.Tensor:
    """Give ``[n, width]`` as bytes; by way of one dimension, since empty tensors may have odd strides."""
    return rows.contiguous().view(-1).view(torch.uint8).view(rows.size(0), rows.size(1) * rows.element_size())


def unpack_rows(rows: torch.Tensor, parts: Sequence[tuple[torch.dtype, int]]) -> list[torch.Tensor]:
    """Undo :func:`pack_rows`; ``parts`` are the tensors' dtypes and widths."""
    result = []
    start = 0
    for dtype, width in parts:
        size = dtype.itemsize * width
        # A copy of its own, since a slice of bytes is not aligned for its dtype.
        part = rows[:, start : start + size].clone(memory_format=torch.contiguous_format)
        result.append(part.view(-1).view(dtype).view(rows.size(0), width))
        start += size
    return result


def pad_row_bytes(tensor: torch.Tensor, multiple: int) -> torch.Tensor:
    """Rows of ``tensor`` ``[n, width]`` filled up with zeros to a multiple of so many bytes."""
    missing = -tensor.size(1) * tensor.element_size() % multiple // tensor.element_size()
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor.contiguous()


def poison_(tensor: torch.Tensor) -> torch.Tensor:
    """Fill memory that nobody has written with bytes 0xFF: NaN in every float here, -1 in integers."""
    if tensor.is_contiguous():
        tensor.view(torch.uint8).fill_(0xFF) if tensor.dim() else tensor.fill_(-1)
    else:
        tensor.copy_(poison_(torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)))
    return tensor


def garbage_ids(tensor: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Fill an id tensor with what is worst to find there by accident: ids that exist."""
    numbers = torch.arange(tensor.numel(), device=tensor.device) % num_experts
    return tensor.copy_(numbers.view(tensor.shape))


def check_tensor(
    where: str,
    name: str,
    tensor: torch.Tensor,
    shape: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    *,
    contiguous: bool = True,
) -> None:
    """Refuse what the vendor's kernel would misread: wrong shape (None is any size), dtype or strides."""
    wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
    fits = tensor.dim() == len(shape) and all(
        size in {None, found} for size, found in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise TransportError(f"{where}: {name} has shape {list(tensor.shape)}, expected {wanted}.")
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype) for dtype in dtypes)
        raise TransportError(
            f"{where}: {name} is {tensor.dtype}, expected {names}. Convert it before the call."
        )
    if contiguous and not tensor.is_contiguous():
        raise TransportError(
            f"{where}: {name} has strides {list(tensor.stride())} for shape {list(tensor.shape)}, expected "
            "contiguous "
            "memory. Call contiguous() on it."
        )


def check_ids(where: str, ids: torch.Tensor, lowest: int, end: int) -> None:
    """Refuse expert ids outside ``lowest <= id < end``."""
    bad = (ids < lowest) | (ids >= end)
    if bool(bad.any()):
        row, slot = (int(index) for index in bad.nonzero()[0])
        raise TransportError(
            f"{where}: expert id {int(ids[row, slot])} of token {row}, slot {slot}, is outside {lowest} to "
            f"{end - 1}."
        )


@dataclass(frozen=True)
class RoutingPlan:
    """Which of this rank's rows go to which rank, each at most once to a rank; by rank, then by token."""

    rows: torch.Tensor
    """int64 ``[sum(counts)]``: the row that is sent."""
    counts: list[int]
    """How many rows go to each rank."""

    @staticmethod
    def make(owner: torch.Tensor, world_size: int) -> "RoutingPlan":
        """Plan from ``owner`` ``[tokens, topk]``: the rank of each slot's expert, or -1."""
        ranks = torch.arange(world_size, device=owner.device)
        wanted = (owner.unsqueeze(-1) == ranks).any(dim=1).t()  # [ranks, tokens]
        return RoutingPlan(wanted.nonzero()[:, 1], wanted.sum(dim=1).tolist())

    def sum(self, parts: torch.Tensor, tokens: int) -> torch.Tensor:
        """Sum what came back, one row for each that was sent, into float32 ``[tokens, width]``, by rank."""
        summed = torch.zeros((tokens, parts.size(1)), dtype=torch.float32, device=parts.device)
        # Rank by rank, since a row is then written once a step and equal calls give equal bits on a GPU too.
        for rows, part in zip(
            torch.split(self.rows, self.counts), torch.split(parts, self.counts), strict=True
        ):
            summed.index_add_(0, rows, part.float())
        return summed
