"""Launching Triton kernels with little work on the host.

``kernel[grid](...)`` binds and classifies every argument anew in each call, which takes longer than a
decode-size kernel runs. What decides about the compiled code here is little and known: the compile-time
constants, the dtypes of the pointers, and whether they are aligned to 16 bytes. Integers are not specialized
on (the kernels say so themselves). A launch therefore looks the compiled kernel up by these and starts it
directly.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

__all__ = ["OVERLAPS", "Launcher"]

# An id out of range has to be refused without waiting for the device, so kernels trap. The overflow checks that
# come with the debug option are not wanted.
_OPTIONS = {"debug": True, "sanitize_overflow": False}

# Releases whose compiled kernels are known to be started with (grid, stream, function, metadata, three hooks,
# arguments), and to take addresses for pointers. For others there is the documented, slower way.
_VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
_STARTED_DIRECTLY = (3, 3) <= _VERSION <= (3, 6)


def _overlaps() -> bool:
    """Whether a kernel may start while the one before it still runs (programmatic dependent launch, Hopper)."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability() >= (9, 0) and hasattr(tl.extra.cuda, "gdc_wait")


OVERLAPS = _overlaps()


class Launcher:
    """A kernel whose parameters are pointers (tensors or None), then 32-bit integers, then constants."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._compiled: dict[tuple[object, ...], Any] = {}

    def __call__(
        self,
        programs: int,
        pointers: tuple[torch.Tensor | None, ...],
        integers: tuple[int, ...],
        constants: tuple[object, ...],
        num_warps: int,
        programs_y: int = 1,
        overlapped: bool = False,
    ) -> None:
        """Run ``programs x programs_y`` programs on the current stream of the current device.

        ``overlapped``: start before the launch before this one has ended; the kernel waits where it has to.
        """
        compiles = isinstance(self.kernel, JITFunction)
        device = torch.cuda.current_device() if compiles else 0
        addresses = [None if pointer is None else pointer.data_ptr() for pointer in pointers]
        kinds = [None if pointer is None else pointer.dtype for pointer in pointers]
        aligned = [address is not None and address % 16 == 0 for address in addresses]
        key = (constants, num_warps, device, overlapped, *kinds, *aligned)
        compiled = self._compiled.get(key)
        grid = (programs, programs_y, 1)
        if compiled is None:
            options = {**_OPTIONS, "num_warps": num_warps}
            if overlapped:
                options["launch_pdl"] = True
            compiled = self.kernel[grid](*pointers, *integers, *constants, **options)
            # The interpreter gives nothing to keep.
            if compiled is not None:
                self._compiled[key] = compiled
        elif _STARTED_DIRECTLY:
            compiled.run(
                programs,
                programs_y,
                1,
                torch._C._cuda_getCurrentRawStream(device),  # noqa: SLF001 -- as Triton itself asks for it
                compiled.function,
                compiled.packed_metadata,
                None,
                None,
                None,
                *addresses,
                *integers,
                *constants,
            )
        else:
            compiled[grid](*pointers, *integers, *constants)
