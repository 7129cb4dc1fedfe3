"""From a block of raw lines to rows of predictions: the arithmetic of training, and its rules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpsgd.data import as_inputs
from dpsgd.model_file import TrainedModel
from preprocess.blocks import Block, Refused
from preprocess.records import NOT_IN_UNIVERSE

HEADER = "line,score,class,refused\n"
ROWS_AT_ONCE = 8192  # that are features at a time


def rows_of(block: Block, trained: TrainedModel) -> str:
    """A row for each record of the block, in the order of the file; a blank line leaves nothing.

    The score has 12 decimals, so that records are tied in the file where they are in the model.
    """
    rows = [""] * block.num_lines
    logits = _logits(block, trained)
    scores = np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
    classes = (logits > 0).astype(int)  # as in dpsgd.metrics
    found = zip(block.kept.tolist(), scores.tolist(), classes.tolist(), strict=True)
    for index, score, label in found:
        rows[index] = f"{block.first_line + index},{score:.12f},{label},\n"
    for refused in block.refused:
        rows[refused.line - block.first_line] = f"{refused.line},,,{reason(refused)}\n"
    for column, lines in block.skipped.items():
        for index in lines.tolist():
            rows[index] = f"{block.first_line + index},,,{column}: {NOT_IN_UNIVERSE}\n"
    return "".join(rows)


def reason(refused: Refused) -> str:
    """Why a record is refused, without the value, which is private."""
    column, _, rule = refused.refusal
    return f"{column}: {rule}" if column else rule


def _logits(block: Block, trained: TrainedModel) -> NDArray[np.float32]:
    """Logits [kept] of a block."""
    found = [np.empty(0, np.float32)]
    for start in range(0, len(block.kept), ROWS_AT_ONCE):
        part = {name: codes[start : start + ROWS_AT_ONCE] for name, codes in block.codes.items()}
        inputs = as_inputs(part, trained.spec, trained.model.inputs)
        found.append(trained.model.logits(trained.params, inputs))
    return np.concatenate(found)
