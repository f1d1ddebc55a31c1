"""Draw `docs/assets/null_space.svg`: inputs of a matrix, a row of a step, and what the null space leaves of it.

python tools/draw_null_space.py
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PATH = Path(__file__).parent.parent / "docs" / "assets" / "null_space.svg"
INK, MUTED, INPUTS, STEP, LEFT = "#222222", "#777777", "#2a6fdb", "#c2410c", "#15803d"
EPS, ANGLE, NUM_INPUTS = 0.1, 28.0, 140


def draw_plane(axes: Axes) -> None:
    """Inputs in two dimensions, and one row of a step before and after."""
    turn = np.deg2rad(ANGLE)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    inputs = (np.random.default_rng(1).normal(size=(NUM_INPUTS, 2)) * [1.0, 0.14]) @ rotation.T
    moment = inputs.T @ inputs / len(inputs)
    step = np.array([1.15, 1.2])
    left = step @ np.linalg.inv(np.eye(2) + moment / (EPS * np.trace(moment) / 2))
    axes.set(aspect="equal", xlim=(-3, 3), ylim=(-1.9, 1.8))
    axes.axis("off")
    axes.plot(*inputs.T, "o", ms=3.4, color=INPUTS, alpha=0.55, mew=0)
    for end, colour in ((step, STEP), (left, LEFT)):
        axes.annotate("", end, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2.4, "shrinkB": 0})
    axes.plot([step[0], left[0]], [step[1], left[1]], ls=":", color=MUTED, lw=1.2)
    axes.text(step[0] + 0.08, step[1] + 0.05, "step D", color=STEP, fontsize=11)
    axes.text(left[0] - 0.1, left[1] + 0.12, "D P", color=LEFT, fontsize=11, ha="right", fontweight="bold")
    axes.text(0.1, -1.35, "inputs of the matrix on text\nthat the model wrote itself", color=INPUTS, fontsize=10)
    axes.set_title("A row of a step, and what the null space leaves of it", fontsize=11, color=INK, loc="left")


def draw_shares(axes: Axes) -> None:
    """The share of a step that stays along a direction, by how strongly inputs use it."""
    use = np.logspace(-3, 2, 400)
    axes.semilogx(use, 1 / (1 + use / EPS), color=LEFT, lw=2.4)
    axes.axvline(EPS, color=MUTED, lw=1, ls=":")
    axes.text(EPS * 1.3, 0.52, f"eps = {EPS}: half stays", fontsize=10, color=MUTED)
    axes.set_xlabel("how strongly inputs use a direction, in mean eigenvalues", fontsize=10, color=INK)
    axes.set_ylabel("share of a step that stays", fontsize=10, color=INK)
    axes.set_ylim(0, 1.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED, labelsize=9)
    axes.set_title("Directions that inputs seldom use stay free", fontsize=11, color=INK, loc="left")


def main() -> None:
    """Write the picture, the same bytes every time."""
    matplotlib.rcParams["svg.hashsalt"] = "dowser_pl"
    figure = Figure(figsize=(9.6, 3.6), facecolor="white")
    draw_plane(figure.add_axes((0.02, 0.06, 0.44, 0.8)))
    draw_shares(figure.add_axes((0.56, 0.18, 0.41, 0.68)))
    figure.savefig(PATH, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
