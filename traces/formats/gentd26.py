"""GenTD26: Stable Diffusion serving at Alibaba (Lin et al., SoCC 2025), base models and LoRAs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modelium.traces.columns import INT32_MAX, Clock, Name, Number
from modelium.traces.formats.asked import Asked, Start, names, numbers, whole
from modelium.traces.table import read_csv
from modelium.traces.trace import Trace


def recognises(start: Start) -> bool:
    """gmt_create,...,groupId,...,checkpoint_model_version_id,num_lora"""
    return start.has("gmt_create", "checkpoint_model_version_id")


def read(path: Path, asked: Asked) -> Trace:
    """One row a picture job; the base model is the model, the group the organization.

    Images have no tokens: a job's work, `prompt_tokens`, is its images times its denoising steps
    (what an `infer` engine takes), and it answers in one piece: `output_tokens` is 1.
    """
    some = Number("a whole number >= 0", whole=True, high=INT32_MAX, blank=1.0)
    read = read_csv(
        path,
        {"gmt_create": Clock(), "checkpoint_model_version_id": Name(required=False)},
        {
            "groupId": Name(required=False),
            "num_images_per_prompt": some,
            "num_inference_steps": some,
        },
    )
    model = names(read["checkpoint_model_version_id"])
    known = np.flatnonzero(model.codes >= 0)
    ones = np.ones(len(model.codes))
    images = numbers(read.get("num_images_per_prompt", ones))
    steps = numbers(read.get("num_inference_steps", ones))
    work = whole(np.minimum(images * steps, INT32_MAX))[known]
    notes = [f"{path}: prompt_tokens are images times denoising steps; output_tokens are 1"]
    if len(known) < len(model.codes):
        notes.append(f"{path}: {len(model.codes) - len(known):,} rows name no model: left out")
    labels = {}
    if "groupId" in read:
        labels["organization"] = names(read["groupId"]).take(known)
    return asked.trace(
        path,
        numbers(read["gmt_create"])[known],
        model.take(known),
        (work, np.ones_like(work)),
        notes=tuple(notes),
        labels=labels,
    )
