"""How much accuracy does privacy cost here? python -m dpsgd.accuracy --input RAW.csv

One split can be lucky by more than a point, so everything is a mean over several salted splits:
the default private run, started as a user would start it, beside models without privacy on the same
splits (logistic regression on the same features, gradient boosting on the same codes). Prints a
Markdown table. The numbers are exact and not covered by any epsilon; use it on public files.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

DEFAULT_INPUT = Path("../shared/data/census/fulton_ga_2000.csv")
METRICS = ("accuracy", "auc")


def main() -> int:
    """Run the comparison."""
    options = _parser().parse_args()
    if not options.input.is_file():
        print(f"accuracy: error: input {options.input} is not a file", file=sys.stderr)
        return 5
    people = sys.stderr if options.json == "-" else sys.stdout
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.salts):
            salt = f"accuracy-{number}"
            for row in _one_split(options, Path(folder), salt):
                rows.append({"salt": salt, **row})
                print(
                    f"{salt}: {row['model']:<24} accuracy {row['accuracy']:.4f}  "
                    f"auc {row['auc']:.4f}",
                    file=sys.stderr,
                    flush=True,
                )
    print(_markdown(rows), file=people)
    if options.json:
        text = json.dumps({"rows": rows}, allow_nan=False, indent=2)
        print(text) if options.json == "-" else Path(options.json).write_text(text + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m dpsgd.accuracy", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    made.add_argument("--input", type=Path, default=DEFAULT_INPUT, help="a raw census file")
    made.add_argument("--salts", type=int, default=5, help="number of salted splits (default 5)")
    made.add_argument("--epsilon", type=float, nargs="+", default=[3.0])
    made.add_argument("--np", type=int, default=4, dest="world_size", help="ranks (default 4)")
    made.add_argument("--json", nargs="?", const="-", metavar="FILE", help="rows as JSON")
    return made


def _one_split(options: argparse.Namespace, folder: Path, salt: str) -> list[dict[str, Any]]:
    dataset = folder / salt
    _run([sys.executable, "-m", "preprocess", "--input", str(options.input),
          "--output", str(dataset), "--split-salt", salt])  # fmt: skip
    rows = [_private(dataset, epsilon, options.world_size) for epsilon in options.epsilon]
    return rows + _without_privacy(dataset)


def _private(dataset: Path, epsilon: float, world_size: int) -> dict[str, Any]:
    mpirun = Path(sys.executable).parent / "mpirun"
    launcher = str(mpirun) if mpirun.exists() else shutil.which("mpirun")
    out = dataset.with_name(f"{dataset.name}-run-{epsilon:g}")
    _run([launcher or "mpirun", "-np", str(world_size), sys.executable, "-m", "dpsgd.run",
          "--data", str(dataset), "--out", str(out), "--epsilon", str(epsilon)])  # fmt: skip
    run = json.loads((out / "run.json").read_text())
    found = {name: run["metrics"][name] for name in METRICS}
    return {"model": f"private, epsilon {epsilon:g}", "epsilon": run["privacy"]["epsilon"]} | found


def _without_privacy(dataset: Path) -> list[dict[str, Any]]:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    from dpsgd.data import encode
    from preprocess import shards

    manifest = shards.read_manifest(dataset)
    schema = shards.read_schema(dataset, manifest)
    codes, labels, features = {}, {}, {}
    for split in ("train", "test"):
        columns = shards.read_rows(dataset, manifest, split, 0, shards.num_rows(manifest, split))
        features[split] = encode(columns, schema["encoding"])
        labels[split] = columns.pop(schema["label"])
        codes[split] = np.column_stack(list(columns.values()))
    rows = []
    for name, model, inputs in (
        ("logistic regression", LogisticRegression(max_iter=5000), features),
        ("gradient boosting", HistGradientBoostingClassifier(random_state=0), codes),
    ):
        model.fit(inputs["train"], labels["train"])
        score = model.predict_proba(inputs["test"])[:, 1]
        rows.append(
            {
                "model": name,
                "epsilon": None,
                "accuracy": float(np.mean((score > 0.5) == labels["test"])),
                "auc": float(roc_auc_score(labels["test"], score)),
            }
        )
    return rows


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stdout + done.stderr, file=sys.stderr)
        raise SystemExit(done.returncode)


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| model | accuracy | AUC | splits |", "| --- | --- | --- | --- |"]
    for model in dict.fromkeys(row["model"] for row in rows):
        values = {name: [row[name] for row in rows if row["model"] == model] for name in METRICS}
        cells = [
            f"{statistics.mean(values[name]):.3f} ± {_standard_error(values[name]):.3f}"
            for name in METRICS
        ]
        lines.append(f"| {model} | {' | '.join(cells)} | {len(values['auc'])} |")
    return "\n".join([*lines, "", "Means over splits ± the standard error of the mean."])


def _standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


if __name__ == "__main__":
    sys.exit(main())
