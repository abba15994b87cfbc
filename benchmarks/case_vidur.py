"""A case of kind `vidur`: Vidur's own requests, times and batches, on an engine like its Sarathi.

`config.json` has the engine's limits, `batches.csv` what the coefficients are fitted to,
`requests.csv` arrivals, lengths, and the times to be met.
"""

from __future__ import annotations

from pathlib import Path

from comparison import Comparison, Times, by_arrival, compare, read_config

from modelium.errors import ConfigError
from modelium.sim.fit import vidur
from modelium.sim.fit.form import fit
from modelium.sim.fit.tables import column, read_csv
from modelium.sim.kernel.generate import run_engine
from modelium.sim.spec import Generate

NEEDED = ("num_blocks", "block_size", "batch_size_cap", "chunk_size")
NAMES = ("arrival_s", "prompt_tokens", "output_tokens", "prefill_done_s", "completed_s")


def run(folder: Path) -> Comparison:
    """Fit, simulate, compare. Raises ModeliumError for a folder of another form."""
    config = read_config(folder / "config.json", *NEEDED)
    for name in ("replicas", "pp"):
        if config.get(name, 1) != 1:
            raise ConfigError(f"{folder}: {name} is {config[name]}; one is all that is modelled")
    fitted = fit(vidur.steps(folder))
    blocks, block_tokens = config["num_blocks"], config["block_size"]
    engine = Generate(
        fitted.step,
        kv_tokens=blocks * block_tokens,
        max_num_seqs=config["batch_size_cap"],
        max_batched_tokens=config["chunk_size"],
        block_tokens=block_tokens,
        prefix_caching=False,
        watermark_blocks=int(config.get("watermark_fraction", 0.0) * blocks),
    )
    file = folder / "requests.csv"
    rows = by_arrival(read_csv(file), file)
    arrival, prompt, output, first, last = (column(rows, name, file) for name in NAMES)
    done = run_engine(engine, arrival, prompt.astype(int), output.astype(int))
    basis = (
        f"fitted to its batches: mean error {fitted.decode.mape:.1%} decode-only,"
        f" {fitted.mixed.mape:.1%} mixed"
    )
    ours = Times(arrival, done.first_s, done.finish_s, output)
    return Comparison(basis, compare(ours, Times(arrival, first, last, output)))
