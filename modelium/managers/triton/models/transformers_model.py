"""A Hugging Face model on Triton's Python backend: text in; text, a vector or scores out."""

import json

import numpy as np
import torch
import transformers
import triton_python_backend_utils as pb
from batches import RefusedError, failed


class TritonPythonModel:
    """Serves the folder that the parameter `path` names; `task` is generate, embed or classify."""

    def initialize(self, args) -> None:
        config = json.loads(args["model_config"])
        told = {name: one["string_value"] for name, one in config["parameters"].items()}
        self.device = "cpu"
        if args["model_instance_kind"] == "GPU":
            self.device = f"cuda:{args['model_instance_device_id']}"
            if share := told.get("memory_share"):
                torch.cuda.set_per_process_memory_fraction(float(share), self.device)
        kind = {
            "generate": transformers.AutoModelForCausalLM,
            "classify": transformers.AutoModelForSequenceClassification,
            "embed": transformers.AutoModel,
        }[told["task"]]
        self.answer = getattr(self, told["task"])
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(told["path"])
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model = kind.from_pretrained(told["path"], dtype=told.get("dtype", "auto"))
        self.model = model.to(self.device).eval()
        self.context = getattr(self.model.config, "max_position_embeddings", 0) or 0

    def execute(self, requests):
        answers = []
        for request in requests:
            try:
                with torch.inference_mode():
                    made = self.answer(request)
                answers.append(pb.InferenceResponse([pb.Tensor(*one) for one in made.items()]))
            except Exception as error:
                answers.append(failed(error))
        return answers

    def generate(self, request):
        """Go on with a text. A temperature of 0 takes the likeliest token each time."""
        given = self._tokens(_texts(request)[:1])
        length = given["input_ids"].shape[1]
        most = int(_number(request, "max_tokens", 16))
        if most < 1:
            raise RefusedError(f"max_tokens is {most}, expected at least 1")
        if self.context and length + most > self.context:
            why = f"{length} tokens and {most} more exceed the context, {self.context}"
            raise RefusedError(why)
        warmth = _number(request, "temperature", 0.0)
        warm = {"temperature": warmth, "top_k": 0} if warmth > 0 else {}
        made = self.model.generate(
            **given,
            max_new_tokens=most,
            do_sample=warmth > 0,
            pad_token_id=self.tokenizer.pad_token_id,
            stopping_criteria=transformers.StoppingCriteriaList([_Gone(request)]),
            **warm,
        )[0, length:]
        text = self.tokenizer.decode(made, skip_special_tokens=True)
        return {
            "text_output": np.array([text.encode()], dtype=object),
            "prompt_tokens": np.array([length], dtype=np.int32),
            "output_tokens": np.array([len(made)], dtype=np.int32),
        }

    def embed(self, request):
        """The mean of the last layer over each text's tokens."""
        given = self._tokens(_texts(request))
        hidden = self.model(**given).last_hidden_state
        mask = given["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return {
            "embedding": mean.float().cpu().numpy(),
            "prompt_tokens": given["attention_mask"].sum(1).cpu().numpy().astype(np.int32),
        }

    def classify(self, request):
        """The probability of each label."""
        given = self._tokens(_texts(request))
        return {
            "scores": self.model(**given).logits.softmax(-1).float().cpu().numpy(),
            "prompt_tokens": given["attention_mask"].sum(1).cpu().numpy().astype(np.int32),
        }

    def _tokens(self, texts):
        told = self.tokenizer(texts, return_tensors="pt", padding=len(texts) > 1)
        names = ("input_ids", "attention_mask")
        if not told["input_ids"].shape[1]:
            raise RefusedError("text_input is empty")
        return {name: told[name].to(self.device) for name in names}


class _Gone(transformers.StoppingCriteria):
    """Stops when the client has given its request up."""

    def __init__(self, request) -> None:
        self.request = request

    def __call__(self, tokens, scores, **more):
        return torch.full((tokens.shape[0],), self.request.is_cancelled(), device=tokens.device)


def _texts(request):
    given = pb.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)
    return [one.decode(errors="replace") for one in given]


def _number(request, name, default):
    tensor = pb.get_input_tensor_by_name(request, name)
    return default if tensor is None else float(tensor.as_numpy().reshape(-1)[0])
