"""What a run leaves: its tables, the summary of them, and the report."""
