"""Launching Triton kernels with little work on the host.

``kernel[grid](...)`` binds and classifies every argument anew in each call, which takes longer than a
decode-size kernel runs. A :class:`Launch` holds what stays the same from call to call: the grid, the
integers, the compile-time constants and, after the first call, the compiled kernel. What is left to do is to
look at the tensors' addresses.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

__all__ = ["OVERLAPS", "Launch"]

# An id out of range has to be refused without waiting for the device, so kernels trap. The overflow checks
# that come with the debug option are not wanted.
_OPTIONS = {"debug": True, "sanitize_overflow": False}

# Releases whose compiled kernels are known to be started with (grid, stream, function, metadata, three hooks,
# arguments), and to take addresses for pointers. For others there is the documented, slower way.
_VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
_STARTED_DIRECTLY = (3, 3) <= _VERSION <= (3, 6)


def _overlaps() -> bool:
    """Whether a kernel may start while the one before it runs (programmatic dependent launch, Hopper)."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability() >= (9, 0) and hasattr(tl.extra.cuda, "gdc_wait")


OVERLAPS = _overlaps()


class Launch:
    """One kernel with everything but its pointers: which tensors are None and their dtypes are fixed as well.

    The kernel's parameters are pointers first, then ``integers`` (32 bits, not specialized on), then
    ``constants``. ``overlapped`` starts it before the launch before it has ended; it waits where it has to.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, int],
        integers: tuple[int, ...],
        constants: tuple[object, ...],
        num_warps: int,
        overlapped: bool = False,
    ) -> None:
        self.kernel = kernel
        self.grid = (*grid, 1)
        self.rest = (*integers, *constants)
        self.options = {**_OPTIONS, "num_warps": num_warps}
        if overlapped:
            self.options["launch_pdl"] = True
        self._compiled: dict[int, Any] = {}

    def __call__(self, *pointers: torch.Tensor | None) -> None:
        """Start it on the current stream of the current device; does nothing when there are no programs."""
        if 0 in self.grid:
            return
        # The interpreter compiles nothing, and other releases are asked to start what they compiled.
        if not (_STARTED_DIRECTLY and isinstance(self.kernel, JITFunction)):
            self.kernel[self.grid](*pointers, *self.rest, **self.options)
            return
        addresses: list[int | None] = []
        together = 0
        for pointer in pointers:
            if pointer is None:
                addresses.append(None)
            else:
                address = pointer.data_ptr()
                together |= address
                addresses.append(address)
        device = torch._C._cuda_getDevice()  # noqa: SLF001 -- torch.cuda.current_device without its preamble
        compiled = self._compiled.get(device)
        # Code for aligned addresses (all but odd views) is kept; Triton itself finds the code for others.
        if compiled is None or together & 15:
            compiled = self.kernel[self.grid](*pointers, *self.rest, **self.options)
            if not together & 15:
                self._compiled[device] = compiled
            return
        compiled.run(
            *self.grid,
            torch._C._cuda_getCurrentRawStream(device),  # noqa: SLF001 -- as Triton itself asks for it
            compiled.function,
            compiled.packed_metadata,
            None,
            None,
            None,
            *addresses,
            *self.rest,
        )
