"""Triton Inference Server: one process for each GPU, and its model repository."""
