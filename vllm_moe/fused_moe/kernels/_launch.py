"""Launching Triton kernels with little work on the host.

``kernel[grid](...)`` binds and classifies every argument anew in each call, which takes longer than a
decode-size kernel runs. What decides about the compiled code here is little and known: the compile-time
constants, the dtypes of the pointers, and whether they are aligned to 16 bytes. Integers are not specialized
on (the kernels say so themselves). A launch therefore looks the compiled kernel up by these and starts it
directly.
"""

from typing import Any

import torch
from triton.runtime.jit import JITFunction

__all__ = ["Launcher"]

# An id out of range has to be refused without waiting for the device, so kernels trap. The overflow checks
# that come with the debug option are not wanted.
_OPTIONS = {"debug": True, "sanitize_overflow": False}


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
    ) -> None:
        """Run ``programs x programs_y`` programs on the current stream of the current device."""
        key: tuple[object, ...] = (
            constants,
            num_warps,
            torch.cuda.current_device() if isinstance(self.kernel, JITFunction) else None,
            tuple(
                [
                    pointer if pointer is None else (pointer.dtype, pointer.data_ptr() % 16 == 0)
                    for pointer in pointers
                ]
            ),
        )
        compiled = self._compiled.get(key)
        grid = (programs, programs_y, 1)
        if compiled is None:
            compiled = self.kernel[grid](*pointers, *integers, *constants, num_warps=num_warps, **_OPTIONS)
            # The interpreter returns nothing to keep.
            if compiled is not None:
                self._compiled[key] = compiled
            return
        compiled[grid](*pointers, *integers, *constants)
