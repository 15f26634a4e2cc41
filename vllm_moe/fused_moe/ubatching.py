"""Which micro-batch is running, for backends that keep several exchanges in flight.

vLLM runs each micro-batch in its own thread (``vllm/v1/worker/ubatching.py``). Here a micro-batch is a
context: the driver enters it around each step it takes for that micro-batch, and a backend keys its handles
by :func:`dbo_current_ubatch_id`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["dbo_current_ubatch_id", "dbo_enabled", "ubatch"]

_CURRENT: ContextVar[int | None] = ContextVar("vllm_moe_current_ubatch", default=None)


def dbo_enabled() -> bool:
    """Whether the caller interleaves micro-batches (vLLM's dual batch overlap)."""
    return _CURRENT.get() is not None


def dbo_current_ubatch_id() -> int:
    """Give the number of the running micro-batch, from 0; 0 when there is only one."""
    return _CURRENT.get() or 0


@contextmanager
def ubatch(ubatch_id: int) -> Iterator[None]:
    """Run the body as micro-batch ``ubatch_id``."""
    token = _CURRENT.set(ubatch_id)
    try:
        yield
    finally:
        _CURRENT.reset(token)
