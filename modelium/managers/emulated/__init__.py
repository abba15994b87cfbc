"""Emulated engines: processes that answer as fast as a profile says, without a GPU."""
