"""The steps of `gpu_proof.py` and the worker that runs them."""
