"""What a folder of model files needs to be served, found without opening the weights."""

from modelium.analyze.folder import ModelFiles, analyze

__all__ = ["ModelFiles", "analyze"]
