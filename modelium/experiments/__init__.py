"""Several policies on one trace, and how to run them side by side."""
