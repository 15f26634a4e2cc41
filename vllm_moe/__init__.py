"""Mixture-of-Experts layers laid out as in vLLM; every prepare/finalize backend works on CPU and GPU."""
