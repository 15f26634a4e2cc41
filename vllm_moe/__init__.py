"""Mixture-of-Experts layers laid out as in vLLM, with every prepare/finalize backend working on CPU and "
"GPU."""
