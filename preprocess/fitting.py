"""From a document with fitted numbers to a spec: checked, then charged, then read and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preprocess import cli, specs
from preprocess.errors import DataError, UsageError
from preprocess.fitted import Needs, Statistics, fit, fitted_columns, without_fitted
from preprocess.header import read_header
from preprocess.join import read_lookup
from preprocess.parquet import readable
from preprocess.sources import Source, open_source
from preprocess.spec import Spec
from preprocess.statistics import IMPRECISION, budget_of, charge, draw
from preprocess.writer import check_target, scratch_folder


def fit_spec(
    name: str,
    document: dict[str, Any],
    sources: Sequence[Source],
    joined: Sequence[Source],
    output: Path,
    ledger: Path,
) -> tuple[Spec, dict[str, Any]]:
    """The spec, and what the manifest of the data set `output` says about the numbers in it.

    What can be known to be wrong is found before anything is charged.
    """
    budget = budget_of(document)
    plain = specs.as_spec(name, without_fitted(document))
    if plain.unit.kind != "record":
        raise UsageError(f"unit must be record to fit numbers of a spec, got {plain.unit.kind}")
    if pipes := [one.name for one in (*sources, *joined) if one.packing == "pipe"]:
        raise UsageError(f"input must be files to fit numbers, they are read twice, got {pipes[0]}")
    check_target(output)
    if not cli.can_be_made(output):
        raise UsageError(f"output must be writable, got {output}: it cannot be made there")
    with scratch_folder(output) as scratch:
        files = [readable(source, plain, scratch) for source in sources]
        second = [readable(source, plain, scratch) for source in joined]
        lookup = read_lookup(second[0], plain) if second else None
        for file in files:
            with open_source(file) as text:
                read_header(text, plain)
                if not text.peek(1):
                    raise DataError("file must have records, got only a header")
        run = charge(ledger, budget, plain.unit.kind)

        def drawn(document: dict[str, Any], needs: Needs) -> dict[str, Statistics]:
            return draw(document, needs, files, lookup, budget)

        resolved = fit(document, drawn)
    told = {
        "columns": fitted_columns(document),
        "epsilon": budget.epsilon,
        "delta": budget.delta,
        "noise_multiplier": budget.noise_multiplier,
        "imprecision": IMPRECISION,
        "run": run,
        "ledger": str(ledger),
    }
    return specs.as_spec(name, resolved), told
