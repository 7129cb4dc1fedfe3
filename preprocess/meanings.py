"""What fields mean: tables, filled by the oracle, one distinct field after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from preprocess.fields import LONG_FIELD, Fields
from preprocess.records import NOT_IN_UNIVERSE, Layout, Lookup, read_token
from preprocess.spec import Column, Spec

MAX_KNOWN = 1 << 16  # distinct fields of a column that are remembered between blocks
NOWHERE = 2**62
CLEAN, IMPUTED, SKIPPED, REFUSED = range(4)


class Meanings:
    """What the distinct fields of one column mean: of field i, its code and what becomes of it."""

    def __init__(self, column: Column, spec: Spec, token_of: Callable[[str], str]) -> None:
        self._column, self._spec, self._token_of = column, spec, token_of
        self._forget()

    def _forget(self) -> None:
        self._places: dict[str, int] = {}
        self._short = np.full(LONG_FIELD + 1, NOWHERE)
        self._codes: list[float] = []
        self._outcomes: list[int] = []

    def look_up(self, fields: Fields, place: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Codes and outcomes of a column of fields."""
        starts, lengths = fields.bounds(place)
        keys = fields.short(starts, lengths)
        if len(self._codes) > MAX_KNOWN:
            self._forget()
        is_long = lengths > 2
        if is_long.any():
            keys[is_long] = LONG_FIELD
        at = np.take(self._short, keys, mode="clip")
        if at.max(initial=0) == NOWHERE:
            for key in np.unique(keys[at == NOWHERE]).tolist():
                if key != LONG_FIELD:
                    text = key.to_bytes(4, "little")[: key >> 16].decode()
                    self._short[key] = self._learn(text)
            at = np.take(self._short, keys, mode="clip")
            if keys.max() == LONG_FIELD:
                at[is_long] = self.places_of(fields.texts(starts[is_long], lengths[is_long]))
        return self.meaning(at)

    def places_of(self, texts: pl.Series) -> NDArray[np.intp]:
        """Places in the list of what is known."""
        places = self._known_places(texts)
        if places.null_count():
            for text in texts.filter(places.is_null()).unique().to_list():
                self._places[text] = self._learn(text)
            places = self._known_places(texts)
        return places.to_numpy()

    def meaning(self, at: NDArray[np.intp]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Codes and outcomes of places."""
        codes = np.array(self._codes, dtype=self._spec.stored_as(self._column))
        outcomes = np.array(self._outcomes, dtype=np.uint8)
        if not len(codes):
            return np.empty(0, codes.dtype), outcomes
        return np.take(codes, at, mode="clip"), np.take(outcomes, at, mode="clip")

    def _known_places(self, texts: pl.Series) -> pl.Series:
        return texts.replace_strict(self._places, default=None, return_dtype=pl.Int64)

    def _learn(self, text: str) -> int:
        """Ask the oracle; gives the place of the answer."""
        code = read_token(self._token_of(text), self._column, self._spec)
        outcome = CLEAN
        if isinstance(code, str):
            outcome = SKIPPED if code == NOT_IN_UNIVERSE else REFUSED
            code = 0
        elif code is None:
            assert self._column.impute is not None
            code, outcome = self._column.impute, IMPUTED
        self._codes.append(code)
        self._outcomes.append(outcome)
        return len(self._codes) - 1


class SecondFile:
    """The used columns of the second file as arrays, one entry for each of its keys."""

    def __init__(self, layout: Layout, lookup: Lookup) -> None:
        found = {key: fields for key, fields in lookup.items() if fields}
        self._places = {key: place for place, key in enumerate(found)}
        self._columns = {}
        for column, place in layout.used:
            if (index := place - layout.num_fields) >= 0:
                fields = pl.Series([fields[index] for fields in found.values()], dtype=pl.String)
                known = Meanings(column, layout.spec, lambda field: field.strip(layout.blanks))
                self._columns[column.name] = known.meaning(known.places_of(fields))

    def places(self, keys: pl.Series) -> NDArray[np.intp]:
        """Which entry belongs to each key, -1 if none does."""
        return np.array([self._places.get(key, -1) for key in keys.to_list()], np.intp)

    def look_up(self, name: str, places: NDArray[np.intp]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Codes and outcomes of a column, of no meaning where there is no entry."""
        codes, outcomes = self._columns[name]
        if not len(codes):
            return np.zeros(len(places), codes.dtype), np.zeros(len(places), np.uint8)
        return codes[places], outcomes[places]
