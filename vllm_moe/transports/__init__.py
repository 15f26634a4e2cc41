"""What carries tokens between ranks: each vendor's interface, and one that runs on ``torch.distributed``.

Every vendor has a Protocol with that vendor's own signature and preconditions, and a ``Torch...`` class that
behaves as the vendor's does: same shapes and dtypes, memory that it owns and reuses, garbage where the vendor
leaves garbage, send and receive apart, and the preconditions checked. They run over gloo on CPU tensors and
on CUDA tensors of one GPU or several, and over NCCL with one GPU a rank. Every exchange ends within its
group's timeout, with an error that names the ranks that stayed away. They wait for the host and are not made
for CUDA graphs: the vendors' libraries are.
"""

from vllm_moe.transports._group import EpGroup, TransportChoice, TransportError
from vllm_moe.transports._low_latency import LOW_LATENCY_HIDDEN_SIZES
from vllm_moe.transports._vendor import (
    VENDORS,
    MissingTransportError,
    VendorName,
    load_vendor,
    missing_transport,
    topk_index_dtype,
)
from vllm_moe.transports._wire import pad_row_bytes
from vllm_moe.transports.allgather_reducescatter import AllGatherReduceScatter, TorchAllGatherReduceScatter
from vllm_moe.transports.deep_ep import DeepEpBuffer, TorchDeepEpBuffer, vendor_deep_ep_buffer
from vllm_moe.transports.flashinfer_one_sided import (
    MoeAlltoAll,
    MoeAlltoAllTransport,
    TorchMoeAlltoAll,
    padded_top_k,
    vendor_moe_alltoall,
)
from vllm_moe.transports.flashinfer_two_sided import (
    MNNVL_ALIGNMENT_BYTES,
    MnnvlMoe,
    MnnvlTransport,
    MoEAlltoallInfo,
    TorchMnnvlMoe,
    vendor_mnnvl_transport,
)
from vllm_moe.transports.mori import (
    EpDispatchCombineOp,
    TorchEpDispatchCombineConfig,
    TorchEpDispatchCombineOp,
    vendor_mori_op,
)
from vllm_moe.transports.nixl_ep import NixlEpBuffer, TorchNixlEpBuffer, VendorNixlEpBuffer

__all__ = [
    "LOW_LATENCY_HIDDEN_SIZES",
    "MNNVL_ALIGNMENT_BYTES",
    "VENDORS",
    "AllGatherReduceScatter",
    "DeepEpBuffer",
    "EpDispatchCombineOp",
    "EpGroup",
    "MissingTransportError",
    "MnnvlMoe",
    "MnnvlTransport",
    "MoEAlltoallInfo",
    "MoeAlltoAll",
    "MoeAlltoAllTransport",
    "NixlEpBuffer",
    "TorchAllGatherReduceScatter",
    "TorchDeepEpBuffer",
    "TorchEpDispatchCombineConfig",
    "TorchEpDispatchCombineOp",
    "TorchMnnvlMoe",
    "TorchMoeAlltoAll",
    "TorchNixlEpBuffer",
    "TransportChoice",
    "TransportError",
    "VendorName",
    "VendorNixlEpBuffer",
    "load_vendor",
    "missing_transport",
    "pad_row_bytes",
    "padded_top_k",
    "topk_index_dtype",
    "vendor_deep_ep_buffer",
    "vendor_mnnvl_transport",
    "vendor_moe_alltoall",
    "vendor_mori_op",
]
