"""The driver and its abstract bases."""

from collections.abc import Callable

import pytest
import torch

import vllm_moe.fused_moe.modular_kernel as mk
from tests.vllm_moe.configs import config
from vllm_moe.fused_moe.activation import MoEActivation
from vllm_moe.fused_moe.config import (
    FusedMoEQuantConfig,
)
from vllm_moe.fused_moe.experts import RoutingExperts, TorchExperts
from vllm_moe.fused_moe.fused_batched_moe import NaiveBatchedExperts
from vllm_moe.fused_moe.prepare_finalize import (
    BatchedPrepareAndFinalize,
    MoEPrepareAndFinalizeNoDPEPModular,
    MoEPrepareAndFinalizeNoDPEPMonolithic,
)
from vllm_moe.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceNoOP
from vllm_moe.fused_moe.ubatching import dbo_current_ubatch_id, dbo_enabled, ubatch

Prepared = tuple[
    torch.Tensor, torch.Tensor | None, mk.ExpertTokensMetadata | None, torch.Tensor, torch.Tensor
]


class Recorder(MoEPrepareAndFinalizeNoDPEPModular):
    """A backend that writes down how it was called, and may be asynchronous or give ids of its own."""

    def __init__(self, how: str, dispatched: bool = False) -> None:
        self.how = how
        self.dispatched = dispatched
        self.log: list[tuple[str, int]] = []
        self.calls: dict[str, tuple[tuple[object, ...], dict[str, object]]] = {}

    def supports_async(self) -> bool:
        """Note the call."""
        return self.how != "synchronous"

    def _note(self, what: str) -> None:
        self.log.append((what, dbo_current_ubatch_id()))

    def _both(self, name: str, finish: Callable[[], object]) -> object:
        def receiver() -> object:
            self._note(f"{name} receiver")
            return finish()

        if self.how == "receiver":
            return receiver
        return (lambda: self._note(f"{name} hook")), receiver

    def prepare(self, *arguments: object, **keywords: object) -> Prepared:  # type: ignore[override]
        """Note the call."""
        self.calls["prepare"] = (arguments, keywords)
        self._note("prepare")
        result = super().prepare(*arguments, **keywords)  # type: ignore[arg-type]
        if self.dispatched:
            return (*result[:3], arguments[2].flip(0), arguments[1].flip(0))  # type: ignore[attr-defined]
        return result  # type: ignore[return-value]

    def prepare_async(self, *arguments: object, **keywords: object) -> object:  # type: ignore[override]
        """Note the call."""
        self._note("prepare started")
        return self._both("prepare", lambda: self.prepare(*arguments, **keywords))

    def finalize(self, *arguments: object, **keywords: object) -> None:  # type: ignore[override]
        """Note the call."""
        self.calls["finalize"] = (arguments, keywords)
        self._note("finalize")
        super().finalize(*arguments, **keywords)  # type: ignore[arg-type]

    def finalize_async(self, *arguments: object, **keywords: object) -> object:  # type: ignore[override]
        """Note the call."""
        self._note("finalize started")
        return self._both("finalize", lambda: self.finalize(*arguments, **keywords))


class WritingExperts(TorchExperts):
    """Experts that remember what they were given."""

    def apply(self, output: torch.Tensor, *arguments: object, **keywords: object) -> None:  # type: ignore[override]
        """Note the call."""
        self.given = keywords
        super().apply(output, *arguments, **keywords)  # type: ignore[arg-type]


class Shared:
    """A shared expert that notes when it runs."""

    def __init__(self, log: list[tuple[str, int]]) -> None:
        self.log = log
        self.seen: torch.Tensor | None = None

    def apply(self, shared_experts_input: torch.Tensor) -> None:
        """Note the call."""
        self.log.append(("shared", dbo_current_ubatch_id()))
        self.seen = shared_experts_input


def inputs(tokens: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weights, ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(tokens)])
    return torch.randn(tokens, 8, generator=generator), torch.rand(tokens, 2, generator=generator), ids


W1, W2 = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.randn(4, 8, 4)
UNQUANTIZED = FusedMoEQuantConfig.make()


@pytest.mark.parametrize("how", ["synchronous", "receiver", "hook and receiver"])
def test_the_driver_passes_arguments_as_backends_expect_them(how: str) -> None:
    """Everything up to quant_config goes by position, then defer_input_quant by keyword."""
    pf = Recorder(how)
    experts = WritingExperts(config(), UNQUANTIZED)
    kernel = mk.FusedMoEKernel(pf, experts)
    hidden_states, weights, ids = inputs()
    expert_map = torch.arange(4)
    output = kernel.apply(hidden_states, W1, W2, weights, ids, MoEActivation.SILU, 4, expert_map, False)
    arguments, keywords = pf.calls["prepare"]
    assert [arguments[place] is thing for place, thing in enumerate((hidden_states, weights, ids))] == [
        True
    ] * 3
    assert arguments[3:] == (4, expert_map, False, UNQUANTIZED)
    assert keywords == {"defer_input_quant": False}
    arguments, keywords = pf.calls["finalize"]
    assert keywords == {}
    assert arguments[0] is output
    assert arguments[2] is weights
    assert arguments[3] is ids
    assert arguments[4:] == (False, TopKWeightAndReduceNoOP())
    assert experts.given["topk_ids"] is ids
    waits = {
        "synchronous": [],
        "receiver": ["started", "receiver"],
        "hook and receiver": ["started", "hook", "receiver"],
    }
    expected = []
    for name in ("prepare", "finalize"):
        expected += [f"{name} {wait}" for wait in waits[how]] + [name]
    assert [what for what, _ in pf.log] == expected


def test_every_way_of_waiting_gives_the_same_output() -> None:
    """Synchronous, with a receiver, and with a hook too: the output is one."""
    arguments = (W1, W2)
    hidden_states, weights, ids = inputs()
    outputs = [
        mk.FusedMoEKernel(Recorder(how), TorchExperts(config(), UNQUANTIZED)).apply(
            hidden_states, *arguments, weights, ids, MoEActivation.SILU, -1, None, False
        )
        for how in ("synchronous", "receiver", "hook and receiver")
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_dispatched_ids_and_weights_take_the_place_of_the_originals() -> None:
    """When prepare gives ids and weights, the experts and finalize are handed those."""
    pf = Recorder("synchronous", dispatched=True)
    experts = WritingExperts(config(), UNQUANTIZED)
    hidden_states, weights, ids = inputs()
    mk.FusedMoEKernel(pf, experts).apply(
        hidden_states, W1, W2, weights, ids, MoEActivation.SILU, -1, None, False
    )
    for found in (experts.given["topk_ids"], pf.calls["finalize"][0][3]):
        assert torch.equal(found, ids.flip(0))
    for found in (experts.given["topk_weights"], pf.calls["finalize"][0][2]):
        assert torch.equal(found, weights.flip(0))


def test_shared_experts_run_while_the_combine_is_under_way() -> None:
    """An asynchronous combine is overlapped with the shared expert; otherwise the layer has to run it."""
    hidden_states, weights, ids = inputs()
    pf = Recorder("hook and receiver")
    shared = Shared(pf.log)
    kernel = mk.FusedMoEKernel(pf, TorchExperts(config(), UNQUANTIZED), shared)
    assert kernel.owns_shared_experts
    arguments = (hidden_states, W1, W2, weights, ids, MoEActivation.SILU, -1, None, False)
    kernel.apply(*arguments)
    what = [name for name, _ in pf.log]
    assert what.index("finalize started") < what.index("shared") < what.index("finalize hook")
    assert shared.seen is hidden_states
    kernel.apply(*arguments, shared_experts_input=weights)
    assert shared.seen is weights
    synchronous = mk.FusedMoEKernel(Recorder("synchronous"), TorchExperts(config(), UNQUANTIZED), shared)
    assert not synchronous.owns_shared_experts


def test_ubatches_take_turns_and_keep_their_numbers() -> None:
    """Each micro-batch computes, under its number, while the other's tokens travel; outputs stay the same."""
    pf = Recorder("hook and receiver")
    kernel = mk.FusedMoEKernel(pf, TorchExperts(config(), UNQUANTIZED))
    batches = [(*inputs(tokens, seed=tokens), None) for tokens in (3, 6)]
    outputs = kernel.apply_ubatches(W1, W2, batches, MoEActivation.SILU, -1, None, False)
    one_round = [("prepare started", 0), ("prepare started", 1)]
    assert pf.log[:2] == one_round
    for name in ("prepare", "finalize"):
        first_wait = pf.log.index((f"{name} hook", 0))
        assert pf.log.index((f"{name} started", 1)) < first_wait
    assert {number for _, number in pf.log} == {0, 1}
    for (hidden_states, weights, ids, _), output in zip(batches, outputs, strict=True):
        alone = kernel.apply(hidden_states, W1, W2, weights, ids, MoEActivation.SILU, -1, None, False)
        assert torch.equal(output, alone)


def test_the_running_ubatch_is_known_inside_only() -> None:
    """Outside there is one micro-batch, number 0, and no overlap; an error restores that."""
    assert (dbo_enabled(), dbo_current_ubatch_id()) == (False, 0)
    with ubatch(1):
        assert (dbo_enabled(), dbo_current_ubatch_id()) == (True, 1)
    with pytest.raises(RuntimeError, match=r"^stop$"), ubatch(2):
        raise RuntimeError("stop")
    assert (dbo_enabled(), dbo_current_ubatch_id()) == (False, 0)


def test_inplace_writes_the_hidden_states() -> None:
    """With inplace the output is the input's tensor, and equal to what a new one would hold."""
    hidden_states, weights, ids = inputs()
    arguments = (W1, W2, weights, ids, MoEActivation.SILU, -1, None, False)
    expected = mk.FusedMoEKernel(
        MoEPrepareAndFinalizeNoDPEPModular(), TorchExperts(config(), UNQUANTIZED)
    ).apply(hidden_states, *arguments)
    kernel = mk.FusedMoEKernel(
        MoEPrepareAndFinalizeNoDPEPModular(), TorchExperts(config(), UNQUANTIZED), inplace=True
    )
    assert kernel.apply(hidden_states, *arguments) is hidden_states
    assert torch.equal(hidden_states, expected)


def test_a_kernel_refuses_parts_that_do_not_go_together() -> None:
    """Mixed kinds, mixed formats, and inplace where something else still reads: whole messages."""
    moe_config = config()
    batched = BatchedPrepareAndFinalize(4, 4, 1, 0)
    cases: list[tuple[Callable[[], object], str]] = [
        (
            lambda: mk.FusedMoEKernel(
                MoEPrepareAndFinalizeNoDPEPMonolithic(), TorchExperts(moe_config, UNQUANTIZED)
            ),
            (
                "FusedMoEKernel: MoEPrepareAndFinalizeNoDPEPMonolithic and TorchExperts do not go together. "
                "Give it two modular ones (topk ids and weights) or two monolithic ones (router logits)."
            ),
        ),
        (
            lambda: mk.FusedMoEKernel(batched, TorchExperts(moe_config, UNQUANTIZED)),
            (
                "FusedMoEKernel: BatchedPrepareAndFinalize gives the BatchedExperts format, but TorchExperts "
                "takes Standard. Choose experts of the backend's format."
            ),
        ),
        (
            lambda: mk.FusedMoEKernel(
                MoEPrepareAndFinalizeNoDPEPMonolithic(), RoutingExperts(moe_config, UNQUANTIZED), inplace=True
            ),
            "FusedMoEKernel: monolithic experts make their own output. Leave inplace False.",
        ),
        (
            lambda: mk.FusedMoEKernel(
                Recorder("receiver"), TorchExperts(moe_config, UNQUANTIZED), Shared([]), inplace=True
            ),
            (
                "FusedMoEKernel: inplace=True would overwrite the hidden states that the shared expert "
                "reads. Leave one of inplace and shared_experts out."
            ),
        ),
        (
            lambda: NaiveBatchedExperts(moe_config, UNQUANTIZED),
            (
                "NaiveBatchedExperts uses the BatchedExperts format, which takes both of max_num_tokens and "
                "num_dispatchers, found max_num_tokens=None, num_dispatchers=None."
            ),
        ),
        (
            lambda: TorchExperts(moe_config, UNQUANTIZED, max_num_tokens=4),
            (
                "TorchExperts uses the Standard format, which takes neither of max_num_tokens and "
                "num_dispatchers, found max_num_tokens=4, num_dispatchers=None."
            ),
        ),
    ]
    for build, message in cases:
        with pytest.raises(ValueError) as caught:
            build()
        assert str(caught.value) == message


def test_a_kernel_says_which_call_it_takes() -> None:
    """Topk ids for a monolithic kernel, or logits for a modular one: a TypeError names the right call."""
    hidden_states, weights, ids = inputs()
    modular = mk.FusedMoEKernel(MoEPrepareAndFinalizeNoDPEPModular(), TorchExperts(config(), UNQUANTIZED))
    monolithic = mk.FusedMoEKernel(
        MoEPrepareAndFinalizeNoDPEPMonolithic(), RoutingExperts(config(), UNQUANTIZED)
    )
    with pytest.raises(TypeError) as caught:
        modular.apply_monolithic(hidden_states, W1, W2, weights, MoEActivation.SILU, -1, None, False)
    assert str(caught.value) == "FusedMoEKernel: TorchExperts needs topk ids and weights. Call apply."
    with pytest.raises(TypeError) as caught:
        monolithic.apply(hidden_states, W1, W2, weights, ids, MoEActivation.SILU, -1, None, False)
    assert str(caught.value) == "FusedMoEKernel: RoutingExperts routes for itself. Call apply_monolithic."


def test_shapes_that_do_not_fit_are_named() -> None:
    """Weights for another hidden size are an error with all four shapes."""
    hidden_states, weights, ids = inputs()
    kernel = mk.FusedMoEKernel(MoEPrepareAndFinalizeNoDPEPModular(), TorchExperts(config(), UNQUANTIZED))
    with pytest.raises(ValueError) as caught:
        kernel.apply(hidden_states[:, :4], W1, W2, weights, ids, MoEActivation.SILU, -1, None, False)
    assert str(caught.value) == (
        "TorchExperts: activations (5, 4), w1 (4, 8, 8), w2 (4, 8, 4) and topk_ids (5, 2) do not fit "
        "together, expected [rows, hidden] or [experts, rows, hidden], [experts, n, hidden], [experts, "
        "hidden, n'] and [rows, topk]."
    )


def test_counts_from_a_list_are_on_both_sides() -> None:
    """Counts are int32, one for each expert, on the device and on the CPU."""
    meta = mk.ExpertTokensMetadata.make_from_list([3, 0, 2], "cpu")
    assert meta.expert_num_tokens.dtype == torch.int32
    assert meta.expert_num_tokens.tolist() == [3, 0, 2]
    assert meta.expert_num_tokens_cpu is not None
    assert meta.expert_num_tokens_cpu.tolist() == [3, 0, 2]
