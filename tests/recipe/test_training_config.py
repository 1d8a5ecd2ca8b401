"""What a recipe's `training` section computes: steps, warm-up and learning rate."""

from __future__ import annotations

import pytest

from dehvf_kit.recipe.sections import TrainingConfig


@pytest.mark.parametrize(
    ("settings", "samples", "processes", "steps"),
    [
        ({"epochs": 20, "batch_size": 4}, 12_726, 1, 20 * 3182),
        ({"epochs": 20, "batch_size": 4}, 12_726, 8, 20 * 398),
        ({"epochs": 20, "batch_size": 2, "gradient_accumulation": 2}, 12_726, 8, 20 * 398),
        ({"epochs": 0.25, "batch_size": 16}, 160, 1, 3),  # 2.5 steps
        ({"epochs": 1.3, "batch_size": 16}, 104, 1, 10),  # 7 steps an epoch, 9.1 in all
        ({"epochs": 0.01, "batch_size": 16}, 16, 1, 1),
        ({"epochs": 1, "batch_size": 4, "max_steps": 3}, 100, 1, 3),
    ],
)
def test_incomplete_steps_count_whole(settings: dict, samples: int, processes: int, steps: int) -> None:
    config = TrainingConfig(warmup_epochs=0, **settings)
    assert config.num_steps(samples, processes) == steps


def test_warm_up_is_counted_in_epochs_and_ends_with_the_run() -> None:
    assert TrainingConfig(epochs=20, warmup_epochs=2, batch_size=4).num_warmup_steps(12_726, 8) == 2 * 398
    assert TrainingConfig(epochs=1, warmup_epochs=0.5, batch_size=4, max_steps=3).num_warmup_steps(100) == 1


@pytest.mark.parametrize(
    ("settings", "processes", "expected"),
    [
        ({"base_learning_rate": 0.02, "batch_size": 4}, 8, 0.02 * 32 / 256),
        ({"base_learning_rate": 0.02, "batch_size": 4, "gradient_accumulation": 4}, 2, 0.02 * 32 / 256),
        ({"base_learning_rate": 0.009, "batch_size": 256}, 1, 0.009),
    ],
)
def test_learning_rate_follows_the_effective_batch(settings: dict, processes: int, expected: float) -> None:
    assert TrainingConfig(**settings).learning_rate(processes) == pytest.approx(expected, rel=1e-12)
