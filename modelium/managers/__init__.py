"""Managers of engines, one a runtime; each is usable alone and imports its client when made."""
