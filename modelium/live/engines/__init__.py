"""An engine's life: start, health checks, sleep, replacement, recovery; and its memory."""
