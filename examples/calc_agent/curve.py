"""The learning curve as a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # draws into files, needs no screen

from matplotlib import pyplot as plt

from .train import Result


def draw(result: Result, path: Path) -> None:
    """Write the curve as a picture; the ending of ``path`` chooses the format."""
    trained = [(point.rollouts, point.train) for point in result.curve if point.train is not None]
    what = (
        "control: rewards given to the wrong rollouts"
        if result.settings.control
        else "policy learning to calculate"
    )

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    if trained:
        axes.plot(*zip(*trained, strict=True), color="tab:orange", linewidth=1, label="training tasks")
    axes.plot(*zip(*result.tests, strict=True), marker="o", label="tasks never trained on")
    axes.axhline(result.chance, color="grey", linestyle="--", label=f"untrained policy: {result.chance:.2f}")
    axes.axhline(0.9, color="tab:green", linestyle=":", label="goal: 0.90")
    axes.set(
        xlabel="training rollouts",
        ylabel="mean reward",
        ylim=(-0.02, 1.05),
        title=f"{what} (seed {result.settings.seed})",
    )
    axes.legend(loc="center right")
    axes.text(
        0.99,
        0.1,
        f"largest difference between recorded and recomputed log-probabilities: {result.self_check:.1g}",
        transform=axes.transAxes,
        fontsize="small",
        color="grey",
        horizontalalignment="right",
    )
    try:
        figure.savefig(path, dpi=120)
    finally:
        plt.close(figure)
