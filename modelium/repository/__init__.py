"""The model repository: `incoming/` in, checked, analysed and indexed models out."""

from modelium.repository.replacement import Replacement
from modelium.repository.repository import ModelRepository, RepositoryError, StoredModel
from modelium.repository.watching import watch

__all__ = ["ModelRepository", "Replacement", "RepositoryError", "StoredModel", "watch"]
