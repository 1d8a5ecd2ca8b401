"""Stands in for a run: no model, made-up scores, and three ways to fail, asked for by the recipe's `weight_decay`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

FAULTY, KILLED, SILENT = 0.111, 0.222, 0.333


def main(file: Path) -> int:
    job = json.loads(file.read_text())
    training = job["recipe"]["training"]
    with (file.parents[2] / "order.txt").open("a") as order:
        order.write(f"{job['name']} {job['label']}\n")
    if training["weight_decay"] == FAULTY:
        print("picture 'a.png' cannot be read", file=sys.stderr)
        return 1
    if training["weight_decay"] == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if training["weight_decay"] == SILENT:
        return 3
    accuracy = 1 / (1 + abs(training["base_learning_rate"] - 0.4)) - 0.01 * training["seed"]
    strength = job["recipe"]["graph"]["injector"]["output_scale"]
    accuracy += 0.001 * (7 - abs(strength - 8))  # nothing at the recipe's own 1, most at 8
    share = {"accuracy": accuracy, "questions": 8, "low": 0.0, "high": 1.0}
    result = {
        "recipe": job["name"],
        "label": job["label"],
        "seed": training["seed"],
        "base_learning_rate": training["base_learning_rate"],
        "scores": {"all": share, "by_kind": {"colour": share}},
        "trained_parameters": 1234,
        "steps": training["max_steps"] or 12,
        "batch": 4,
        "training_questions": 24,
        "flops": {"forward": 10, "encoder": 5, "train_step": 100},
        "seconds_per_step": 0.5,
        "answer_seconds_per_question": 0.01,
        "memory": {"rest": 1000, "peak": 3000, "how": "resident memory"},
        "machine": "pretended",
        "date": "2000-01-01",
        "versions": {"dehvf-kit": "0"},
    }
    (file.parent / "result.json").write_text(json.dumps(result))
    os.replace(file.parent, file.parent.with_name(file.parent.name.removesuffix(".working")))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
