"""Everything that can be configured: one frozen dataclass, equal on all ranks.

Where the values come from (command line, environment, file) is the subject of `options`.

Nothing heavy is imported here: a mistake is reported before numpy, torch or MPI are loaded.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import collectives
from dpsgd import engines, models
from dpsgd.errors import ConfigError
from preprocess.ledger import beside

OPTIMIZERS = ("adam", "momentum", "sgd")
SCHEDULES = ("constant", "cosine", "linear")
NOISES = ("split", "sharded", "local")
WIRES = ("auto", "int32", "int64", "float32")
DDP = "ddp"
"""The all-reduce that is PyTorch's DistributedDataParallel, over gloo."""
PROGRESS = ("auto", "bar", "lines", "none")

EXCLUSIVE = (
    ("epsilon", "noise_multiplier", "no_privacy"),
    ("sample_rate", "batch_size"),
    ("steps", "epochs"),
)
"""Groups of options of which at most one may be given."""

DEFAULT_EPSILON = 3.0
DEFAULT_HIDDEN = (64,)
MAX_WIDTH = 2**16
MIN_PART = 3
"""Letters of a part of a word that are enough to recognise it."""
DEFAULT_SAMPLE_RATE = 0.1
DEFAULT_STEPS = 600
DEFAULT_LEARNING_RATES = {"adam": 0.03, "momentum": 1.0, "sgd": 10.0}


def _flag(text: str) -> bool:
    try:
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
            text.lower()
        ]
    except KeyError:
        raise ValueError("true or false") from None


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(width) for width in text.split(","))


def _rows(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _option(default: Any, parse: Any, kind: str, text: str) -> Any:
    return field(default=default, metadata={"parse": parse, "kind": kind, "help": text})


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train, and how. Raises ConfigError for anything out of range.

    `None` stands for "not given": the default then depends on other options or on the data.
    """

    data: Path = _option(Path("data/demo"), Path, "folder", "data set made by preprocess")
    out: Path | None = _option(
        None, Path, "folder", "run folder (default runs/<UTC time>-<process>)"
    )
    ledger: Path | None = _option(
        None, Path, "file", "privacy ledger (default beside the data set: DATA.ledger.jsonl)"
    )
    allreduce: str = _option(
        "auto", str, "name", "all-reduce: auto, " + ", ".join((*collectives.NAMES, DDP))
    )
    transport: str = _option(
        "auto", str, "name", "of the all-reduce: auto, " + ", ".join(collectives.TRANSPORTS)
    )
    engine: str = _option("auto", str, "name", "gradient engine: auto, " + ", ".join(engines.NAMES))
    microbatch: int | str = _option(
        "auto", _rows, "rows", "rows of a batch that are computed at once: auto, or a number"
    )
    model: str = _option("mlp", str, "name", "model: " + ", ".join(models.NAMES))
    hidden: tuple[int, ...] = _option(
        DEFAULT_HIDDEN, _widths, "widths", "hidden layers of the mlp, such as 64 or 64,32"
    )
    activation: str = _option(
        models.ACTIVATIONS[0], str, "name", "of the mlp: " + ", ".join(models.ACTIVATIONS)
    )
    epsilon: float | None = _option(
        None, float, "number", f"privacy budget of this run (default {DEFAULT_EPSILON:g})"
    )
    noise_multiplier: float | None = _option(
        None,
        float,
        "number",
        "noise standard deviation / max-grad-norm, instead of epsilon; of each message with noise "
        "local",
    )
    no_privacy: bool = _option(
        False, _flag, "true|false", "plain SGD for comparison: no clipping, no noise, no epsilon"
    )
    delta: float = _option(1e-5, float, "number", "delta of the guarantee")
    max_grad_norm: float = _option(1.0, float, "number", "C, bound on one record's gradient norm")
    sample_rate: float | None = _option(
        None, float, "number", f"q, Poisson rate of one step (default {DEFAULT_SAMPLE_RATE:g})"
    )
    batch_size: int | None = _option(
        None, int, "integer", "expected batch size over all ranks, instead of sample-rate"
    )
    steps: int | None = _option(None, int, "integer", f"steps (default {DEFAULT_STEPS})")
    epochs: float | None = _option(
        None, float, "number", "expected passes over the data, instead of steps"
    )
    optimizer: str = _option("adam", str, "name", "optimizer: " + ", ".join(OPTIMIZERS))
    learning_rate: float | None = _option(
        None,
        float,
        "number",
        "learning rate (default "
        + ", ".join(f"{name} {rate:g}" for name, rate in DEFAULT_LEARNING_RATES.items())
        + ")",
    )
    schedule: str = _option(
        "constant", str, "name", "schedule of the learning rate: " + ", ".join(SCHEDULES)
    )
    warmup: int = _option(0, int, "integer", "steps of warm-up before the full learning rate")
    adam_bias_correction: bool = _option(
        False, _flag, "true|false", "subtract the variance of the noise from Adam's second moment"
    )
    averaging: float = _option(
        0.99, float, "number", "decay of the weight average that is released; 0 releases the last"
    )
    noise: str = _option(
        "split",
        str,
        "name",
        "where noise is added: split, a share by every rank; sharded, by the owner of a finished "
        "sum, ranks trusting each other; local, all of it by every rank: epsilon or "
        "noise-multiplier is then that of each message, and the model has more noise",
    )
    wire: str = _option(
        "auto", str, "name", f"sums travel as {', '.join(WIRES)}; float32 is not private"
    )
    insecure_seed: int | None = _option(
        None, int, "integer", "repeatable randomness for tests; the model is then not private"
    )
    progress: str = _option("auto", str, "name", "progress: " + ", ".join(PROGRESS))

    def __post_init__(self) -> None:
        for name in ("data", "out", "ledger"):
            if isinstance(value := getattr(self, name), str):  # from a program or a notebook
                object.__setattr__(self, name, Path(value))
        for group in EXCLUSIVE:
            given = [name for name in group if is_given(getattr(self, name))]
            if len(given) > 1:
                raise ConfigError(f"{_flags(given)} exclude each other; give one of them")
        for name, choices in (
            ("transport", ("auto", *collectives.TRANSPORTS)),
            ("engine", (engines.AUTO, *engines.NAMES)),
            ("activation", models.ACTIVATIONS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("noise", NOISES),
            ("wire", WIRES),
            ("progress", PROGRESS),
        ):
            one_of(name, getattr(self, name), choices)
        if self.allreduce == DDP:
            self._check_ddp()
        else:
            _check_allreduce(self.allreduce, self.transport)
            _check_release(self.noise, self.wire, self.allreduce)
        if self.wire == "int32" and (self.no_privacy or self.noise_multiplier == 0):
            raise ConfigError("wire must be auto, int64 or float32 without noise, got int32")
        for name in ("batch_size", "steps", "warmup", "insecure_seed"):
            _integer(name, getattr(self, name))
        models.check_name(self.model)
        self._check_model()
        for width in self.hidden:
            _integer("hidden", width)
        if not self.hidden or not 1 <= min(self.hidden) <= max(self.hidden) <= MAX_WIDTH:
            raise ConfigError(f"hidden must be widths from 1 to {MAX_WIDTH}, got {self.hidden}")
        _in_range("epsilon", self.epsilon, above=0)
        if self.noise_multiplier != 0 or self.insecure_seed is None:  # clipping alone, to compare
            if self.noise_multiplier == 0:
                raise ConfigError(
                    "noise_multiplier must be greater than 0, got 0; 0 only with --insecure-seed"
                )
            _in_range("noise_multiplier", self.noise_multiplier, above=0)
        _in_range("delta", self.delta, above=0, at_most=0.01)
        if self.microbatch != "auto":
            _integer("microbatch", self.microbatch, "auto or an integer")
            _in_range("microbatch", int(self.microbatch), above=0)
        _in_range("max_grad_norm", self.max_grad_norm, at_least=1e-6, at_most=1e6)
        _in_range("sample_rate", self.sample_rate, above=0, at_most=1)
        _in_range("batch_size", self.batch_size, above=0)
        _in_range("steps", self.steps, above=0)
        _in_range("epochs", self.epochs, above=0)
        _in_range("learning_rate", self.learning_rate, above=0)
        _in_range("warmup", self.warmup, at_least=0)
        if self.epochs is None:
            self._check_warmup(self.resolved_steps(0))
        if self.adam_bias_correction and self.optimizer != "adam":
            raise ConfigError(
                f"adam_bias_correction must be used with optimizer adam, got {self.optimizer}"
            )
        _in_range("averaging", self.averaging, at_least=0, below=1)
        _in_range("insecure_seed", self.insecure_seed, at_least=0)

    @property
    def private(self) -> bool:
        """Whether the model may claim an epsilon at all."""
        known = self.insecure_seed is not None
        return not (self.no_privacy or known or self.wire == "float32")

    def ledger_of(self, dataset: Path) -> Path:
        """Where this run and all others on the same data set are recorded."""
        if self.ledger is not None:
            return self.ledger
        return beside(dataset)

    def resolved_epsilon(self) -> float | None:
        """The budget to calibrate the noise for; None if the noise itself is given."""
        if self.noise_multiplier is not None or self.no_privacy:
            return None
        return DEFAULT_EPSILON if self.epsilon is None else self.epsilon

    def resolved_learning_rate(self) -> float:
        """The learning rate, by default that of the optimizer."""
        if self.learning_rate is not None:
            return self.learning_rate
        return DEFAULT_LEARNING_RATES[self.optimizer]

    def resolved_sample_rate(self, num_examples: int) -> float:
        """q for a data set of `num_examples`; ConfigError if the batch is larger than that."""
        if self.batch_size is None:
            return DEFAULT_SAMPLE_RATE if self.sample_rate is None else self.sample_rate
        if self.batch_size > num_examples:
            raise ConfigError(
                f"batch_size must be at most the {num_examples} training records of {self.data}, "
                f"got {self.batch_size}"
            )
        return self.batch_size / num_examples

    def resolved_steps(self, num_examples: int) -> int:
        """Number of steps for a data set of `num_examples`."""
        if self.epochs is None:
            return DEFAULT_STEPS if self.steps is None else self.steps
        steps = max(1, round(self.epochs / self.resolved_sample_rate(num_examples)))
        self._check_warmup(steps)
        return steps

    def _check_model(self) -> None:
        """Raise ConfigError for options that this model has no use for."""
        if self.engine == "fused" and self.model not in models.DENSE:
            raise ConfigError(
                f"engine fused is for {' and '.join(models.DENSE)}, got model {self.model}; use "
                f"auto or bookkeeping"
            )
        for name, default in (("hidden", DEFAULT_HIDDEN), ("activation", models.ACTIVATIONS[0])):
            value = getattr(self, name)
            if self.model != "mlp" and value != default:
                shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
                raise ConfigError(f"{name} is for model mlp, got {shown} with model {self.model}")

    def _check_ddp(self) -> None:
        """Raise ConfigError for what DistributedDataParallel cannot do, or does by itself."""
        if importlib.util.find_spec("torch") is None:
            raise ConfigError("allreduce ddp needs torch: pip install 'dpsgd[torch]'")
        for name, wanted in (
            ("engine", ("auto", "two-pass")),
            ("transport", ("auto",)),
            ("microbatch", ("auto",)),
            ("noise", ("split", "local")),
            ("wire", tuple(wire for wire in WIRES if wire != "float32")),
        ):
            if (value := getattr(self, name)) not in wanted:
                raise ConfigError(
                    f"{name} must be {' or '.join(wanted)} with allreduce ddp, got {value}"
                )

    def _check_warmup(self, steps: int) -> None:
        """Raise ConfigError if the learning rate would never be reached."""
        if self.warmup >= steps:
            raise ConfigError(f"warmup must be less than the {steps} steps, got {self.warmup}")

    def resolved_default(self, name: str) -> Any:
        """The value that stands in for option `name` when it is None; None if nothing does yet.

        What depends on the data set or on the time is left open.
        """
        return {
            "epsilon": self.resolved_epsilon(),
            "learning_rate": self.resolved_learning_rate(),
            "ledger": str(self.ledger_of(self.data)),
            "sample_rate": DEFAULT_SAMPLE_RATE if self.batch_size is None else None,
            "steps": DEFAULT_STEPS if self.epochs is None else None,
        }.get(name)

    def to_json(self) -> dict[str, Any]:
        """All values as JSON types; the result is a valid configuration file."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


def is_given(value: Any) -> bool:
    """Whether somebody gave a value; a number 0 is one."""
    return value is not None and value is not False


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint that names the valid word nearest to a misspelt one, or nothing."""
    words, part = list(valid), name.strip("-")
    longer = [word for word in words if len(part) >= MIN_PART and part in word]
    longer.sort(key=lambda word: (not word.lstrip("-").startswith(part), len(word)))
    close = longer or difflib.get_close_matches(name, words, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        hint = nearest(value, choices)
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}{hint}")


def _check_allreduce(name: str, transport: str) -> None:
    """Raise ConfigError unless this all-reduce, perhaps with arguments, can be had here."""
    if ":" not in name:
        one_of("allreduce", name, ("auto", *collectives.NAMES, DDP))
    try:
        collectives.check_name(name, transport)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _check_release(noise: str, wire: str, allreduce: str) -> None:
    """Raise ConfigError unless the all-reduce can do what noise and wire need of it."""
    if noise == "sharded":
        try:
            collectives.check_halves(allreduce)
        except ValueError as error:
            raise ConfigError(
                f"noise sharded is added between the halves of the all-reduce, but {error}"
            ) from None
    ours = allreduce == collectives.AUTO or allreduce.partition(":")[0] in collectives.ALGORITHMS
    if wire == "float32" and not ours:
        raise ConfigError(
            f"wire float32 needs an all-reduce that gives all ranks the same bits, which "
            f"{allreduce} does not promise; take auto or one of {', '.join(collectives.ALGORITHMS)}"
        )


def _flags(names: Iterable[str]) -> str:
    return " and ".join("--" + name.replace("_", "-") for name in names)


def _integer(name: str, value: Any, kind: str = "an integer") -> None:
    """For values from a program; text is parsed before."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ConfigError(f"{name} must be {kind}, got {value!r}")


def _in_range(
    name: str,
    value: float | None,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> None:
    if value is None:
        return
    if math.isfinite(value) and above < value < below and at_least <= value <= at_most:
        return
    limits = [
        f"{word} {limit:g}"
        for word, limit in (
            ("greater than", above),
            ("at least", at_least),
            ("at most", at_most),
            ("less than", below),
        )
        if math.isfinite(limit)
    ]
    kind = "" if isinstance(value, int) else "finite and "
    raise ConfigError(f"{name} must be {kind}{' and '.join(limits)}, got {value:g}")
