"""Finished runs: those that come with the repository, else those of this machine.

A notebook asks for a run here. RERUN=1 in the environment leaves the recorded ones aside and
trains anew, into runs/ and resumable; EPOCHS shortens what is trained, to try things out.
"""

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.cifar10 import train
from training.cifar10.recipes import Recipe

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "training" / "records"


@dataclass(frozen=True)
class Record:
    """A finished run: its result.json, and its history.csv with a row an epoch."""

    result: dict[str, Any]
    history: list[dict[str, float]]

    def column(self, key: str) -> list[float]:
        return [row[key] for row in self.history]


def load(name: str, recipe: Recipe, *, seed: int = 0, final: bool = False) -> Record:
    """The recorded run of a recipe, or else the one trained now; says which it is.

    Raises DataError and RunError.
    """
    run = train.directory(name, seed, final)
    result, history = (RECORDS / f"{run.name}.{ending}" for ending in ("json", "csv"))
    if os.environ.get("RERUN") == "1" or not result.exists():
        epochs = float(os.environ["EPOCHS"]) if "EPOCHS" in os.environ else None
        train.run_recipe(name, recipe, seed=seed, final=final, epochs=epochs)
        result, history = run / train.RESULT, run / train.HISTORY
    record = Record(json.loads(result.read_text(encoding="utf-8")), read_history(history))
    epochs, date = record.result["epochs"], record.result["date"]
    print(f"{run.name}: {epochs:g} epochs of {date}, from {result.parent.name}")
    return record


def read_history(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
