"""Bounds that no policy can exceed."""
