"""The parts of a Mixture-of-Experts kernel, and the driver that puts them together.

    router -> prepare (quantize, dispatch) -> experts -> finalize (combine, weight, reduce)

``prepare`` and ``finalize`` belong to one object because both ends of an exchange have to agree; the experts
are another. Any prepare/finalize works with any experts of the same activation format. Names and signatures
are those of vLLM's ``fused_moe/modular_kernel.py``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol, TypeVar, final, runtime_checkable

import torch

from vllm_moe.fused_moe._experts_base import (
    FusedMoEExperts,
    FusedMoEExpertsModular,
    FusedMoEExpertsMonolithic,
)
from vllm_moe.fused_moe._types import ExpertTokensMetadata, FusedMoEActivationFormat, TopKWeightAndReduce
from vllm_moe.fused_moe.activation import MoEActivation
from vllm_moe.fused_moe.config import FusedMoEQuantConfig
from vllm_moe.fused_moe.ubatching import ubatch

__all__ = [
    "ExpertTokensMetadata",
    "FusedMoEActivationFormat",
    "FusedMoEExperts",
    "FusedMoEExpertsModular",
    "FusedMoEExpertsMonolithic",
    "FusedMoEKernel",
    "FusedMoEKernelModularImpl",
    "FusedMoEKernelMonolithicImpl",
    "FusedMoEPrepareAndFinalize",
    "FusedMoEPrepareAndFinalizeModular",
    "FusedMoEPrepareAndFinalizeMonolithic",
    "PrepareMonolithicResultType",
    "PrepareResultType",
    "ReceiverType",
    "SharedExperts",
    "TopKWeightAndReduce",
]


PrepareResultType = tuple[
    torch.Tensor,
    torch.Tensor | None,
    ExpertTokensMetadata | None,
    torch.Tensor | None,
    torch.Tensor | None,
]
"""Activations (quantized, dispatched), their scales, counts, dispatched ids and weights."""

PrepareMonolithicResultType = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]
"""Activations (quantized, dispatched), their scales, dispatched router logits."""

ReceiverType = Callable[[], PrepareResultType]


class FusedMoEPrepareAndFinalize(ABC):
    """What both kinds of prepare/finalize say about themselves."""

    def post_init_setup(self, fused_experts: FusedMoEExperts) -> None:
        """Take settings that depend on the experts; called once by the driver, does nothing by default."""
        return

    @property
    @abstractmethod
    def activation_format(self) -> FusedMoEActivationFormat:
        """The format of what ``prepare`` returns."""
        raise NotImplementedError

    @abstractmethod
    def topk_indices_dtype(self) -> torch.dtype | None:
        """Give the dtype that topk ids must have; None when any integer dtype will do."""
        raise NotImplementedError

    @abstractmethod
    def max_num_tokens_per_rank(self) -> int | None:
        """Give the most tokens a rank may pass to one ``prepare``; None when there is no limit."""
        raise NotImplementedError

    @abstractmethod
    def num_dispatchers(self) -> int:
        """Give the number of ranks that tokens may come from."""
        raise NotImplementedError

    @abstractmethod
    def output_is_reduced(self) -> bool:
        """Give True when each rank's output is complete after ``finalize``, False when their sum is."""
        raise NotImplementedError

    def supports_async(self) -> bool:
        """Whether ``prepare_async`` and ``finalize_async`` are implemented."""
        return False


class FusedMoEPrepareAndFinalizeModular(FusedMoEPrepareAndFinalize):
    """Prepare/finalize that is given the router's choice: topk ids and weights."""

    @abstractmethod
    def prepare(
        self,
        a1: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        num_experts: int,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
        quant_config: FusedMoEQuantConfig,
        defer_input_quant: bool,
    ) -> PrepareResultType:
        """Quantize and dispatch. No argument is written.

        - ``a1``: ``[tokens, hidden]``, unquantized.
        - ``topk_weights``, ``topk_ids``: ``[tokens, topk]``; ids are global, -1 marks a slot without an
          expert.
        - ``num_experts``: experts over all ranks.
        - ``expert_map``: integer ``[num_experts]``, from global to local id, -1 for another rank's expert;
          or None.
        - ``apply_router_weight_on_input``: multiply each row by its weight first (topk 1 only).
        - ``quant_config``: how the experts want their input.
        - ``defer_input_quant``: leave quantization to the experts; a backend that cannot raises
          NotImplementedError.
        """
        raise NotImplementedError

    def prepare_async(
        self,
        a1: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        num_experts: int,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
        quant_config: FusedMoEQuantConfig,
        defer_input_quant: bool,
    ) -> tuple[Callable[[], None], ReceiverType] | ReceiverType:
        """Start ``prepare`` and return a receiver that waits for it and gives its result.

        Or return ``(hook, receiver)``: the hook waits for the data to arrive, and is called before the
        receiver.
        """
        raise NotImplementedError

    @abstractmethod
    def finalize(
        self,
        output: torch.Tensor,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
        weight_and_reduce_impl: TopKWeightAndReduce,
    ) -> None:
        """Combine, weight and reduce into ``output``; no other argument is written.

        - ``output``: ``[tokens, hidden]``; every element is written. It may share memory with
          ``fused_expert_output``.
        - ``fused_expert_output``: what the experts wrote.
        - ``topk_weights``, ``topk_ids``: those that ``prepare`` returned, or its arguments where it returned
          None.
        - ``weight_and_reduce_impl``: how the experts want their output weighted and reduced.
        """
        raise NotImplementedError

    def finalize_async(
        self,
        output: torch.Tensor,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
        weight_and_reduce_impl: TopKWeightAndReduce,
    ) -> tuple[Callable[[], None], Callable[[], None]] | Callable[[], None]:
        """Start ``finalize``; return a receiver, or ``(hook, receiver)``, after which ``output`` is valid."""
        raise NotImplementedError


class FusedMoEPrepareAndFinalizeMonolithic(FusedMoEPrepareAndFinalize):
    """Prepare/finalize for experts that route for themselves: it is given router logits."""

    @abstractmethod
    def prepare(
        self,
        a1: torch.Tensor,
        router_logits: torch.Tensor,
        quant_config: FusedMoEQuantConfig,
        defer_input_quant: bool = False,
    ) -> PrepareMonolithicResultType:
        """Quantize and dispatch ``a1`` ``[tokens, hidden]``, ``router_logits`` ``[tokens, num_experts]``."""
        raise NotImplementedError

    @abstractmethod
    def finalize(self, fused_expert_output: torch.Tensor) -> torch.Tensor:
        """Combine the experts' weighted and reduced output ``[tokens, hidden]``."""
        raise NotImplementedError


@runtime_checkable
class SharedExperts(Protocol):
    """A shared expert that the driver may run while tokens travel; it keeps its own output."""

    def apply(self, shared_experts_input: torch.Tensor) -> None:
        """Run on ``[tokens, hidden]``, reading it only."""


_Result = TypeVar("_Result")


def _wait(started: "tuple[Callable[[], None], Callable[[], _Result]] | Callable[[], _Result]") -> _Result:
    """Finish what an async method started: its hook, if it gave one, then its receiver."""
    if isinstance(started, tuple):
        hook, receiver = started
        hook()
        return receiver()
    return started()


@dataclass(frozen=True)
class _Call:
    """The arguments of one :meth:`FusedMoEKernel.apply`."""

    hidden_states: torch.Tensor
    w1: torch.Tensor
    w2: torch.Tensor
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor
    activation: MoEActivation
    global_num_experts: int
    expert_map: torch.Tensor | None
    apply_router_weight_on_input: bool
    shared_experts_input: torch.Tensor | None


@final
class FusedMoEKernelModularImpl:
    """Drives a modular prepare/finalize with modular experts."""

    def __init__(
        self,
        prepare_finalize: FusedMoEPrepareAndFinalizeModular,
        fused_experts: FusedMoEExpertsModular,
        shared_experts: SharedExperts | None,
        inplace: bool = False,
    ) -> None:
        self.prepare_finalize = prepare_finalize
        self.fused_experts = fused_experts
        # Without an asynchronous finalize there is nothing to overlap a shared expert with: the layer runs
        # it.
        self.shared_experts = shared_experts if prepare_finalize.supports_async() else None
        if inplace and self.shared_experts is not None:
            raise ValueError(
                "FusedMoEKernel: inplace=True would overwrite the hidden states that the shared expert "
                "reads. Leave one of inplace and shared_experts out."
            )
        self.inplace = inplace

    def _experts(
        self,
        call: _Call,
        a1q: torch.Tensor,
        a1q_scale: torch.Tensor | None,
        expert_tokens_meta: ExpertTokensMetadata | None,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
    ) -> torch.Tensor:
        E, M, N, K, topk = self.fused_experts.moe_problem_size(a1q, call.w1, call.w2, topk_ids)
        shape13, shape2, shape_out = self.fused_experts.workspace_shapes(
            M, N, K, topk, call.global_num_experts, E, expert_tokens_meta, call.activation
        )
        dtype = self.fused_experts.workspace_dtype(call.hidden_states.dtype)
        shared = torch.empty(max(prod(shape13), prod(shape_out)), dtype=dtype, device=a1q.device)
        fused_out = shared[: prod(shape_out)].view(shape_out)
        if M == 0:
            return fused_out
        self.fused_experts.apply(
            output=fused_out,
            hidden_states=a1q,
            w1=call.w1,
            w2=call.w2,
            topk_weights=topk_weights,
            topk_ids=topk_ids,
            activation=call.activation,
            global_num_experts=call.global_num_experts,
            expert_map=call.expert_map,
            a1q_scale=a1q_scale,
            a2_scale=self.fused_experts.quant_config.a2_scale,
            workspace13=shared[: prod(shape13)].view(shape13),
            workspace2=torch.empty(shape2, dtype=dtype, device=a1q.device),
            expert_tokens_meta=expert_tokens_meta,
            apply_router_weight_on_input=call.apply_router_weight_on_input,
        )
        return fused_out

    def steps(self, call: _Call) -> Generator[None, None, torch.Tensor]:
        """Run ``call``, yielding where its tokens are on their way and another micro-batch could compute."""
        pf = self.prepare_finalize
        quant_config = self.fused_experts.quant_config
        deferred = self.fused_experts.expects_unquantized_inputs
        arguments = (
            call.hidden_states,
            call.topk_weights,
            call.topk_ids,
            call.global_num_experts,
            call.expert_map,
            call.apply_router_weight_on_input,
            quant_config,
        )
        if pf.supports_async():
            preparing = pf.prepare_async(*arguments, defer_input_quant=deferred)
            yield
            prepared = _wait(preparing)
        else:
            prepared = pf.prepare(*arguments, defer_input_quant=deferred)
        a1q, a1q_scale, expert_tokens_meta, dispatched_ids, dispatched_weights = prepared
        topk_ids = call.topk_ids if dispatched_ids is None else dispatched_ids
        topk_weights = call.topk_weights if dispatched_weights is None else dispatched_weights

        fused_out = self._experts(call, a1q, a1q_scale, expert_tokens_meta, topk_ids, topk_weights)

        output = call.hidden_states if self.inplace else torch.empty_like(call.hidden_states)
        reduce_impl = self.fused_experts.finalize_weight_and_reduce_impl()
        flag = call.apply_router_weight_on_input
        if pf.supports_async():
            finalizing = pf.finalize_async(output, fused_out, topk_weights, topk_ids, flag, reduce_impl)
            if self.shared_experts is not None:
                shared_input = (
                    call.hidden_states if call.shared_experts_input is None else call.shared_experts_input
                )
                self.shared_experts.apply(shared_input)
            yield
            _wait(finalizing)
        else:
            pf.finalize(output, fused_out, topk_weights, topk_ids, flag, reduce_impl)
        return output


@final
class FusedMoEKernelMonolithicImpl:
    """Drives a monolithic prepare/finalize with monolithic experts."""

    def __init__(
        self, prepare_finalize: FusedMoEPrepareAndFinalizeMonolithic, fused_experts: FusedMoEExpertsMonolithic
    ) -> None:
        self.prepare_finalize = prepare_finalize
        self.fused_experts = fused_experts

    def apply(
        self,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        router_logits: torch.Tensor,
        activation: MoEActivation,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
    ) -> torch.Tensor:
        """Run the layer from router logits ``[tokens, num_experts]``; gives ``[tokens, hidden]``."""
        a1q, a1q_scale, router_logits = self.prepare_finalize.prepare(
            hidden_states,
            router_logits,
            self.fused_experts.quant_config,
            defer_input_quant=self.fused_experts.expects_unquantized_inputs,
        )
        fused_out = self.fused_experts.apply(
            hidden_states=a1q,
            w1=w1,
            w2=w2,
            router_logits=router_logits,
            activation=activation,
            global_num_experts=global_num_experts,
            expert_map=expert_map,
            a1q_scale=a1q_scale,
            apply_router_weight_on_input=apply_router_weight_on_input,
        )
        return self.prepare_finalize.finalize(fused_out)


@final
class FusedMoEKernel:
    """A prepare/finalize and experts, run as one layer.

    Raises ValueError when one is modular and the other monolithic, or when their activation formats differ.
    """

    def __init__(
        self,
        prepare_finalize: FusedMoEPrepareAndFinalize,
        fused_experts: FusedMoEExperts,
        shared_experts: SharedExperts | None = None,
        inplace: bool = False,
    ) -> None:
        self.impl: FusedMoEKernelModularImpl | FusedMoEKernelMonolithicImpl
        if isinstance(prepare_finalize, FusedMoEPrepareAndFinalizeModular) and isinstance(
            fused_experts, FusedMoEExpertsModular
        ):
            self.impl = FusedMoEKernelModularImpl(prepare_finalize, fused_experts, shared_experts, inplace)
        elif isinstance(prepare_finalize, FusedMoEPrepareAndFinalizeMonolithic) and isinstance(
            fused_experts, FusedMoEExpertsMonolithic
        ):
            if inplace:
                raise ValueError(
                    "FusedMoEKernel: monolithic experts make their own output. Leave inplace False."
                )
            self.impl = FusedMoEKernelMonolithicImpl(prepare_finalize, fused_experts)
        else:
            raise ValueError(  # noqa: TRY004 -- as vLLM has it: each is of a right type, the pair is not
                f"FusedMoEKernel: {type(prepare_finalize).__name__} and {type(fused_experts).__name__} do "
                "not go together. Give it two modular ones (topk ids and weights) or two monolithic ones "
                "(router logits)."
            )
        found, expected = prepare_finalize.activation_format, fused_experts.activation_format()
        if found is not expected:
            raise ValueError(
                f"FusedMoEKernel: {type(prepare_finalize).__name__} gives the {found.name} format, but "
                f"{type(fused_experts).__name__} takes {expected.name}. Choose experts of the backend's "
                "format."
            )
        prepare_finalize.post_init_setup(fused_experts)

    @property
    def prepare_finalize(self) -> FusedMoEPrepareAndFinalize:
        """The prepare/finalize that the kernel drives."""
        return self.impl.prepare_finalize

    @property
    def fused_experts(self) -> FusedMoEExperts:
        """The experts that the kernel drives."""
        return self.impl.fused_experts

    @property
    def is_monolithic(self) -> bool:
        """Whether the kernel is given router logits (``apply_monolithic``), not topk ids (``apply``)."""
        return isinstance(self.impl, FusedMoEKernelMonolithicImpl)

    @property
    def owns_shared_experts(self) -> bool:
        """Whether the kernel runs the shared expert; if not, the layer has to."""
        return isinstance(self.impl, FusedMoEKernelModularImpl) and self.impl.shared_experts is not None

    def supports_expert_map(self) -> bool:
        """Whether the experts use ``expert_map``."""
        return self.fused_experts.supports_expert_map()

    def output_is_reduced(self) -> bool:
        """Give True when each rank's output is complete, False when their sum over ranks is."""
        return self.prepare_finalize.output_is_reduced()

    def _modular(self) -> FusedMoEKernelModularImpl:
        if not isinstance(self.impl, FusedMoEKernelModularImpl):
            raise TypeError(
                f"FusedMoEKernel: {type(self.fused_experts).__name__} routes for itself. Call "
                "apply_monolithic."
            )
        return self.impl

    def apply(
        self,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: MoEActivation,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
        shared_experts_input: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the layer on ``hidden_states`` ``[tokens, hidden]``; gives a tensor of that shape and dtype.

        ``global_num_experts`` of -1 means that every expert is local. The other arguments are those of
        ``prepare`` and of the experts' ``apply``; ``shared_experts_input`` goes to the shared expert,
        ``hidden_states`` if None.
        """
        (output,) = self.apply_ubatches(
            w1,
            w2,
            [(hidden_states, topk_weights, topk_ids, shared_experts_input)],
            activation,
            global_num_experts,
            expert_map,
            apply_router_weight_on_input,
        )
        return output

    def apply_ubatches(
        self,
        w1: torch.Tensor,
        w2: torch.Tensor,
        ubatches: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]],
        activation: MoEActivation,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
    ) -> list[torch.Tensor]:
        """Run several micro-batches, each computing while another's tokens are on their way.

        A micro-batch is ``(hidden_states, topk_weights, topk_ids, shared_experts_input)``. Every rank has to
        give the same number of them. With one there is nothing to overlap, and this is :meth:`apply`.
        """
        impl = self._modular()
        if global_num_experts == -1:
            global_num_experts = w1.size(0)
        running = {
            number: impl.steps(
                _Call(
                    hidden_states,
                    w1,
                    w2,
                    topk_weights,
                    topk_ids,
                    activation,
                    global_num_experts,
                    expert_map,
                    apply_router_weight_on_input,
                    shared_experts_input,
                )
            )
            for number, (hidden_states, topk_weights, topk_ids, shared_experts_input) in enumerate(ubatches)
        }
        outputs: dict[int, torch.Tensor] = {}
        while running:
            for number in list(running):
                try:
                    if len(ubatches) == 1:
                        next(running[number])
                    else:
                        with ubatch(number):
                            next(running[number])
                except StopIteration as stop:
                    outputs[number] = stop.value
                    del running[number]
        return [outputs[number] for number in range(len(ubatches))]

    def apply_monolithic(
        self,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        router_logits: torch.Tensor,
        activation: MoEActivation,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
    ) -> torch.Tensor:
        """Run the layer from router logits ``[tokens, num_experts]``; gives ``[tokens, hidden]``.

        Raises TypeError when the kernel is modular.
        """
        if not isinstance(self.impl, FusedMoEKernelMonolithicImpl):
            raise TypeError(
                f"FusedMoEKernel: {type(self.fused_experts).__name__} needs topk ids and weights. Call apply."
            )
        return self.impl.apply(
            hidden_states,
            w1,
            w2,
            router_logits,
            activation,
            w1.size(0) if global_num_experts == -1 else global_num_experts,
            expert_map,
            apply_router_weight_on_input,
        )
