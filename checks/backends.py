"""Rows of the backends that come with this project, and of the genuine vLLM's that run without a vendor's library."""

import importlib
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch

from checks._package import DEFAULT_PACKAGE
from checks._rows import Backend, Layer, Place, Vendor

__all__ = ["rows"]


class _VendorGroups(threading.local):
    """The group of this rank whose vendor buffers are alive, and what they were made for."""

    key: object = None
    group: Any = None


_VENDOR_GROUPS = _VendorGroups()


def _group(place: Place, layer: Layer, name: str) -> Any:
    """A group for a backend; with a vendor's library one is used again, since its memory is not made in no time."""
    transports = importlib.import_module("vllm_moe.transports")
    if place.transport == "vendor":
        key = (name, layer.hidden, layer.num_experts, layer.max_num_tokens)
        if _VENDOR_GROUPS.key == key:
            return _VENDOR_GROUPS.group
        if _VENDOR_GROUPS.group is not None:
            _VENDOR_GROUPS.group.close()
    made = transports.EpGroup(device=place.device, timeout=timedelta(seconds=place.seconds), transport=place.transport)
    if place.transport == "vendor":
        _VENDOR_GROUPS.key, _VENDOR_GROUPS.group = key, made
    return made


def _config(place: Place, layer: Layer, name: str) -> Any:
    config = importlib.import_module(f"{DEFAULT_PACKAGE}.config")
    activation = importlib.import_module(f"{DEFAULT_PACKAGE}.activation")
    return config.FusedMoEConfig(
        num_experts=layer.num_experts,
        experts_per_token=layer.topk,
        hidden_dim=layer.hidden,
        intermediate_size_per_partition=64,
        num_local_experts=layer.num_local_experts,
        num_logical_experts=layer.num_experts,
        activation=activation.MoEActivation.SILU,
        device=place.device,
        routing_method=config.RoutingMethodType.Renormalize,
        moe_parallel_config=config.FusedMoEParallelConfig.make(
            layer.tp_size,
            1,
            layer.dp_size,
            1,
            rank=place.rank,
            enable_expert_parallel=True,
            all2all_backend=name,
        ),
        in_dtype=layer.dtype,
        max_num_tokens=layer.max_num_tokens,
    )


def _through_the_factory(name: str, monolithic: bool, place: Place, layer: Layer) -> Any:
    """A backend by name, as a layer gets it."""
    utils = importlib.import_module(f"{DEFAULT_PACKAGE}.all2all_utils")
    moe, group = _config(place, layer, name), _group(place, layer, name)
    if place.world_size == 1:
        return utils.make_all2all_prepare_finalize(name, moe, layer.quant_config, group, layer.tables, monolithic)
    return utils.maybe_make_prepare_finalize(
        moe, layer.quant_config, layer.tables, use_monolithic=monolithic, ep_group=group
    )


def _batched(fused_moe: str, place: Place, layer: Layer) -> Any:
    module = importlib.import_module(f"{fused_moe}.prepare_finalize.batched")
    return module.BatchedPrepareAndFinalize(layer.max_num_tokens, layer.num_local_experts, 1, place.rank)


def _no_dp_ep(fused_moe: str, monolithic: bool, _place: Place, _layer: Layer) -> Any:
    module = importlib.import_module(f"{fused_moe}.prepare_finalize.no_dp_ep")
    return module.make_moe_prepare_and_finalize_no_dp_ep(monolithic)


def _round_up(name: str, hidden: int, dtype: torch.dtype) -> int:
    utils = importlib.import_module(f"{DEFAULT_PACKAGE}.all2all_utils")
    config = importlib.import_module(f"{DEFAULT_PACKAGE}.config")
    parallel = config.FusedMoEParallelConfig.make(1, 1, 2, 1, rank=0, enable_expert_parallel=True, all2all_backend=name)
    size: int = utils.maybe_roundup_layer_hidden_size(hidden, dtype, parallel)
    return size


def _micro_batch(number: int) -> Any:
    return importlib.import_module(f"{DEFAULT_PACKAGE}.ubatching").ubatch(number)


_ALL_DTYPES = ("bfloat16", "float16", "float32")
_REDUCTIONS = ("delegate", "contiguous", "noop")
_ONE_EXCHANGE = "a dispatch has to be combined before the next one"
_KERNELS_REDUCE = "the kernels weight and reduce"


def _dispatching(name: str, backend: str = "", **declared: Any) -> Backend:
    backend = backend or name
    declared.setdefault("round_up", partial(_round_up, backend))
    declared.setdefault("micro_batch", _micro_batch)
    monolithic = bool(declared.get("monolithic"))
    return Backend(name, partial(_through_the_factory, backend, monolithic), **declared)


def _low_latency(name: str, vendor: str, *modules: str) -> Backend:
    return _dispatching(
        name,
        hidden=2048,
        placements=("linear", "round_robin", "redundant"),
        defers=False,
        vendor=Vendor("buffer", vendor, modules),
        because={"dtypes": "the kernels take bf16", "reductions": _KERNELS_REDUCE},
    )


def _vllm_moe() -> list[Backend]:
    no_transport = "it sends nothing"
    return [
        Backend(
            "batched",
            partial(_batched, DEFAULT_PACKAGE),
            dtypes=_ALL_DTYPES,
            reductions=("delegate", "naive_batched"),
            replicated=True,
            placements=("linear", "round_robin"),
            micro_batch=_micro_batch,
            capturable=True,
            because={
                "vendor": no_transport,
                "replicated": no_transport,
                "placements": "an expert has one copy in an expert map",
                "round_up": "it takes any hidden size",
                "reductions": "others do not know the batched format",
            },
        ),
        *(
            Backend(
                name,
                partial(_no_dp_ep, DEFAULT_PACKAGE, monolithic),
                dtypes=_ALL_DTYPES,
                reductions=_REDUCTIONS,
                replicated=True,
                monolithic=monolithic,
                placements=("linear",) if monolithic else ("linear", "round_robin"),
                micro_batch=_micro_batch,
                capturable=True,
                refuses_bad_ids=False,
                because={
                    "vendor": no_transport,
                    "replicated": no_transport,
                    "round_up": "it takes any hidden size",
                    "refuses_bad_ids": "ids are the experts' business",
                },
            )
            for name, monolithic in (("no_dp_ep", False), ("no_dp_ep_monolithic", True))
        ),
        _dispatching(
            "allgather_reducescatter",
            dtypes=_ALL_DTYPES,
            reductions=_REDUCTIONS,
            placements=("linear", "round_robin"),
            because={"vendor": "the collectives are torch's"},
        ),
        _dispatching(
            "allgather_reducescatter_monolithic",
            "allgather_reducescatter",
            dtypes=_ALL_DTYPES,
            monolithic=True,
            because={"vendor": "the collectives are torch's"},
        ),
        _dispatching(
            "deepep_high_throughput",
            reductions=_REDUCTIONS,
            vendor=Vendor("buffer", "deep_ep", ("deep_ep",)),
            because={"dtypes": "the kernels take bf16"},
        ),
        _low_latency("deepep_low_latency", "deep_ep", "deep_ep"),
        _dispatching(
            "flashinfer_nvlink_one_sided",
            dtypes=("bfloat16", "float16"),
            reductions=_REDUCTIONS,
            micro_batch=None,
            vendor=Vendor("transport.op", "flashinfer_one_sided", ("flashinfer",)),
            because={"micro_batch": _ONE_EXCHANGE, "dtypes": "the kernels combine bf16 and fp16"},
        ),
        _dispatching(
            "flashinfer_nvlink_two_sided",
            dtypes=_ALL_DTYPES,
            reductions=_REDUCTIONS,
            vendor=Vendor("transport.moe", "flashinfer_two_sided", ("flashinfer",)),
        ),
        _dispatching(
            "mori",
            dtypes=("bfloat16", "float32"),
            reductions=_REDUCTIONS,
            micro_batch=None,
            vendor=Vendor("mori_op", "mori", ("mori",)),
            because={
                "micro_batch": "results are views of the op's one buffer",
                "dtypes": "the kernels take these",
            },
        ),
        _low_latency("nixl_ep", "nixl_ep", "nixl_ep", "nixl_ep_cu13", "nixl_ep_cu12"),
    ]


def _genuine_vllm(fused_moe: str) -> list[Backend]:
    """Those of an installed or merely importable vLLM that need neither a vendor's library nor compiled code."""
    quantized = "quantized configurations need vLLM's compiled operators"
    return [
        Backend(
            "batched",
            partial(_batched, fused_moe),
            fused_moe=fused_moe,
            dtypes=_ALL_DTYPES,
            quantizations=("none",),
            reductions=("delegate", "naive_batched"),
            replicated=True,
            refuses_bad_ids=False,
            takes_aliased_output=False,
            defers=False,
            grids=False,
            because={
                "quantizations": quantized,
                "takes_aliased_output": "vLLM's driver gives output memory of its own",
                "vendor": "it sends nothing",
                "refuses_bad_ids": "it compares ids with those of its own experts",
                "micro_batch": "vLLM's micro-batches are threads of its engine",
                "round_up": "it takes any hidden size",
            },
        )
    ]


_FACTORIES: dict[str, Callable[[], list[Backend]]] = {DEFAULT_PACKAGE: _vllm_moe}


def rows(fused_moe: str = DEFAULT_PACKAGE) -> dict[str, Backend]:
    """The rows for a fused_moe package, by backend name."""
    make = _FACTORIES.get(fused_moe, partial(_genuine_vllm, fused_moe))
    return {row.name: row for row in make()}
