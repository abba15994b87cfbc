"""Models for Triton's Python backend, run in Triton's environment; they import nothing of ours."""
