"""Fused Mixture-of-Experts, laid out as vLLM's ``model_executor/layers/fused_moe``."""
