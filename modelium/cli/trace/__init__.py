"""`modelium trace`."""
