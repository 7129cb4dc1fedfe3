"""How a kept record travels from an engine to its shard: a fixed number of bytes.

    _side uint8   0 train, 1 test
    _shard uint16
    _unit uint64  rank of its unit within the shard
    _order uint64 rank of the record within its unit; only where a unit has several
    then one field for each used column

All of it little-endian and without gaps. Within a shard rows are sorted by `_unit` and `_order`,
both parts of keyed hashes, so their order tells nothing about the order of the file, and is the
same whoever did the work.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from preprocess.records import Record
from preprocess.spec import Spec
from preprocess.split import Split, place

if TYPE_CHECKING:
    import numpy as np

_STRUCT = {"uint8": "B", "int32": "i", "float32": "f"}
_NUMPY = {"uint8": "u1", "int32": "<i4", "float32": "<f4"}


def row_struct(spec: Spec) -> Struct:
    """Packs (side, shard, unit, [order,] *codes)."""
    codes = "".join(_STRUCT[spec.stored_as(column)] for column in spec.columns)
    return Struct("<BHQ" + "Q" * bool(spec.unit.key) + codes)


def row_type(spec: Spec) -> np.dtype[np.void]:
    """The same as a numpy type."""
    import numpy as np

    order = [("_order", "<u8")] if spec.unit.key else []
    codes = [(column.name, _NUMPY[spec.stored_as(column)]) for column in spec.columns]
    return np.dtype([("_side", "u1"), ("_shard", "<u2"), ("_unit", "<u8"), *order, *codes])


def pack(packer: Struct, line: bytes, record: Record, split: Split) -> bytes:
    """The row of a record."""
    if not record.unit:
        return packer.pack(*place(line, split), *record.codes)
    order = place(line, split)[2]
    return packer.pack(*place(record.unit.encode(), split), order, *record.codes)
