"""The factory: what it builds for which configuration, what it says, and why it refuses."""

import ast
import importlib
import logging
import pkgutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import vllm_moe.fused_moe.prepare_finalize as backends_package
from tests.vllm_moe.dispatch_cases import BACKENDS, LOW_LATENCY, Case
from vllm_moe.fused_moe import all2all_utils
from vllm_moe.fused_moe.all2all_utils import (
    all2all_backends,
    describe_transport,
    make_all2all_prepare_finalize,
    maybe_make_prepare_finalize,
    maybe_roundup_layer_hidden_size,
)
from vllm_moe.fused_moe.config import FUSED_MOE_UNQUANTIZED_CONFIG, FusedMoEConfig, FusedMoEParallelConfig
from vllm_moe.fused_moe.prepare_finalize import (
    DeepEPHTPrepareAndFinalize,
    DeepEPLLPrepareAndFinalize,
    FlashInferNVLinkOneSidedPrepareAndFinalize,
    FlashInferNVLinkTwoSidedPrepareAndFinalize,
    MoEPrepareAndFinalizeNaiveDPEPModular,
    MoEPrepareAndFinalizeNaiveDPEPMonolithic,
    MoEPrepareAndFinalizeNoDPEPModular,
    MoEPrepareAndFinalizeNoDPEPMonolithic,
    MoriPrepareAndFinalize,
    NixlEPPrepareAndFinalize,
)
from vllm_moe.transports import EpGroup, MissingTransportError, TransportChoice, _vendor, load_vendor

CLASSES = {
    "allgather_reducescatter": MoEPrepareAndFinalizeNaiveDPEPModular,
    "deepep_high_throughput": DeepEPHTPrepareAndFinalize,
    "deepep_low_latency": DeepEPLLPrepareAndFinalize,
    "flashinfer_nvlink_one_sided": FlashInferNVLinkOneSidedPrepareAndFinalize,
    "flashinfer_nvlink_two_sided": FlashInferNVLinkTwoSidedPrepareAndFinalize,
    "mori": MoriPrepareAndFinalize,
    "nixl_ep": NixlEPPrepareAndFinalize,
}
VENDOR_OF = {
    "deepep_high_throughput": "deep_ep",
    "deepep_low_latency": "deep_ep",
    "flashinfer_nvlink_one_sided": "flashinfer",
    "flashinfer_nvlink_two_sided": "flashinfer",
    "mori": "mori",
    "nixl_ep": "nixl_ep",
}


@pytest.fixture(autouse=True)
def no_vendor_libraries(monkeypatch):
    """Hide whatever vendor libraries the machine has."""
    for vendor in _vendor.VENDORS.values():
        for name in vendor.modules:
            monkeypatch.setitem(sys.modules, name, None)
    load_vendor.cache_clear()
    yield
    load_vendor.cache_clear()


def moe_config(backend: str = "allgather_reducescatter", **changes: object) -> FusedMoEConfig:
    return replace(Case(backend).moe_config(EpGroup()), **changes)


def make(backend: str, transport: TransportChoice = "auto", **changes: object):
    moe = moe_config(backend, **changes)
    return make_all2all_prepare_finalize(
        backend, moe, FUSED_MOE_UNQUANTIZED_CONFIG, EpGroup(transport=transport)
    )


def parallel(dp: int, tp: int = 1, *, ep: bool = True, backend: str = "mori") -> FusedMoEParallelConfig:
    return FusedMoEParallelConfig.make(
        tp, 1, dp, 1, rank=0, enable_expert_parallel=ep, all2all_backend=backend
    )


def test_every_backend_has_a_row_and_every_row_a_test():
    """A backend added to the folder without a row, or to the registry without a test here, fails by name."""
    assert all2all_backends() == sorted(CLASSES) == sorted(BACKENDS)
    modules = {info.name for info in pkgutil.iter_modules(backends_package.__path__) if info.name[0] != "_"}
    imported = {cls.__module__.rpartition(".")[2] for cls in CLASSES.values()}
    assert modules - imported == {"batched", "no_dp_ep"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_named_backend_is_built_and_its_transport_told(backend, caplog, monkeypatch):
    """The class is vLLM's for that name; what carries the tokens is logged and can be asked for."""
    # lint-imports, run by another test of this process, disables every logger that it did not name.
    monkeypatch.setattr(logging.getLogger(all2all_utils.__name__), "disabled", False)
    with caplog.at_level(logging.INFO, logger=all2all_utils.__name__):
        made = make(backend)
    assert type(made) is CLASSES[backend]
    assert describe_transport(made) == f"{backend} over torch.distributed (local)"
    assert caplog.messages == [f"{type(made).__name__}: {backend} over torch.distributed (local)"]


@pytest.mark.parametrize("backend", VENDOR_OF)
def test_a_vendor_library_that_was_asked_for_and_is_missing(backend):
    """transport='vendor' never falls back: the error has a line with each candidate's reason."""
    package = VENDOR_OF[backend]
    names = "; ".join(
        f"{name}: import of {name} halted; None in sys.modules" for name in _vendor.VENDORS[package].modules
    )
    with pytest.raises(ValueError) as error:
        make(backend, "vendor")
    assert str(error.value) == (
        "No backend fits device cpu, bfloat16 activations unquantized, 8 experts on 1 rank:\n"
        f"  {backend} (package {package}): package '{package}' cannot be imported ({names})\n"
        f"  {backend} (torch.distributed): the group's transport is 'vendor'"
    )


def test_a_vendor_library_is_not_used_for_cpu_tensors(monkeypatch):
    """An importable library does not win where it cannot work; forced, it says why."""
    library = ModuleType("nixl_ep")
    library.Buffer = object
    library.__version__ = "9.9"
    monkeypatch.setitem(sys.modules, "nixl_ep", library)
    load_vendor.cache_clear()
    assert describe_transport(make("nixl_ep")) == "nixl_ep over torch.distributed (local)"
    with pytest.raises(ValueError) as error:
        make("nixl_ep", "vendor")
    assert "the library works on CUDA tensors, but the layer is on cpu" in str(error.value)


def test_the_cuda_wheel_is_registered_under_the_plain_name(monkeypatch):
    """nixl_ep_cu13 is what the wheel ships, nixl_ep what users of the library import."""
    library = ModuleType("nixl_ep_cu13")
    library.Buffer = object
    monkeypatch.setitem(sys.modules, "nixl_ep_cu13", library)
    monkeypatch.delitem(sys.modules, "nixl_ep")
    load_vendor.cache_clear()
    try:
        assert load_vendor("nixl_ep") == (library, "version unknown")
        assert importlib.import_module("nixl_ep") is library
    finally:
        sys.modules.pop("nixl_ep", None)


REFUSALS = [
    ("nixl_ep", {"in_dtype": torch.float16}, "it carries torch.bfloat16, but activations are torch.float16"),
    ("nixl_ep", {"max_num_tokens": 3}, "ranks x max_num_tokens is 1 x 3 = 3, expected a multiple of 4"),
    (
        "deepep_low_latency",
        {"hidden_dim": 2880},
        "hidden size 2880 has to be rounded up to 3072 (maybe_roundup_layer_hidden_size)",
    ),
    (
        "deepep_high_throughput",
        {"hidden_dim": 100},
        "hidden size 100 has to be rounded up to 256 (maybe_roundup_layer_hidden_size)",
    ),
    (
        "mori",
        {"in_dtype": torch.float16},
        "it carries torch.bfloat16 or torch.float32, but activations are torch.float16",
    ),
    (
        "flashinfer_nvlink_one_sided",
        {"in_dtype": torch.float32},
        "it carries torch.bfloat16 or torch.float16, but activations are torch.float32",
    ),
    (
        "flashinfer_nvlink_one_sided",
        {"experts_per_token": 23, "num_experts": 32},
        "flashinfer one-sided: topk is 23, but the kernels end at 22.",
    ),
    ("flashinfer_nvlink_two_sided", {"num_experts": 10}, "10 experts, expected a multiple of 4 below 512"),
]


@pytest.mark.parametrize(("backend", "changes", "reason"), REFUSALS)
def test_sizes_that_do_not_fit_are_refused_with_the_reason(backend, changes, reason):
    """What the vendor's kernels cannot do is known before anything is built."""
    with pytest.raises(ValueError) as error:
        make(backend, **changes)
    assert str(error.value).splitlines()[-1] == f"  {backend} (torch.distributed): {reason}"


def test_only_the_allgather_backend_takes_router_logits():
    """The others say that experts which route for themselves are not for them."""
    group = EpGroup()
    made = make_all2all_prepare_finalize(
        "allgather_reducescatter", moe_config(), FUSED_MOE_UNQUANTIZED_CONFIG, group, use_monolithic=True
    )
    assert type(made) is MoEPrepareAndFinalizeNaiveDPEPMonolithic
    with pytest.raises(ValueError) as error:
        make_all2all_prepare_finalize(
            "mori",
            moe_config("mori"),
            FUSED_MOE_UNQUANTIZED_CONFIG,
            EpGroup(transport="torch"),
            use_monolithic=True,
        )
    assert str(error.value) == (
        "No backend fits device cpu, bfloat16 activations unquantized, 8 experts on 1 rank:\n"
        "  mori (package mori): the group's transport is 'torch'\n"
        "  mori (torch.distributed): it needs the router's choice, and the experts route for themselves "
        "(monolithic)"
    )


def test_an_unknown_backend_is_refused_with_the_names_there_are():
    """A misspelt name is no silent fallback."""
    with pytest.raises(ValueError) as error:
        make_all2all_prepare_finalize("nixl", moe_config(), FUSED_MOE_UNQUANTIZED_CONFIG, EpGroup())
    assert str(error.value) == (
        "There is no all2all backend 'nixl'. There are: allgather_reducescatter, deepep_high_throughput, "
        "deepep_low_latency, flashinfer_nvlink_one_sided, flashinfer_nvlink_two_sided, mori, nixl_ep."
    )


@pytest.mark.parametrize(
    ("use_monolithic", "cls"),
    [(False, MoEPrepareAndFinalizeNoDPEPModular), (True, MoEPrepareAndFinalizeNoDPEPMonolithic)],
)
def test_one_rank_keeps_its_tokens(use_monolithic, cls):
    """Without data parallelism there is nothing to dispatch."""
    made = maybe_make_prepare_finalize(moe_config(), None, use_monolithic=use_monolithic)
    assert type(made) is cls
    assert describe_transport(made) == "no transport: tokens stay on their rank"


def test_the_group_has_to_be_the_expert_parallel_one():
    """A data- or tensor-parallel group in its place is refused with both sizes."""
    moe = moe_config(moe_parallel_config=parallel(dp=2, tp=2))
    with pytest.raises(ValueError) as error:
        maybe_make_prepare_finalize(moe, None, ep_group=EpGroup())
    assert str(error.value) == (
        "maybe_make_prepare_finalize: the group has 1 rank, but the configuration deals experts out to 4. "
        "Pass the "
        "expert-parallel group (not the data- or tensor-parallel one)."
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", [100, 2048, 2560, 2880, 4096, 6144, 7168, 8192])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rounded_hidden_size_is_accepted(backend, hidden, dtype):
    """What is given is at least what was asked for, stable, and can be built with."""
    config = parallel(dp=2, backend=backend)
    rounded = maybe_roundup_layer_hidden_size(hidden, dtype, config)
    assert rounded >= hidden
    assert maybe_roundup_layer_hidden_size(rounded, dtype, config) == rounded
    if dtype is torch.bfloat16:
        assert isinstance(make(backend, hidden_dim=rounded), CLASSES[backend])


@pytest.mark.parametrize(
    ("backend", "hidden", "rounded"),
    [
        ("deepep_high_throughput", 2880, 3072),
        ("deepep_low_latency", 2880, 3072),
        ("nixl_ep", 100, 2048),
        ("flashinfer_nvlink_two_sided", 100, 112),
        ("flashinfer_all2allv", 100, 112),
        ("allgather_reducescatter", 100, 100),
    ],
)
def test_rounded_hidden_sizes(backend, hidden, rounded):
    """The numbers of vLLM's functions of this name."""
    assert maybe_roundup_layer_hidden_size(hidden, torch.bfloat16, parallel(dp=2, backend=backend)) == rounded


def test_a_layer_on_one_rank_is_not_rounded():
    """Nothing is dispatched, so no kernel has a say."""
    assert (
        maybe_roundup_layer_hidden_size(100, torch.bfloat16, FusedMoEParallelConfig.make_no_parallel()) == 100
    )


@pytest.mark.parametrize("backend", LOW_LATENCY)
def test_a_hidden_size_beyond_every_kernel_is_refused(backend):
    """There is nothing to round up to."""
    with pytest.raises(ValueError) as error:
        maybe_roundup_layer_hidden_size(8193, torch.bfloat16, parallel(dp=2, backend=backend))
    assert str(error.value) == (
        f"{CLASSES[backend].__name__}: hidden size 8193 is larger than the largest that the kernels are "
        "compiled for, "
        "8192. Use another backend."
    )


WITHOUT_TRANSPORT = [
    (
        lambda: MoriPrepareAndFinalize(None, 8, 1),
        "MoriPrepareAndFinalize",
        "mori_op",
        "mori",
        "TorchEpDispatchCombineOp",
    ),
    (
        lambda: NixlEPPrepareAndFinalize(None, 8, 1),
        "NixlEPPrepareAndFinalize",
        "buffer",
        "nixl_ep",
        "TorchNixlEpBuffer",
    ),
    (
        lambda: DeepEPLLPrepareAndFinalize(None, 8, 1),
        "DeepEPLLPrepareAndFinalize",
        "buffer",
        "deep_ep",
        "TorchDeepEpBuffer",
    ),
    (
        lambda: DeepEPHTPrepareAndFinalize(None, 1, 1, 0),
        "DeepEPHTPrepareAndFinalize",
        "buffer",
        "deep_ep",
        "TorchDeepEpBuffer",
    ),
    (
        lambda: FlashInferNVLinkOneSidedPrepareAndFinalize(8, 2, 8, 512),
        "FlashInferNVLinkOneSidedPrepareAndFinalize",
        "transport",
        "flashinfer",
        "MoeAlltoAllTransport",
    ),
    (
        FlashInferNVLinkTwoSidedPrepareAndFinalize,
        "FlashInferNVLinkTwoSidedPrepareAndFinalize",
        "transport",
        "flashinfer",
        "TorchMnnvlMoe(group).transport()",
    ),
]


@pytest.mark.parametrize(("build", "name", "argument", "package", "instead"), WITHOUT_TRANSPORT)
def test_a_backend_without_its_transport_names_the_missing_package(build, name, argument, package, instead):
    """The error says which package is missing, why, where it is, and what does without it."""
    with pytest.raises(MissingTransportError) as error:
        build()
    reasons = "; ".join(
        f"{n}: import of {n} halted; None in sys.modules" for n in _vendor.VENDORS[package].modules
    )
    assert str(error.value) == (
        f"{name}: {argument} is None, and package '{package}' cannot be imported ({reasons}). Install it "
        f"({_vendor.VENDORS[package].source}) and pass its object, or pass vllm_moe.transports.{instead}."
    )
    assert error.value.name == package


def test_a_backend_without_its_transport_although_the_package_is_there(monkeypatch):
    """Then the error says what to pass."""
    library = ModuleType("mori")
    library.ops = ModuleType("mori.ops")
    library.ops.EpDispatchCombineOp = object
    monkeypatch.setitem(sys.modules, "mori", library)
    load_vendor.cache_clear()
    with pytest.raises(MissingTransportError) as error:
        MoriPrepareAndFinalize(None, 8, 1)
    assert str(error.value) == (
        "MoriPrepareAndFinalize: mori_op is None. Package 'mori' is installed: pass its "
        "ops.EpDispatchCombineOp, or "
        "vllm_moe.transports.TorchEpDispatchCombineOp, or let all2all_utils.maybe_make_prepare_finalize "
        "choose."
    )


def test_every_module_imports_without_vendor_libraries():
    """In a process where none of their names can be imported, every module of vllm_moe still can."""
    code = (
        "import importlib, pkgutil, sys\n"
        "for name in ('mori', 'nixl_ep', 'nixl_ep_cu12', 'nixl_ep_cu13', 'deep_ep', 'flashinfer'):\n"
        "    sys.modules[name] = None\n"
        "import vllm_moe\n"
        "count = 0\n"
        "for info in pkgutil.walk_packages(vllm_moe.__path__, 'vllm_moe.'):\n"
        "    if 'kernels._' in info.name and not info.name.endswith('_device'):\n"
        "        continue  # imported where there is a GPU\n"
        "    if not info.name.endswith('__main__'):\n"
        "        importlib.import_module(info.name)\n"
        "        count += 1\n"
        "print(count)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert int(done.stdout) > 30


def test_only_the_factory_imports_backends_that_need_a_vendor():
    """No module of vllm_moe but all2all_utils has a static import of one."""
    root = Path(all2all_utils.__file__).parents[1]
    needing = {
        f"vllm_moe.fused_moe.prepare_finalize.{CLASSES[name].__module__.rpartition('.')[2]}"
        for name in VENDOR_OF
    }
    importers = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if needing & set(names):
                importers.add(path.relative_to(root).as_posix())
    assert importers == {"fused_moe/all2all_utils.py"}
