"""Ray Serve: the head, its applications, and the code that serves models there."""
