"""Which vendor libraries are here, and why the others are not."""

import importlib
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Literal

import torch

__all__ = [
    "VENDORS",
    "MissingTransportError",
    "Vendor",
    "VendorName",
    "clear_vendor_cache",
    "load_vendor",
    "missing_transport",
    "topk_index_dtype",
]

VendorName = Literal["deep_ep", "flashinfer", "mori", "nixl_ep"]


class MissingTransportError(ImportError):
    """A backend was built without anything to carry its tokens."""


@dataclass(frozen=True)
class Vendor:
    """A library that carries tokens between ranks."""

    package: VendorName
    """The name that code imports."""
    modules: tuple[str, ...]
    """Import names to try, in order; a wheel may have the CUDA version in the name of its package."""
    attribute: str
    """What the package must offer, dotted, to be of use."""
    source: str
    """Where to get it."""


VENDORS: dict[VendorName, Vendor] = {
    vendor.package: vendor
    for vendor in (
        Vendor("deep_ep", ("deep_ep",), "Buffer", "https://github.com/deepseek-ai/DeepEP"),
        Vendor(
            "flashinfer",
            ("flashinfer",),
            "comm.trtllm_moe_alltoall.MoeAlltoAll",
            "pip install flashinfer-python",
        ),
        Vendor("mori", ("mori",), "ops.EpDispatchCombineOp", "https://github.com/ROCm/mori"),
        Vendor("nixl_ep", ("nixl_ep", "nixl_ep_cu13", "nixl_ep_cu12"), "Buffer", "pip install nixl-cu13"),
    )
}


@cache
def load_vendor(package: VendorName) -> tuple[ModuleType | None, str]:
    """Import a vendor's package: ``(module, version)``, or ``(None, why not)``.

    The NIXL wheels ship ``nixl_ep_cu13`` (or ``_cu12``) while users of the library import ``nixl_ep``:
    whichever is found is registered in ``sys.modules`` as ``nixl_ep``. An import that fails for want of a
    driver or a shared library counts as not there, and its message is the reason.
    """
    vendor = VENDORS[package]
    reasons = []
    for name in vendor.modules:
        try:
            module = importlib.import_module(name)
            found: object = module
            path = name
            for part in vendor.attribute.split("."):
                path = f"{path}.{part}"
                found = getattr(found, part) if hasattr(found, part) else importlib.import_module(path)
        except (ImportError, OSError) as error:
            reasons.append(f"{name}: {error}")
            continue
        sys.modules.setdefault(package, module)
        return module, _version(module)
    return None, "; ".join(reasons)


def _version(module: ModuleType) -> str:
    """Give the version that the module says, or the distribution that it came in."""
    said = getattr(module, "__version__", None)
    if said is not None:
        return str(said)
    for distribution in metadata.packages_distributions().get(module.__name__, []):
        return f"{distribution} {metadata.version(distribution)}"
    return "version unknown"


def clear_vendor_cache() -> None:
    """Forget what :func:`load_vendor` found, for a process that installs or hides a package while it runs."""
    load_vendor.cache_clear()


def missing_transport(
    backend: str, package: VendorName, argument: str, torch_transport: str
) -> MissingTransportError:
    """Describe a backend that was given None where its transport belongs.

    ``argument`` is the constructor's parameter, ``torch_transport`` the class of this package that stands in.
    """
    module, why = load_vendor(package)
    if module is None:
        return MissingTransportError(
            f"{backend}: {argument} is None, and package {package!r} cannot be imported ({why}). Install it "
            f"({VENDORS[package].source}) and pass its object, or pass "
            f"vllm_moe.transports.{torch_transport}.",
            name=package,
        )
    return MissingTransportError(
        f"{backend}: {argument} is None. Package {package!r} is installed: pass its "
        f"{VENDORS[package].attribute}, or "
        f"vllm_moe.transports.{torch_transport}, or let all2all_utils.maybe_make_prepare_finalize choose.",
        name=package,
    )


def topk_index_dtype(transport: object) -> torch.dtype:
    """Give the dtype of expert ids that a DeepEP-like library was compiled for.

    Vendors say it as ``topk_idx_t``, on the package (DeepEP and NIXL have changed it between releases) or, in
    this package's own transports, on the object; int64 where neither says anything, which is what they began
    with.
    """
    own = getattr(transport, "topk_idx_t", None)
    if own is None:
        package = sys.modules.get(type(transport).__module__.partition(".")[0])
        own = getattr(package, "topk_idx_t", torch.int64)
    if not isinstance(own, torch.dtype):
        raise TypeError(f"{type(transport).__name__}: topk_idx_t is {own!r}, expected a torch.dtype.")
    return own
