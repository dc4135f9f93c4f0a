"""What a run's records say of its features: γ and β of every channel, how often its ReLU is active,
and the accuracy with small γ set to zero."""

from __future__ import annotations

import math

import pandas as pd

SMALL = 0.01  # of γ
DEAD = 0.01  # active on a smaller share of the test activations


def share_of_small_gammas(run, when: str = "gamma") -> float:
    """Percent of all channels, at the end or, by `gamma_init`, at the start; NaN where γ was not
    kept."""
    channels = run.record.table("channels")
    return math.nan if channels is None else 100 * (channels[when].abs() < SMALL).mean()


def share_of_dead(run) -> float:
    """Percent of the channels that a ReLU follows; NaN where activity was not kept."""
    return 100 * (with_activity(run).active < DEAD).mean()


def small_before_relu(run) -> float:
    """Percent of the channels that a ReLU follows with a small γ."""
    return 100 * (with_activity(run).gamma.abs() < SMALL).mean()


def small_among_dead(run) -> float:
    """Percent of the channels that a ReLU follows, and that are dead, with a small γ; NaN where
    there is none."""
    channels = with_activity(run)
    return 100 * (channels.gamma[channels.active < DEAD].abs() < SMALL).mean()


def small_among_living(run) -> float:
    """Percent of the channels that a ReLU follows, and that are not dead, with a small γ."""
    channels = with_activity(run)
    return 100 * (channels.gamma[channels.active >= DEAD].abs() < SMALL).mean()


def dead_among_small(run) -> float:
    """Percent of the channels that a ReLU follows, and that have a small γ, that are dead; NaN
    where there is none."""
    channels = with_activity(run)
    return 100 * (channels.active[channels.gamma.abs() < SMALL] < DEAD).mean()


def with_activity(run) -> pd.DataFrame:
    """The channels that a ReLU follows; none where activity was not kept."""
    channels = run.record.table("channels")
    if channels is None:
        return pd.DataFrame(columns=["gamma", "active"], dtype=float)
    return channels.dropna(subset="active")


def distance(run, which: str) -> float:
    """Mean distance of γ or β (`which`: gamma, beta) from its start; NaN where it was not kept."""
    channels = run.record.table("channels")
    if channels is None:
        return math.nan
    return (channels[which] - channels[f"{which}_init"]).abs().mean()


def shrinking_of_dead(run) -> float:
    """The median of |γ| as a share of its start, of the dead features; NaN where there are none."""
    channels = with_activity(run)
    return shrinking(channels[channels.active < DEAD])


def shrinking_of_living(run) -> float:
    """The same of the living."""
    channels = with_activity(run)
    return shrinking(channels[channels.active >= DEAD])


def shrinking(channels: pd.DataFrame) -> float:
    if channels.empty:
        return math.nan
    return (channels.gamma.abs() / channels.gamma_init.abs()).median()


def change_by_pruning(run) -> float:
    """Points of test accuracy gained when small γ are set to zero; NaN where it was not
    measured."""
    pruned = run.record.table("pruning")
    if pruned is None:
        return math.nan
    return pruned.test_acc[pruned.threshold == SMALL].iloc[0] - pruned.test_acc.iloc[0]
