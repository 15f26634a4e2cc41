"""Each Triton kernel against its torch twin.

They run on a CUDA device, or anywhere in Triton's interpreter (``TRITON_INTERPRET=1``, with triton
installed); the interpreter rounds to fp8 inexactly, so that there the quantized values have a tolerance.
"""

import importlib.util
import os
import subprocess
import sys
import warnings

import pytest
import torch

from tests.vllm_moe.kernel_cases import (
    SCHEMES,
    Case,
    all_cases,
    all_schemes,
    make_case,
    rows_of,
)
from tests.vllm_moe.reference import (
    relative_error,
)
from vllm_moe.fused_moe.kernels import (
    ExpertPlacement,
    QuantScheme,
    batched_finalize,
    batched_finalize_torch,
    batched_prepare,
    batched_prepare_torch,
    combine_rows,
    combine_rows_torch,
    count_expert_num_tokens,
    count_expert_num_tokens_torch,
    permute_tokens,
    permute_tokens_torch,
    quantize_rows,
    quantize_rows_torch,
    route,
    route_torch,
    weight_and_reduce_torch,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(
    not (torch.cuda.is_available() or INTERPRETED),
    reason="needs a CUDA device, or triton installed and TRITON_INTERPRET=1",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Give every test the same random numbers each time."""
    torch.manual_seed(7)


def to_device(case: Case) -> Case:
    """Move a case to where the Triton kernels run."""
    tables = [
        None if table is None else table.to(DEVICE)
        for table in (case.placement.global_to_physical, case.placement.expert_map)
    ]
    placement = case.placement._replace(global_to_physical=tables[0], expert_map=tables[1])
    return Case(case.a1.to(DEVICE), case.weights.to(DEVICE), case.ids.to(DEVICE), placement)


def assert_same_quantized(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal bits; within a step of fp8 (two at a power of two) in the interpreter."""
    found, expected = found.float().cpu(), expected.float().cpu()
    if INTERPRETED and not torch.equal(found, expected):
        assert ((found - expected).abs() <= expected.abs() / 2 + 1e-2).all()
        assert ((found - expected).abs() > 1e-6).float().mean() < 0.6
    else:
        assert torch.equal(found, expected)


@pytest.fixture(params=["one launch", "tallied"])
def counted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of counting, on the same small cases: chunks of 4 tokens in the second."""
    from vllm_moe.fused_moe.kernels import _triton_rows

    if request.param == "tallied":
        monkeypatch.setattr(_triton_rows, "MOST_COUNTED_IDS", 0)
        monkeypatch.setattr(_triton_rows, "_CHUNK", 4)


@needs_triton
@pytest.mark.gpu
@pytest.mark.usefixtures("counted")
@all_cases
def test_triton_routes_as_torch_does(case: Case) -> None:
    """Slots and counts are equal, and so is the count of slots."""
    from vllm_moe.fused_moe.kernels import _triton_rows

    there = to_device(case)
    for found, expected in zip(
        _triton_rows.route(there.ids, there.placement, 40),
        route_torch(case.ids, case.placement, 40),
        strict=True,
    ):
        assert torch.equal(found.cpu(), expected)
    experts = case.placement.num_experts
    assert experts is not None
    found = _triton_rows.count_expert_num_tokens(there.ids, experts, None)
    assert torch.equal(found.cpu(), count_expert_num_tokens_torch(case.ids, experts, None))


@needs_triton
@pytest.mark.gpu
@pytest.mark.usefixtures("counted")
@all_schemes
@all_cases
def test_triton_prepares_as_torch_does(case: Case, scheme: QuantScheme) -> None:
    """Every row and scale has the bits of the torch twin, with router weights too where topk is 1."""
    from vllm_moe.fused_moe.kernels import _triton_rows

    there = to_device(case)
    rows = len(case.a1) + 3
    scheme_there = scheme
    if scheme.static_scale is not None:
        scheme_there = scheme._replace(static_scale=scheme.static_scale.to(DEVICE))
    weights = case.weights if case.ids.size(1) == 1 else None
    expected = batched_prepare_torch(case.a1, weights, case.ids, case.placement, rows, scheme)
    found = _triton_rows.batched_prepare(
        there.a1, None if weights is None else there.weights, there.ids, there.placement, rows, scheme_there
    )
    assert torch.equal(found[2].cpu(), expected[2])
    assert found[0].shape == expected[0].shape
    for expert, count in enumerate(expected[2].tolist()):
        assert_same_quantized(found[0][expert, :count], expected[0][expert, :count])
        if expected[1] is not None:
            assert found[1].shape == expected[1].shape
            here = count if expected[1].size(1) > 1 else 1
            torch.testing.assert_close(
                found[1][expert, :here].cpu(), expected[1][expert, :here], rtol=0, atol=0
            )
    for ours, theirs in zip(there[:3], case[:3], strict=True):
        assert torch.equal(ours.cpu(), theirs)


@needs_triton
@pytest.mark.gpu
@all_schemes
@all_cases
@pytest.mark.parametrize("masked", [False, True])
def test_triton_quantizes_as_torch_does(case: Case, scheme: QuantScheme, masked: bool) -> None:
    """Plain quantization of rows has the bits of the torch twin, with rows masked out too."""
    from vllm_moe.fused_moe.kernels import _triton_rows

    mask = torch.arange(len(case.a1)) % 3 != 1 if masked else None
    scheme_there = scheme
    if scheme.static_scale is not None:
        scheme_there = scheme._replace(static_scale=scheme.static_scale.to(DEVICE))
    expected = quantize_rows_torch(case.a1, scheme, mask)
    found = _triton_rows.quantize_rows(
        case.a1.to(DEVICE), scheme_there, None if mask is None else mask.to(DEVICE)
    )
    assert_same_quantized(found[0], expected[0])
    if expected[1] is not None:
        torch.testing.assert_close(found[1].cpu(), expected[1], rtol=0, atol=0)


@needs_triton
@pytest.mark.gpu
@pytest.mark.usefixtures("counted")
@all_cases
@pytest.mark.parametrize("weighted", [True, False])
def test_triton_finalizes_as_torch_does(case: Case, weighted: bool) -> None:
    """Sums agree to the rounding of the output's dtype, with poison in the padding."""
    from vllm_moe.fused_moe.kernels import _triton_rows

    there = to_device(case)
    tokens, hidden = case.a1.shape
    batch = torch.full(
        (case.placement.num_local_experts, tokens + 2, hidden), float("nan"), dtype=case.a1.dtype
    )
    for expert, its_tokens in enumerate(rows_of(case)):
        batch[expert, : len(its_tokens)] = torch.randn(len(its_tokens), hidden).to(case.a1.dtype)
    # In float32, and rounded once here: the CPU's sums of bf16 rows round exact halves up, not to even.
    expected = torch.empty(tokens, hidden)
    batched_finalize_torch(expected, batch.float(), case.weights if weighted else None, case.ids, case.placement)
    expected = expected.to(case.a1.dtype)
    output = torch.full_like(expected, float("nan")).to(DEVICE)
    _triton_rows.batched_finalize(
        output, batch.to(DEVICE), there.weights if weighted else None, there.ids, there.placement
    )
    # bf16: a last bit here and there; the interpreter cuts bf16 off instead of rounding it.
    tolerance = {torch.float32: 1e-6, torch.float16: 5e-4}.get(case.a1.dtype, 5e-3 if INTERPRETED else 5e-4)
    assert relative_error(output, expected) <= tolerance


@needs_triton
@pytest.mark.gpu
@pytest.mark.usefixtures("counted")
@all_cases
def test_triton_permutes_and_combines_as_torch_does(case: Case) -> None:
    """Permuted rows, their scales, slots and counts are equal; so is the sum that brings them back."""
    from vllm_moe.fused_moe.kernels import _triton_rows

    there = to_device(case)
    quantized, scale = quantize_rows_torch(case.a1, SCHEMES["fp8 block"])
    assert scale is not None
    expected = permute_tokens_torch(quantized, scale, case.ids, case.placement)
    found = _triton_rows.permute_tokens(quantized.to(DEVICE), scale.to(DEVICE), there.ids, there.placement)
    total = int(expected[3].sum())
    assert torch.equal(found[2].cpu(), expected[2])
    assert torch.equal(found[3].cpu(), expected[3])
    assert torch.equal(found[0][:total].float().cpu(), expected[0][:total].float())
    assert found[1] is not None
    assert expected[1] is not None
    assert torch.equal(found[1][:total].cpu(), expected[1][:total])
    rows = torch.randn(max(total, 1), case.a1.size(1))
    outputs = [torch.empty(case.a1.shape) for _ in range(2)]
    combine_rows_torch(outputs[0], rows, expected[2], case.weights)
    moved = outputs[1].to(DEVICE)
    _triton_rows.combine_rows(moved, rows.to(DEVICE), found[2], there.weights)
    assert relative_error(moved, outputs[0]) < 1e-6


@needs_triton
@pytest.mark.gpu
@all_cases
def test_triton_weights_and_reduces_as_torch_does(case: Case) -> None:
    """Rows of negative ids are left out, and the rest agrees to float32 rounding."""
    from vllm_moe.fused_moe.kernels import _triton_rows

    there = to_device(case)
    rows = torch.randn(*case.ids.shape, case.a1.size(1))
    rows[case.ids < 0] = float("nan")
    expected = torch.empty(case.a1.shape)
    weight_and_reduce_torch(expected, rows, case.weights, case.ids)
    output = torch.empty(case.a1.shape, device=DEVICE)
    _triton_rows.weight_and_reduce(output, rows.to(DEVICE), there.weights, there.ids)
    assert relative_error(output, expected) < 1e-6


cuda_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda_only
@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [33, 1500])
@pytest.mark.parametrize("scheme", ["none", "fp8 dynamic", "fp8 block"])
def test_kernels_replay_from_a_graph_with_other_inputs(tokens: int, scheme: str) -> None:
    """Captured once without waiting for the host, a replay with new tokens and ids equals an eager call."""
    placement = ExpertPlacement(4, 2, None, None, 8)
    quantization = SCHEMES[scheme]
    inputs = [make_case(tokens, 4, 8, 4, 256, seed=seed, ids_dtype=torch.int32) for seed in (1, 2)]
    a1, weights, ids = (inputs[0][place].cuda() for place in range(3))
    output = torch.empty_like(a1)

    def both() -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        batch, scale, counts = batched_prepare(a1, None, ids, placement, tokens, quantization)
        rows = batch if scheme == "none" else torch.ones_like(batch, dtype=torch.bfloat16)
        batched_finalize(output, rows, weights, ids, placement)
        return batch, scale, counts

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        both()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch, scale, counts = both()
    for place, tensor in enumerate((a1, weights, ids)):
        tensor.copy_(inputs[1][place])
    graph.replay()
    replayed, replayed_counts = output.clone(), counts.clone()
    rows = [(batch[e, :n].clone(), n) for e, n in enumerate(counts.tolist())]
    eager_batch, eager_scale, eager_counts = both()
    assert torch.equal(replayed_counts, eager_counts)
    assert torch.equal(replayed, output)
    for expert, (row, count) in enumerate(rows):
        assert torch.equal(row.float(), eager_batch[expert, :count].float())
        if scale is not None and eager_scale is not None:
            here = count if scale.size(1) > 1 else 1
            assert torch.equal(scale[expert, :here], eager_scale[expert, :here])


@cuda_only
@pytest.mark.gpu
def test_kernels_never_wait_for_the_host() -> None:
    """PyTorch's own check of synchronizing calls stays silent through every kernel."""
    case = to_device(make_case(1500, 4, 8, 4, 256, tables="physical map"))
    with warnings.catch_warnings():
        # That the mode is a prototype is a warning of its own, each time.
        warnings.simplefilter("ignore")
        try:
            torch.cuda.set_sync_debug_mode("error")
            for scheme in SCHEMES.values():
                if scheme.static_scale is None:
                    batched_prepare(case.a1, None, case.ids, case.placement, 1500, scheme)
                    quantize_rows(case.a1, scheme)
            slots, _ = route(case.ids, case.placement, 1500)
            permuted, _, slots, _ = permute_tokens(case.a1, None, case.ids, case.placement)
            combine_rows(torch.empty_like(case.a1), permuted, slots, case.weights)
            count_expert_num_tokens(case.ids, 8, None)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@cuda_only
@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [3, 3000])
def test_ids_out_of_range_stop_the_kernel(tokens: int) -> None:
    """An id that is no expert's traps on the device, with a message, rather than being dropped."""
    program = f"""
import torch
from vllm_moe.fused_moe.kernels import ExpertPlacement, QuantKind, QuantScheme, batched_prepare
ids = torch.zeros({tokens}, 2, dtype=torch.int32, device="cuda")
ids[-1, 1] = 8
a1 = torch.randn({tokens}, 64, device="cuda")
unquantized = QuantScheme(QuantKind.NONE, None, 0, None)
batched_prepare(a1, None, ids, ExpertPlacement(4, 0, None, None, 8), {tokens}, unquantized)
torch.cuda.synchronize()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "topk_ids holds an id outside -1 (no expert) to num_experts - 1" in done.stderr


@cuda_only
@pytest.mark.gpu
def test_rows_beyond_two_to_the_31_elements() -> None:
    """The last rows of a batch of more than 2^31 elements are written and read where they belong."""
    tokens, hidden, experts = 70_000, 1024, 40
    a1 = torch.randn(tokens, hidden, device="cuda").bfloat16()
    ids = (torch.arange(tokens, device="cuda") % 2 * (experts - 1))[:, None].contiguous()
    placement = ExpertPlacement(experts, 0, None, None, experts)
    batch, _, counts = batched_prepare(a1, None, ids, placement, tokens, SCHEMES["none"])
    assert batch.numel() > 2**31
    assert counts.tolist() == [tokens // 2, *[0] * (experts - 2), tokens // 2]
    assert torch.equal(batch[-1, : tokens // 2], a1[1::2])
    assert torch.equal(batch[0, : tokens // 2], a1[::2])
    output = torch.full_like(a1, float("nan"))
    batched_finalize(output, batch, None, ids, placement)
    assert torch.equal(output, a1)


@cuda_only
@pytest.mark.gpu
@pytest.mark.parametrize("scheme", ["none", "fp8 dynamic", "fp8 block", "int8 token"])
def test_five_calls_give_the_same_bits(scheme: str) -> None:
    """Nothing depends on which program ran first."""
    case = to_device(make_case(3000, 8, 32, 32, 512))
    results = []
    for _ in range(5):
        batch, scale, counts = batched_prepare(case.a1, None, case.ids, case.placement, 3000, SCHEMES[scheme])
        rows = torch.cat([batch[e, :n].flatten() for e, n in enumerate(counts.tolist())]).float()
        real = (
            []
            if scale is None
            else [scale[e, : n if scale.size(1) > 1 else 1].flatten() for e, n in enumerate(counts)]
        )
        output = torch.empty_like(case.a1)
        batched_finalize(output, batch.bfloat16(), case.weights, case.ids, case.placement)
        results.append((rows, torch.cat(real) if real else rows, output))
    for again in results[1:]:
        for first, other in zip(results[0], again, strict=True):
            assert torch.equal(first, other)
