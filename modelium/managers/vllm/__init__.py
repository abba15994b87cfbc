"""vLLM: `vllm serve`, one process for each instance."""
