"""What is written of a live cluster: events, the journal, telemetry, exports."""
