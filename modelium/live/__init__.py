"""The live cluster: the same policies on real engines."""
