"""How names and numbers of metrics are written for people."""

from __future__ import annotations

GOOD = {"higher": "↑", "lower": "↓", "toward_reference": "→ oracle"}


def words(name: str) -> str:
    """Writes a metric's name for people."""
    return (
        name.replace("min_kpp", "min-k++")
        .replace("min_k", "min-k")
        .replace("_", " ")
        .replace("auc", "AUC")
        .replace("lira", "LiRA")
    )


def short(value: float | None) -> str:
    """Writes a number with three significant digits, for people."""
    if value is None:
        return "–"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"
