"""Policies by name, built in and installed, and their parameters."""
