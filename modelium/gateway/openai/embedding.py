"""Embedding models behind KServe's protocol, for clients that speak OpenAI's.

Such a model takes the texts as text_input and gives embedding, a row for each, and prompt_tokens.
"""

from __future__ import annotations

from array import array
from base64 import b64encode
from typing import Any

from modelium.gateway.errors import ApiError
from modelium.gateway.request_parsing import Ask

EMBEDDINGS = "/v1/embeddings"


def embedding_tensors(ask: Ask) -> list[dict[str, Any]]:
    """The texts of a request. Raises ApiError (400, 422)."""
    kind = ask.body.get("encoding_format", "float")
    if kind not in ("float", "base64"):
        why = f"encoding_format is {kind!r:.40}, expected float or base64"
        raise ApiError(400, why, param="encoding_format")
    given = ask.body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        why = f"{ask.request.model} takes a text or a list of texts"
        raise ApiError(422, why, param="input")
    return [{"name": "text_input", "datatype": "BYTES", "shape": [len(texts)], "data": texts}]


def embedding_answer(ask: Ask, given: Any) -> dict[str, Any]:
    """Tensors as OpenAI's answer. Raises ApiError (422) for other models' tensors."""
    try:
        found = {tensor["name"]: tensor for tensor in given["outputs"]}
        rows, width = found["embedding"]["shape"]
        flat = [float(value) for value in found["embedding"]["data"]]
        tokens = sum(found["prompt_tokens"]["data"]) if "prompt_tokens" in found else None
    except (KeyError, TypeError, ValueError):
        why = f"{ask.request.model} does not answer with embeddings"
        raise ApiError(422, why, param="model") from None
    coded = ask.body.get("encoding_format") == "base64"
    data = []
    for index in range(rows):
        row = flat[index * width : (index + 1) * width]
        vector = b64encode(array("f", row).tobytes()).decode() if coded else row
        data.append({"object": "embedding", "index": index, "embedding": vector})
    answer: dict[str, Any] = {"object": "list", "model": ask.request.model, "data": data}
    if tokens is not None:
        answer["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return answer
