"""The abstract bases of experts; :mod:`modular_kernel` gives them their names."""

from abc import ABC, abstractmethod

import torch

from vllm_moe.fused_moe._types import ExpertTokensMetadata, FusedMoEActivationFormat, TopKWeightAndReduce
from vllm_moe.fused_moe.activation import MoEActivation, apply_moe_activation
from vllm_moe.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, FusedMoEQuantConfig, QuantKey

__all__ = ["FusedMoEExperts", "FusedMoEExpertsModular", "FusedMoEExpertsMonolithic"]


class FusedMoEExperts(ABC):
    """The two matrix products of every expert and the activation between them.

    Raises ValueError when ``max_num_tokens`` and ``num_dispatchers`` do not fit the activation format: the
    batched one needs both, the standard one takes neither.
    """

    def __init__(
        self,
        moe_config: FusedMoEConfig,
        quant_config: FusedMoEQuantConfig,
        max_num_tokens: int | None = None,
        num_dispatchers: int | None = None,
    ) -> None:
        batched = self.activation_format() is FusedMoEActivationFormat.BatchedExperts
        given = (max_num_tokens is not None, num_dispatchers is not None)
        if given != (batched, batched):
            raise ValueError(
                f"{type(self).__name__} uses the {self.activation_format().name} format, which takes "
                f"{'both' if batched else 'neither'} of max_num_tokens and num_dispatchers, found "
                f"max_num_tokens={max_num_tokens}, num_dispatchers={num_dispatchers}."
            )
        self.moe_config = moe_config
        self.quant_config = quant_config
        self.max_num_tokens = max_num_tokens
        self.num_dispatchers = num_dispatchers

    @staticmethod
    @abstractmethod
    def is_monolithic() -> bool:
        """Whether the experts route for themselves."""
        raise NotImplementedError

    @staticmethod
    @abstractmethod
    def activation_format() -> FusedMoEActivationFormat:
        """Give the format that ``apply`` takes and gives."""
        raise NotImplementedError

    @property
    def expects_unquantized_inputs(self) -> bool:
        """Whether ``prepare`` should leave the activations unquantized."""
        return False

    @staticmethod
    def is_supported_config(
        cls: type["FusedMoEExperts"],  # noqa: PLW0211 -- vLLM's signature
        moe_config: FusedMoEConfig,
        weight_key: QuantKey | None,
        activation_key: QuantKey | None,
        activation_format: FusedMoEActivationFormat,
    ) -> tuple[bool, str | None]:
        """Give ``(True, None)`` if ``cls`` can run the layer, else ``(False, reason)``."""
        device = torch.device(moe_config.device)
        checks = (
            (cls._supports_device(device), f"device {device.type}"),
            (
                cls._supports_activation(moe_config.activation),
                f"activation {moe_config.activation.value}",
            ),
            (
                cls._supports_quant_scheme(weight_key, activation_key),
                f"weights {weight_key or 'unquantized'} with activations {activation_key or 'unquantized'}",
            ),
            (cls._supports_parallel_config(moe_config.moe_parallel_config), "this parallel layout"),
            (cls.activation_format() is activation_format, f"the {activation_format.name} format"),
        )
        for supported, what in checks:
            if not supported:
                return False, f"{cls.__name__} does not support {what}"
        return True, None

    @staticmethod
    @abstractmethod
    def _supports_device(device: torch.device) -> bool:
        raise NotImplementedError

    @staticmethod
    @abstractmethod
    def _supports_quant_scheme(weight_key: QuantKey | None, activation_key: QuantKey | None) -> bool:
        raise NotImplementedError

    @staticmethod
    def _supports_activation(activation: MoEActivation) -> bool:
        return True

    @staticmethod
    def _supports_parallel_config(moe_parallel_config: FusedMoEParallelConfig) -> bool:
        return True

    @abstractmethod
    def supports_expert_map(self) -> bool:
        """Whether ``apply`` uses ``expert_map``; experts of the batched format do not need it."""
        raise NotImplementedError


class FusedMoEExpertsModular(FusedMoEExperts):
    """Experts that are given topk ids and weights."""

    @staticmethod
    def is_monolithic() -> bool:
        """Give False."""
        return False

    def moe_problem_size(
        self, a1: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, topk_ids: torch.Tensor
    ) -> tuple[int, int, int, int, int]:
        """Give local experts, rows (of one expert when batched), width of w1's output, hidden and topk.

        Raises ValueError when the shapes do not fit together.
        """
        E, N, _ = w1.shape
        K = a1.size(-1)
        M = a1.size(-2)
        matches = topk_ids.size(0) == M if a1.dim() == 2 else a1.size(0) == E
        if not matches or w1.size(2) != K or w2.shape[:2] != (E, K):
            raise ValueError(
                f"{type(self).__name__}: activations {tuple(a1.shape)}, w1 {tuple(w1.shape)}, w2 "
                f"{tuple(w2.shape)} and topk_ids {tuple(topk_ids.shape)} do not fit together, expected "
                "[rows, hidden] or [experts, rows, hidden], [experts, n, hidden], [experts, hidden, n'] "
                "and [rows, topk]."
            )
        return E, M, N, K, topk_ids.size(1)

    def workspace_dtype(self, act_dtype: torch.dtype) -> torch.dtype:
        """Give the dtype of workspaces and output, for unquantized activations of ``act_dtype``."""
        return act_dtype

    @abstractmethod
    def workspace_shapes(
        self,
        M: int,
        N: int,
        K: int,
        topk: int,
        global_num_experts: int,
        local_num_experts: int,
        expert_tokens_meta: ExpertTokensMetadata | None,
        activation: MoEActivation,
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Give the shapes of ``workspace13`` (either product), ``workspace2`` (activation) and the output.

        The output shares its memory with ``workspace13``. ``M``, ``N``, ``K`` are as
        :meth:`moe_problem_size` gives.
        """
        raise NotImplementedError

    def activation(
        self,
        activation: MoEActivation,
        output: torch.Tensor,
        input: torch.Tensor,  # noqa: A002 -- vLLM's name
    ) -> None:
        """Write ``activation(input)`` into ``output``."""
        apply_moe_activation(activation, output, input)

    @abstractmethod
    def finalize_weight_and_reduce_impl(self) -> TopKWeightAndReduce:
        """How ``finalize`` has to weight and reduce what ``apply`` wrote."""
        raise NotImplementedError

    @abstractmethod
    def apply(
        self,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: MoEActivation,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        a1q_scale: torch.Tensor | None,
        a2_scale: torch.Tensor | None,
        workspace13: torch.Tensor,
        workspace2: torch.Tensor,
        expert_tokens_meta: ExpertTokensMetadata | None,
        apply_router_weight_on_input: bool,
    ) -> None:
        """Run the experts on what ``prepare`` gave and write ``output``.

        - ``w1`` ``[local experts, n, hidden]`` (``2 * n`` rows, gate then up, for a gated activation),
          ``w2`` ``[local experts, hidden, n]``.
        - ``a1q_scale``: the scales of ``hidden_states`` that ``prepare`` returned; ``a2_scale``: the static
          scale for the second product's input.
        - ``workspace13``, ``workspace2``: scratch of the shapes that :meth:`workspace_shapes` asks for.
        - ``topk_weights``, ``topk_ids``, ``expert_map``: as in ``prepare``, after dispatch.
        """
        raise NotImplementedError


class FusedMoEExpertsMonolithic(FusedMoEExperts):
    """Experts that route for themselves, from router logits, and weight and reduce their output."""

    @staticmethod
    def is_monolithic() -> bool:
        """Give True."""
        return True

    @abstractmethod
    def apply(
        self,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        router_logits: torch.Tensor,
        activation: MoEActivation,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        a1q_scale: torch.Tensor | None,
        apply_router_weight_on_input: bool,
    ) -> torch.Tensor:
        """Route, run the experts, weight and reduce to ``[tokens, hidden]``; arguments as in modular ones."""
        raise NotImplementedError
