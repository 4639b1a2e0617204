"""plots: what a figure must show."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from nbmf_research import plots

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    plots.use_style()
    yield
    mpl.pyplot.close("all")


def luminance(colour: str) -> float:
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_palette_is_eight_different_colours_visible_on_white() -> None:
    assert len(set(plots.PALETTE)) == 8
    assert all((1.05) / (luminance(c) + 0.05) > 1.9 for c in plots.PALETTE)


def test_a_codec_looks_the_same_on_every_page() -> None:
    assert plots.colour("flac", ["zlib", "flac"]) == plots.colour("flac", ["flac"]) == plots.colour("flac")
    looks = [(plots.colour(n), plots.marker(n)) for n in plots.KNOWN]
    assert len(set(looks)) == len(looks)
    assert plots.colour("unheard") == plots.GREY and plots.colour("b", ["a", "b"]) == plots.PALETTE[1]


def test_rd_curves_sorts_by_rate_and_draws_bands() -> None:
    rows = pd.DataFrame(
        {
            "codec": "klt-dct",
            "bits_per_sample": [2.0, 0.5, 1.0],
            "snr_db": [20.0, 8, 14],
            "snr_db_lo": [19.0, 7, 13],
            "snr_db_hi": [21.0, 9, 15],
        }
    )
    ax = plots.rd_curves(rows)
    (line,) = ax.lines
    assert list(line.get_xdata()) == [0.5, 1.0, 2.0] and list(line.get_ydata()) == [8, 14, 20]
    assert len(ax.collections) == 1 and "left is better" in ax.get_xlabel()


def test_the_ratio_axis_reads_sixteen_over_bits() -> None:
    ax = plots.rd_curves(pd.DataFrame({"codec": "a", "bits_per_sample": [0.4, 4.0], "snr_db": [10.0, 30]}))
    top = plots.ratio_axis(ax)
    assert {5, 15, 40} <= set(top.get_xticks())
    assert "16-bit" in top.get_xlabel()


def test_bars_mark_what_is_missing_and_draw_intervals() -> None:
    rows = pd.DataFrame(
        {
            "set": ["a", "a", "b"],
            "codec": ["x", "y", "x"],
            "v": [1.0, 2.0, 3.0],
            "v_lo": [0.9, 1.5, np.nan],
            "v_hi": [1.1, 2.5, np.nan],
        }
    )
    ax = plots.bars(rows, "v")
    assert [t.get_text().strip() for t in ax.texts] == ["n/a"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]
    grey = plots.bars(rows, "v", highlight=["y"])
    assert to_rgb(grey.patches[0].get_facecolor()[:3]) == to_rgb("#C9C9C9")


def test_traces_shows_the_true_error() -> None:
    x = np.linspace(0, 10, 50)
    fig = plots.traces(x, {"a": x + 1}, 1000.0)
    assert np.allclose(fig.axes[1].lines[0].get_ydata(), 1)
    plots.caption(fig, "n = 1")
    plots.caption(fig.axes[0], "n = 2")
