"""What a fit writes: one JSON document with coefficients, errors, source and licence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelium import catalog
from modelium.errors import ProfileError
from modelium.sim.fit import aiconfigurator, llmservingsim, vidur
from modelium.sim.fit.form import Fitted, as_json, fit

OVERHEAD_S = 1.6e-4
OVERHEAD_SOURCE = (
    "vLLM pull request 11133: 150 to 170 us between two decode steps of 256 sequences with"
    " asynchronous scheduling (on by default since 0.14) and CUDA graphs; otherwise 5 to 6 ms"
)


@dataclass(frozen=True, slots=True)
class Result:
    """One deployment's fit, with what identifies it."""

    model: str
    gpu: str
    tp: int
    replicas: int
    measured: str
    skew_alpha: float
    fitted: Fitted

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        names = ("model", "gpu", "tp", "replicas", "measured", "skew_alpha")
        return {name: getattr(self, name) for name in names} | as_json(self.fitted)


@dataclass(frozen=True, slots=True)
class Source:
    """Who measured, under which licence, and how their folder becomes fits."""

    name: str
    url: str
    licence: str
    overhead_s: float
    fits: Callable[[Path, Path | None], Iterable[Result]]


def _from_aiconfigurator(root: Path, _: Path | None) -> Iterator[Result]:
    for case in aiconfigurator.cases(root):
        fitted = fit(aiconfigurator.steps(case), OVERHEAD_S)
        vllm = f"vLLM {case.version}"
        yield Result(case.model, case.gpu, case.tp, 1, vllm, case.skew_alpha, fitted)


def _from_llmservingsim(root: Path, links: Path | None) -> Iterator[Result]:
    for case in llmservingsim.cases(root):
        fitted = fit(llmservingsim.steps(case, links), OVERHEAD_S)
        measured = f"vLLM {case.meta['vllm_version']}, {str(case.meta['profiled_at'])[:10]}"
        yield Result(case.model, case.gpu, case.tp, case.ep, measured, case.skew_alpha, fitted)


def _from_vidur(root: Path, _: Path | None) -> Iterator[Result]:
    try:
        config = json.loads((root / "config.json").read_text(encoding="utf-8"))
        model, gpu = catalog.model(config["model"]), catalog.gpu(config["gpu"].replace(" ", "-"))
    except FileNotFoundError as error:
        raise ProfileError(f"{error.filename}: no such file") from None
    except (KeyError, ValueError) as error:
        raise ProfileError(f"{root / 'config.json'}: model and gpu wanted ({error})") from None
    fitted = fit(vidur.steps(root))
    measured = str(config.get("simulator", "Vidur"))
    yield Result(model.name, gpu.name, int(config.get("tp", 1)), 1, measured, 0.0, fitted)


SOURCES = {
    "aiconfigurator": Source(
        "NVIDIA aiconfigurator, kernel measurements",
        "https://github.com/ai-dynamo/aiconfigurator",
        "Apache-2.0", OVERHEAD_S, _from_aiconfigurator,
    ),
    "llmservingsim": Source(
        "LLMServingSim, profiles of vLLM's layers",
        "https://github.com/casys-kaist/LLMServingSim",
        "MIT", OVERHEAD_S, _from_llmservingsim,
    ),
    "vidur": Source(
        "Vidur, log of simulated batches",
        "https://github.com/microsoft/vidur",
        "MIT", 0.0, _from_vidur,
    ),
}  # fmt: skip


def document(source: Source, results: Iterable[Result], date: str) -> str:
    """The JSON text: a profile a line, so that a new fit shows as a readable difference."""
    head: dict[str, Any] = {
        "source": {"name": source.name, "url": source.url, "licence": source.licence},
        "overhead_s": source.overhead_s,
        "overhead_source": OVERHEAD_SOURCE if source.overhead_s else "",
        "fitted": date,
    }
    lines = ",\n".join("    " + json.dumps(result.plain()) for result in results)
    opening = json.dumps(head, indent=2)[:-2]
    return f'{opening},\n  "profiles": [\n{lines}\n  ]\n}}\n'
