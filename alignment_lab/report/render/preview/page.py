"""preview.html: a preview as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..template import write_page
from .bins import describe, share_over, to_bins
from .parts import Histogram, Kind, Preview

MOST_BARS = 30
WIDTH, HEIGHT, BASE = 300, 110, 96  # of a drawing, and the height of its axis, in its own units


def write_preview_page(preview: Preview, path: Path) -> Path:
    """Write the page to `path`."""
    context = {
        "name": f"{preview.title}, preview",
        "preview": preview,
        "histograms": [_drawing(histogram) for histogram in preview.histograms if histogram.lengths],
        "trained": Kind.trained,
    }
    return write_page(path, "preview.html.jinja", context)


def _drawing(histogram: Histogram) -> dict[str, Any]:
    """Bars, ticks and the mark of data.max_length, in the units of the drawing."""
    lengths, limit = histogram.lengths, histogram.limit
    bins = to_bins(lengths, MOST_BARS)
    end = max(bins.end, limit or 0) if limit and limit <= 2 * bins.end else bins.end
    step, most = WIDTH / end, max(bins.counts)
    bars = [
        {
            "x": round(place * bins.width * step + 0.5, 1),
            "width": round(max(1.0, bins.width * step - 1), 1),
            "height": round(max(1.0, (BASE - 10) * count / most), 1),
            "over": limit is not None and place * bins.width >= limit,
            "label": f"{place * bins.width:,} to {(place + 1) * bins.width - 1:,} tokens: {count:,}",
        }
        for place, count in enumerate(bins.counts)
        if count
    ]
    return {
        "title": histogram.title,
        "bars": bars,
        "base": BASE,
        "size": (WIDTH, HEIGHT),
        "ticks": [(round(tick * step, 1), f"{tick:,}") for tick in _ticks(end)],
        "limit": round(limit * step, 1) if limit and limit <= end else None,
        "facts": describe(lengths),
        "over": share_over(lengths, limit) if limit else "",
        "note": histogram.note,
    }


def _ticks(end: int) -> Sequence[int]:
    """0, half and the end of the axis."""
    return sorted({0, end // 2, end})
