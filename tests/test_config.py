"""Options: where values come from, and what is said about wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpsgd.arguments import parse
from dpsgd.config import Config
from dpsgd.errors import ConfigError
from dpsgd.options import NAMES, config_of, gather
from helpers import Launch


def load(file: Path | None, environment: dict[str, str], flags: dict[str, object]) -> Config:
    return config_of(gather(file, environment, flags))


def test_the_command_line_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('max-grad-norm = 0.5\nsteps = 10\nallreduce = "tree"\nhidden = [32, 16]\n')
    environment = {"DPSGD_STEPS": "20", "DPSGD_ALLREDUCE": "mpi", "HOME": "/"}
    config = load(file, environment, {"allreduce": "alltoall"})
    assert config.max_grad_norm == 0.5
    assert config.hidden == (32, 16)
    assert config.steps == 20
    assert config.allreduce == "alltoall"
    assert config.delta == 1e-5


def test_the_strongest_place_decides_between_options_that_exclude_each_other() -> None:
    config = load(None, {"DPSGD_EPSILON": "1", "DPSGD_EPOCHS": "2"}, {"noise_multiplier": 4.0})
    assert (config.epsilon, config.noise_multiplier, config.epochs) == (None, 4.0, 2.0)
    assert load(None, {"DPSGD_NO_PRIVACY": "true"}, {"epsilon": 2.0}).no_privacy is False


def test_a_saved_configuration_is_a_configuration_file(tmp_path: Path) -> None:
    config = Config(epsilon=2.0, hidden=(16, 8), batch_size=100, data=Path("x"))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_json()))
    assert load(file, {}, {}) == config


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"epsilon": 0.0}, "epsilon must be finite and greater than 0, got 0"),
        ({"epsilon": float("nan")}, "epsilon must be finite and greater than 0, got nan"),
        ({"noise_multiplier": float("inf")}, "noise_multiplier must be finite"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be finite and greater than 0, got -1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be finite and at least 1e-06"),
        ({"sample_rate": 1.5}, "sample_rate must be finite and greater than 0 and at most 1"),
        ({"delta": 1.0}, "delta must be finite and greater than 0 and at most 0.01, got 1"),
        ({"delta": -1e-5}, "delta must be finite"),
        ({"steps": 0}, "steps must be greater than 0, got 0"),
        ({"model": "mlpp"}, "model must be one of logistic, mlp, cnn, transformer, got 'mlpp'"),
        ({"model": "mlp-BatchNorm"}, "batch normalisation mixes the examples"),
        ({"allreduce": "rng"}, "allreduce must be one of .*; did you mean ring"),
        ({"engine": "vmapp"}, "engine must be one of auto, .*, got 'vmapp'; did you mean vmap"),
        ({"optimizer": "adamw"}, "did you mean adam"),
        (
            {"model": "cnn", "engine": "fused"},
            "engine fused is for logistic and mlp, got",
        ),
        ({"model": "cnn", "hidden": (8, 4)}, "hidden is for model mlp, got 8,4 with model cnn"),
        ({"model": "logistic", "activation": "relu"}, "activation is for model mlp, got relu"),
        (
            {"no_privacy": True, "wire": "int32"},
            "wire must be auto, int64 or float32",
        ),
        ({"epsilon": 3.0, "noise_multiplier": 0.0, "insecure_seed": 1}, "exclude each other"),
        (
            {"noise_multiplier": 0.0},
            "noise_multiplier must be greater than 0, got 0; 0 only with --insecure-seed",
        ),
        ({"warmup": 0.5}, "warmup must be an integer, got 0.5"),
        ({"microbatch": True}, "microbatch must be auto or an integer, got True"),
        ({"hidden": (64.5,)}, "hidden must be an integer, got 64.5"),
        ({"hidden": (0,)}, "hidden must be widths from 1 to 65536"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "--epsilon and --noise-multiplier exclude"),
        ({"epsilon": 1.0, "no_privacy": True}, "--epsilon and --no-privacy exclude"),
        ({"batch_size": 5, "sample_rate": 0.1}, "--sample-rate and --batch-size exclude"),
        ({"steps": 5, "epochs": 0.1}, "--steps and --epochs exclude"),
    ],
)
def test_values_out_of_range_name_the_thing_the_value_and_what_is_right(
    values: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Config(**values)  # type: ignore[arg-type]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size must be at most the 50 training records"):
        Config(batch_size=51).resolved_sample_rate(50)
    assert Config(batch_size=50).resolved_sample_rate(50) == 1.0


def test_epochs_are_turned_into_steps() -> None:
    assert Config(epochs=10.0, sample_rate=0.02).resolved_steps(1000) == 500
    assert Config().resolved_steps(1000) == 600


def test_unknown_names_get_the_nearest_valid_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown argument --epsiln; did you mean --epsilon"):
        parse(["--epsiln", "3"])
    with pytest.raises(ConfigError, match="DPSGD_EPSLON; did you mean DPSGD_EPSILON"):
        load(None, {"DPSGD_EPSLON": "3"}, {})
    file = tmp_path / "options.toml"
    file.write_text("max-grad-nrm = 1")
    with pytest.raises(ConfigError, match=r"'max-grad-nrm' in config file .*; did you mean max-g"):
        load(file, {}, {})
    with pytest.raises(ConfigError, match="unknown argument --epsil"):
        parse(["--epsil", "3"])  # abbreviations are misspellings


@pytest.mark.parametrize("content", ["steps = ", "[", "\xff"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "options.toml"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"options\.toml"):
        load(file, {}, {})


@pytest.mark.parametrize(("name", "text"), [("steps", "ten"), ("epsilon", "x"), ("hidden", "a,b")])
def test_a_value_of_the_wrong_kind_is_named(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be"):
        parse([f"--{name}", text])


@pytest.mark.mpi
def test_print_config_tells_every_value_and_where_it_came_from(
    mpirun: Launch, tmp_path: Path
) -> None:
    (tmp_path / "o.toml").write_text("max-grad-norm = 0.5\nepsilon = 1\nhidden = [32, 16]\n")
    flags = (
        "--config",
        "o.toml",
        "--allreduce",
        "tree",
        "--noise-multiplier",
        "3",
        "--print-config",
    )
    done = mpirun(3, "-m", "dpsgd.run", *flags, DPSGD_STEPS="20")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("  # ") for line in done.stdout.splitlines()]
    shown = {value.strip(): origin for value, origin in lines}
    assert len(shown) == len(NAMES), "each option once, from one rank"
    assert shown["max-grad-norm = 0.5"] == "file o.toml"
    assert shown["hidden = [32, 16]"] == "file o.toml"
    assert shown["steps = 20"] == "environment DPSGD_STEPS"
    assert shown['allreduce = "tree"'] == "flag --allreduce"
    assert shown["noise-multiplier = 3.0"] == "flag --noise-multiplier"
    assert shown["# epsilon"] == "not given", "a stronger place names the noise instead"
    assert shown["# learning-rate = 0.03"] == "default"
    assert list(tmp_path.iterdir()) == [tmp_path / "o.toml"]


def test_what_print_config_shows_is_a_configuration_file(tmp_path: Path) -> None:
    from dpsgd.options import as_toml, rows

    values = {"epsilon": 2.0, "hidden": (16, 8), "batch_size": 100, "data": Path('a "b"/ü\x7f'),
              "delta": 1e-6, "no_privacy": False, "out": Path("x"), "insecure_seed": 7}  # fmt: skip
    given = gather(None, {}, values)
    config = Config(**values)  # type: ignore[arg-type]
    file = tmp_path / "options.toml"
    file.write_text(as_toml(rows(config, given)), encoding="utf-8")
    assert load(file, {}, {}) == config
    everything = rows(Config(), {})
    assert {row["origin"] for row in everything} == {"default", "not given"}
    file.write_text(as_toml(everything))
    assert load(file, {}, {}) == Config()


def test_print_config_as_json_and_with_a_mistake(python: Launch) -> None:
    done = python("-m", "dpsgd.run", "--print-config", "--json", "--steps", "5")
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["steps"] == {"name": "steps", "value": 5, "origin": "flag --steps"}
    assert rows["epsilon"] == {"name": "epsilon", "value": 3.0, "origin": "default"}
    wrong = python("-m", "dpsgd.run", "--print-config", "--steps", "-5")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "steps must be greater than 0, got -5" in wrong.stderr


@pytest.mark.parametrize("number", ["-1e-5", "-3", "-.5"])
def test_a_negative_number_is_a_value_and_no_flag(number: str) -> None:
    with pytest.raises(ConfigError, match=f"delta must be .*, got {float(number):g}"):
        parse(["--delta", number])


@pytest.mark.parametrize(
    ("given", "meant"),
    [("--eps", "--epsilon"), ("--seed", "--insecure-seed"), ("--allredcue", "--allreduce")],
)
def test_a_part_of_a_word_is_recognised(given: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown argument {given}; did you mean {meant}?"):
        parse([given, "1"])


def test_a_value_of_the_wrong_kind_names_the_file_that_holds_it(tmp_path: Path) -> None:
    file = tmp_path / "options.json"
    file.write_text('{"steps": "ten"}')
    with pytest.raises(ConfigError, match=r"steps must be an integer, got 'ten' \(file .*s.json\)"):
        load(file, {}, {})


def test_every_option_has_a_flag() -> None:
    from dpsgd.arguments import parser

    flags = parser().format_help()
    for name in NAMES:
        assert f"--{name.replace('_', '-')}" in flags


@pytest.mark.parametrize("module", ["dpsgd.run", "preprocess"])
def test_help_loads_nothing_heavy(python: Launch, module: str) -> None:
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--help']\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as done:\n"
        "    assert not done.code\n"
        "heavy = {'numpy', 'torch', 'mpi4py', 'polars', 'rich', 'dp_accounting', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = python("-c", script)
    assert done.stdout.startswith("usage: ")
    assert done.stderr == "[]\n"


def test_a_usage_error_loads_nothing_heavy(python: Launch) -> None:
    done = python("-X", "importtime", "-m", "dpsgd.run", "--epsiln", "3")
    assert done.returncode == 2
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "dpsgd.config" in loaded
    assert not loaded & {"numpy", "mpi4py", "torch", "polars", "rich"}
