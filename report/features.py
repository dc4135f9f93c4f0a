"""What a run's records say of its features: γ and β of every channel, how often its ReLU is active,
and the accuracy with small γ set to zero."""

from __future__ import annotations

import math

SMALL = 0.01  # of γ
DEAD = 0.01  # active on a smaller share of the test activations


def share_of_small_gammas(run, when: str = "gamma") -> float:
    """Percent of all channels, at the end or, by `gamma_init`, at the start; NaN where γ was not
    kept."""
    channels = run.record.table("channels")
    return math.nan if channels is None else 100 * (channels[when].abs() < SMALL).mean()


def share_of_dead(run) -> float:
    """Percent of the channels that a ReLU follows; NaN where activity was not kept."""
    channels = run.record.table("channels")
    return math.nan if channels is None else 100 * (channels.active.dropna() < DEAD).mean()


def distance(run, which: str) -> float:
    """Mean distance of γ or β (`which`: gamma, beta) from its start; NaN where it was not kept."""
    channels = run.record.table("channels")
    if channels is None:
        return math.nan
    return (channels[which] - channels[f"{which}_init"]).abs().mean()


def change_by_pruning(run) -> float:
    """Points of test accuracy gained when small γ are set to zero; NaN where it was not
    measured."""
    pruned = run.record.table("pruning")
    if pruned is None:
        return math.nan
    return pruned.test_acc[pruned.threshold == SMALL].iloc[0] - pruned.test_acc.iloc[0]
