"""What runs in Ray's environment: a driver, and models served; it imports nothing of ours."""
