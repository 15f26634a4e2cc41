"""A Mixture-of-Experts layer: router, experts, shared expert, any backend (vLLM: ``fused_moe/layer.py``)."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional

from vllm_moe.fused_moe.activation import MoEActivation, apply_moe_activation
from vllm_moe.fused_moe.all2all_utils import (
    make_all2all_prepare_finalize,
    maybe_make_prepare_finalize,
    roundup_hidden_size,
)
from vllm_moe.fused_moe.config import (
    FP8_DTYPE,
    FusedMoEConfig,
    FusedMoEParallelConfig,
    FusedMoEQuantConfig,
    RoutingMethodType,
)
from vllm_moe.fused_moe.experts import TorchExperts, TritonExperts
from vllm_moe.fused_moe.fused_batched_moe import BatchedTritonExperts, NaiveBatchedExperts
from vllm_moe.fused_moe.kernels.quantize import quantize_with_scale, scale_from_amax
from vllm_moe.fused_moe.modular_kernel import (
    FusedMoEActivationFormat,
    FusedMoEExpertsModular,
    FusedMoEKernel,
    FusedMoEPrepareAndFinalize,
)
from vllm_moe.fused_moe.prepare_finalize import BatchedPrepareAndFinalize
from vllm_moe.fused_moe.router import fused_topk
from vllm_moe.fused_moe.ubatching import dbo_current_ubatch_id
from vllm_moe.transports import EpGroup

__all__ = [
    "LOCAL_BACKENDS",
    "QUANTIZATIONS",
    "FusedMoE",
    "SharedExpert",
    "fused_moe_make_expert_params_mapping",
    "make_experts",
]

QUANTIZATIONS = ("none", "fp8_tensor", "fp8_token", "fp8_block", "int8_token")
"""Of weights and activations alike: per tensor, per token and output channel, or in blocks of 128."""

LOCAL_BACKENDS = ("batched", "no_dp_ep")
"""Backends that move no tokens between ranks."""

_BLOCK = 128
_LIMITS = {FP8_DTYPE: 448.0, torch.int8: 127.0}


def fused_moe_make_expert_params_mapping(
    model: nn.Module,
    ckpt_gate_proj_name: str,
    ckpt_down_proj_name: str,
    ckpt_up_proj_name: str,
    num_experts: int,
    num_redundant_experts: int = 0,
) -> list[tuple[str, str, int, str]]:
    """Say where each expert weight of a checkpoint goes: ``(parameter, weight, physical expert, shard)``.

    A checkpoint's name that contains ``weight`` (``experts.3.gate_proj.``) belongs into the parameter whose
    name has ``parameter`` (``experts.w13_``) in its place. Shards are ``w1`` (gate), ``w2`` (down) and ``w3``
    (up); the physical experts past ``num_experts`` are copies of the first ones. Where ``model`` has
    adapters, the parameters' names have ``base_layer.`` in them.
    """
    adapted = any(".base_layer." in name for name, _ in model.named_parameters())
    base = "base_layer." if adapted else ""
    shards = (("w1", ckpt_gate_proj_name), ("w2", ckpt_down_proj_name), ("w3", ckpt_up_proj_name))
    return [
        (
            f"experts.{base}{'w2_' if shard == 'w2' else 'w13_'}",
            f"experts.{physical % num_experts}.{name}.{base}",
            physical,
            shard,
        )
        for physical in range(num_experts + num_redundant_experts)
        for shard, name in shards
    ]


class SharedExpert(nn.Module):
    """An expert that every token goes to: gate and up, SiLU, down. It reads its input only.

    ``gate_up`` is ``[2 * intermediate, hidden]``, ``down`` ``[hidden, intermediate]``.
    """

    def __init__(
        self, hidden_size: int, intermediate_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.gate_up = _parameter((2 * intermediate_size, hidden_size), dtype, device)
        self.down = _parameter((hidden_size, intermediate_size), dtype, device)
        self._outputs: dict[int, torch.Tensor] = {}

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``[tokens, hidden]`` to ``[tokens, hidden]``."""
        both = functional.linear(hidden_states, self.gate_up)
        active = both.new_empty(both.size(0), self.down.size(1))
        apply_moe_activation(MoEActivation.SILU, active, both)
        return functional.linear(active, self.down)

    def apply(self, shared_experts_input: torch.Tensor) -> None:  # type: ignore[override]  # the driver's interface
        """Run, and keep the output for :meth:`take`; the driver calls this while tokens are on their way."""
        self._outputs[dbo_current_ubatch_id()] = self(shared_experts_input)

    def take(self, ubatch_id: int) -> torch.Tensor:
        """Give the output that :meth:`apply` kept for a micro-batch."""
        return self._outputs.pop(ubatch_id)


class FusedMoE(nn.Module):
    """One rank's share of a Mixture-of-Experts layer, and the way to the other ranks' experts.

    - ``num_experts``, ``top_k``: experts of the model, and how many a token goes to.
    - ``hidden_size``, ``intermediate_size``: the experts' sizes. A backend that is compiled for other hidden
      sizes gets a larger one; input is then filled up with zeros, and output trimmed.
    - ``renormalize``: softmax over the chosen experts' logits, otherwise over all before the choice.
    - ``quantization``: one of :data:`QUANTIZATIONS`.
    - ``num_redundant_experts``: copies of the first experts, so that their tokens are spread over more ranks.
    - ``shared_intermediate_size``: the shared expert's size; 0 for none.
    - ``all2all_backend``: a name of :func:`~vllm_moe.fused_moe.all2all_utils.all2all_backends`, or
      ``no_dp_ep`` or ``batched`` on one rank.
    - ``ep_group``: the ranks that experts are dealt out to; None is this one alone, on the CPU.
    - ``max_num_tokens``: the most tokens of a rank in one micro-batch.

    Load weights with :meth:`load_weights`, then call :meth:`process_weights_after_loading`.

    Raises ValueError when sizes do not fit the ranks or the backend.
    """

    def __init__(
        self,
        num_experts: int,
        top_k: int,
        hidden_size: int,
        intermediate_size: int,
        params_dtype: torch.dtype = torch.bfloat16,
        *,
        renormalize: bool = True,
        quantization: str = "none",
        apply_router_weight_on_input: bool = False,
        num_redundant_experts: int = 0,
        shared_intermediate_size: int = 0,
        all2all_backend: str = "no_dp_ep",
        ep_group: EpGroup | None = None,
        max_num_tokens: int = 256,
    ) -> None:
        super().__init__()
        group = EpGroup() if ep_group is None else ep_group
        if quantization not in QUANTIZATIONS:
            raise ValueError(
                f"FusedMoE: quantization is {quantization!r}, expected one of {', '.join(QUANTIZATIONS)}."
            )
        if not 1 <= top_k <= num_experts:
            raise ValueError(
                f"FusedMoE: top_k is {top_k}, expected 1 to num_experts, which is {num_experts}."
            )
        if apply_router_weight_on_input and top_k != 1:
            raise ValueError(f"FusedMoE: weights on the input need top_k 1, found {top_k}.")
        if not 0 <= num_redundant_experts <= num_experts:
            raise ValueError(
                f"FusedMoE: num_redundant_experts is {num_redundant_experts}, expected 0 to num_experts, "
                f"{num_experts}."
            )
        physical = num_experts + num_redundant_experts
        if physical % group.world_size:
            raise ValueError(
                f"FusedMoE: {physical} experts do not divide evenly among {group.world_size} ranks. Change "
                "num_experts or "
                "num_redundant_experts."
            )
        self.group = group
        self.renormalize = renormalize
        self.quantization = quantization
        self.apply_router_weight_on_input = apply_router_weight_on_input
        self.num_logical_experts = num_experts
        self.unpadded_hidden_size = hidden_size
        self.all2all_backend = all2all_backend
        moves = all2all_backend not in LOCAL_BACKENDS
        padded = roundup_hidden_size(all2all_backend, hidden_size, params_dtype) if moves else hidden_size
        world = group.world_size
        self.moe_config = FusedMoEConfig(
            num_experts=physical,
            experts_per_token=top_k,
            hidden_dim=padded,
            intermediate_size_per_partition=intermediate_size,
            num_local_experts=physical // world,
            num_logical_experts=num_experts,
            activation=MoEActivation.SILU,
            device=group.device,
            routing_method=RoutingMethodType.Renormalize if renormalize else RoutingMethodType.Default,
            moe_parallel_config=FusedMoEParallelConfig.make(
                1, 1, world, 1, rank=group.rank, enable_expert_parallel=True, all2all_backend=all2all_backend
            ),
            in_dtype=params_dtype,
            max_num_tokens=max_num_tokens,
        )
        local = self.moe_config.num_local_experts
        self.first_expert = group.rank * local
        self.router = _parameter((num_experts, hidden_size), params_dtype, group.device)
        self.w13_weight = _parameter((local, 2 * intermediate_size, padded), params_dtype, group.device)
        self.w2_weight = _parameter((local, padded, intermediate_size), params_dtype, group.device)
        self.shared_expert = (
            SharedExpert(hidden_size, shared_intermediate_size, params_dtype, group.device)
            if shared_intermediate_size
            else None
        )
        expert_map = torch.full((physical,), -1, dtype=torch.int32)
        expert_map[self.first_expert : self.first_expert + local] = torch.arange(local, dtype=torch.int32)
        self.expert_map = expert_map.to(group.device) if world > 1 else None
        self._kernel: FusedMoEKernel | None = None

    @property
    def kernel(self) -> FusedMoEKernel:
        """The backend and the experts; raises RuntimeError before :meth:`process_weights_after_loading`."""
        if self._kernel is None:
            raise RuntimeError("FusedMoE: call process_weights_after_loading before the layer is used.")
        return self._kernel

    def weight_loader(
        self,
        param: nn.Parameter,
        loaded_weight: torch.Tensor,
        weight_name: str,
        shard_id: str,
        expert_id: int,
    ) -> bool:
        """Copy an expert's weight to where it belongs; False when another rank has that physical expert.

        Gate and up are ``[intermediate, hidden]``, down is ``[hidden, intermediate]``, of the model's own
        hidden size. Raises ValueError for another shape.
        """
        local = expert_id - self.first_expert
        if not 0 <= local < self.moe_config.num_local_experts:
            return False
        hidden, width = self.unpadded_hidden_size, self.moe_config.intermediate_size_per_partition
        if shard_id == "w2":
            target = param.data[local, :hidden]
        else:
            start = 0 if shard_id == "w1" else width
            target = param.data[local, start : start + width, :hidden]
        if target.shape != loaded_weight.shape:
            raise ValueError(
                f"FusedMoE: {weight_name} of expert {expert_id} is {tuple(loaded_weight.shape)}, expected "
                f"{tuple(target.shape)} for shard {shard_id}."
            )
        target.copy_(loaded_weight)
        return True

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint's weights and give the names of those that had a place on this rank.

        Names are ``gate.weight`` (the router), ``experts.<i>.{gate,up,down}_proj.weight`` and
        ``shared_expert.{gate,up,down}_proj.weight``. Raises ValueError for any other name.
        """
        physical = self.moe_config.num_experts
        mapping = fused_moe_make_expert_params_mapping(
            self,
            "gate_proj",
            "down_proj",
            "up_proj",
            self.num_logical_experts,
            physical - self.num_logical_experts,
        )
        loaded = set()
        for name, weight in weights:
            if name == "gate.weight":
                self.router.data.copy_(weight)
                loaded.add(name)
                continue
            if name.startswith("shared_expert.") and self.shared_expert is not None:
                self._load_shared(self.shared_expert, name, weight)
                loaded.add(name)
                continue
            places = [row for row in mapping if row[1] in name]
            if not places:
                raise ValueError(
                    f"FusedMoE: there is no place for {name!r}, expected gate.weight, "
                    "experts.<i>.{gate,up,down}_proj.weight or shared_expert.{gate,up,down}_proj.weight."
                )
            for param_name, weight_name, expert_id, shard_id in places:
                mapped = name.replace(weight_name, param_name).removeprefix("experts.")
                if self.weight_loader(getattr(self, mapped), weight, mapped, shard_id, expert_id):
                    loaded.add(name)
        return loaded

    def process_weights_after_loading(self) -> None:
        """Quantize the weights if that is wanted, and build the backend and its experts; once, after loading.

        Raises ValueError with each candidate's reason when no backend or no experts fit.
        """
        if self._kernel is not None:
            raise RuntimeError("FusedMoE: process_weights_after_loading was called before.")
        w13, w13_scale = _quantize_weight(self.w13_weight.data, self.quantization)
        w2, w2_scale = _quantize_weight(self.w2_weight.data, self.quantization)
        self.w13_weight = nn.Parameter(w13, requires_grad=False)
        self.w2_weight = nn.Parameter(w2, requires_grad=False)
        per_channel = self.quantization.endswith("token")
        quant_config = FusedMoEQuantConfig.make(
            None if w13_scale is None else w13.dtype,
            per_act_token_quant=per_channel,
            per_out_ch_quant=per_channel,
            block_shape=[_BLOCK, _BLOCK] if self.quantization.endswith("block") else None,
            w1_scale=w13_scale,
            w2_scale=w2_scale,
        )
        prepare_finalize = self._make_prepare_finalize(quant_config)
        experts = make_experts(self.moe_config, quant_config, prepare_finalize)
        self._kernel = FusedMoEKernel(prepare_finalize, experts, self.shared_expert)

    def route(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the router's choice: float32 weights and int64 ids, ``[tokens, topk]`` both."""
        logits = functional.linear(hidden_states, self.router)
        topk = self.moe_config.experts_per_token
        return fused_topk(hidden_states, logits, topk, self.renormalize, torch.int64)

    def physical_ids(self, topk_ids: torch.Tensor) -> torch.Tensor:
        """Give ids as experts are placed: of an expert with a copy, odd tokens go to the copy."""
        copies = self.moe_config.num_experts - self.num_logical_experts
        if not copies:
            return topk_ids
        odd = torch.arange(topk_ids.size(0), device=topk_ids.device).unsqueeze(1) % 2 == 1
        return torch.where(
            (topk_ids >= 0) & (topk_ids < copies) & odd, topk_ids + self.num_logical_experts, topk_ids
        )

    def forward(self, hidden_states: torch.Tensor, micro_batches: int = 1) -> torch.Tensor:
        """Run the layer on this rank's tokens ``[tokens, hidden]``; gives a tensor of that shape and dtype.

        With ``micro_batches`` the tokens are cut into so many, each computing while another's are on their
        way; every rank has to give the same number.
        """
        outputs = []
        batches = []
        missing = self.moe_config.hidden_dim - self.unpadded_hidden_size
        for rows in hidden_states.tensor_split(micro_batches):
            weights, ids = self.route(rows)
            padded = functional.pad(rows, (0, missing)) if missing else rows
            batches.append((padded, weights, self.physical_ids(ids), rows))
        routed = self.kernel.apply_ubatches(
            self.w13_weight,
            self.w2_weight,
            batches,
            self.moe_config.activation,
            self.moe_config.num_experts,
            self.expert_map,
            self.apply_router_weight_on_input,
        )
        for number, (output, batch) in enumerate(zip(routed, batches, strict=True)):
            trimmed = output[:, : self.unpadded_hidden_size]
            if self.shared_expert is not None:
                owned = self.kernel.owns_shared_experts
                trimmed = trimmed + (
                    self.shared_expert.take(number) if owned else self.shared_expert(batch[3])
                )
            outputs.append(trimmed)
        return torch.cat(outputs)

    def _make_prepare_finalize(self, quant_config: FusedMoEQuantConfig) -> FusedMoEPrepareAndFinalize:
        moe, group = self.moe_config, self.group
        if self.all2all_backend in LOCAL_BACKENDS and group.world_size > 1:
            raise ValueError(
                f"FusedMoE: backend {self.all2all_backend} moves no tokens, but there are {group.world_size} "
                "ranks. Choose "
                "another, or one rank."
            )
        if self.all2all_backend == "batched":
            return BatchedPrepareAndFinalize(moe.max_num_tokens, moe.num_local_experts, 1, 0)
        if group.world_size == 1 and self.all2all_backend != "no_dp_ep":
            return make_all2all_prepare_finalize(self.all2all_backend, moe, quant_config, group)
        return maybe_make_prepare_finalize(moe, quant_config, ep_group=group)

    @staticmethod
    def _load_shared(expert: SharedExpert, name: str, weight: torch.Tensor) -> None:
        width = expert.down.size(1)
        targets = {
            "shared_expert.gate_proj.weight": expert.gate_up.data[:width],
            "shared_expert.up_proj.weight": expert.gate_up.data[width:],
            "shared_expert.down_proj.weight": expert.down.data,
        }
        targets[name].copy_(weight)


_EXPERTS: tuple[type[FusedMoEExpertsModular], ...] = (
    TritonExperts,
    TorchExperts,
    BatchedTritonExperts,
    NaiveBatchedExperts,
)


def make_experts(
    moe_config: FusedMoEConfig,
    quant_config: FusedMoEQuantConfig,
    prepare_finalize: FusedMoEPrepareAndFinalize,
) -> FusedMoEExpertsModular:
    """Build the first experts that fit the backend's format, the device and the quantization.

    Raises ValueError with each candidate's reason when there are none.
    """
    wanted = prepare_finalize.activation_format
    reasons = []
    for cls in _EXPERTS:
        fits, reason = cls.is_supported_config(
            cls, moe_config, quant_config.weight_key, quant_config.activation_key, wanted
        )
        if fits:
            if wanted is FusedMoEActivationFormat.Standard:
                return cls(moe_config, quant_config)
            return cls(
                moe_config,
                quant_config,
                max_num_tokens=prepare_finalize.max_num_tokens_per_rank(),
                num_dispatchers=prepare_finalize.num_dispatchers(),
            )
        reasons.append(f"  {reason}")
    raise ValueError(f"No experts fit {type(prepare_finalize).__name__}:\n" + "\n".join(reasons))


def _parameter(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype, device=device), requires_grad=False)


def _quantize_weight(weight: torch.Tensor, quantization: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Quantize ``[experts, out, in]``; scales are as ``FusedMoEQuantConfig.make`` has them."""
    if quantization == "none":
        return weight, None
    dtype = torch.int8 if quantization.startswith("int8") else FP8_DTYPE
    limit = _LIMITS[dtype]
    magnitudes = weight.abs().float()
    if quantization.endswith("tensor"):
        scale = scale_from_amax(magnitudes.amax(dim=(1, 2)), limit)
        return quantize_with_scale(weight, scale.view(-1, 1, 1), dtype), scale
    if quantization.endswith("token"):
        scale = scale_from_amax(magnitudes.amax(dim=2, keepdim=True), limit)
        return quantize_with_scale(weight, scale, dtype), scale
    experts, rows, columns = weight.shape
    padding = (0, -columns % _BLOCK, 0, -rows % _BLOCK)
    padded = functional.pad(magnitudes, padding)
    blocks = padded.view(experts, padded.size(1) // _BLOCK, _BLOCK, padded.size(2) // _BLOCK, _BLOCK)
    scale = scale_from_amax(blocks.amax(dim=(2, 4)), limit)
    wide = scale.repeat_interleave(_BLOCK, 1).repeat_interleave(_BLOCK, 2)[:, :rows, :columns]
    return quantize_with_scale(weight, wide, dtype), scale
