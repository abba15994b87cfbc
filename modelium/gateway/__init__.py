"""The one address that clients talk to."""
