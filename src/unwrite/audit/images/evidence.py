"""How sure one may be of an image model's figures: clauses on the distance to the retrained model, attacks and features."""

from __future__ import annotations

import math

from ..base import Headline
from ..report.movement import forgotten, same_model
from ..report.parts import Mark, Remark
from ..report.report import Report

__all__ = ["feature_evidence", "gap_evidence", "shadow_evidence"]

SAME = 0.9999  # CKA of features that only rounding tells apart: the head alone was changed
HARDLY = 0.99


def gap_evidence(report: Report) -> Remark | None:
    """How far the model is from the retrained one over accuracies and an attack, and whether the rows bear that figure."""
    gap, before = report.value("avg_gap"), report.value("avg_gap", "before")
    if gap is None:
        return None
    clause = f"on average {gap:.2g} points from the retrained model over UA, RA, TA and a membership attack"
    mark: Mark = "good" if gap <= 2 else "mixed" if gap <= 8 else "bad"
    if before is not None:
        clause += f" ({before:.2g} before)"
        if mark == "good" and gap >= before / 2:
            clause, mark = f"{clause}, though the model before was hardly farther away", "mixed"
    rows = report.rows.get("forget", 0)
    within = 196 * math.sqrt(0.25 / rows) if rows else 0.0
    if mark == "good" and within > 20:
        clause, mark = f"{clause}, though {rows} forget rows tell such figures to {within:.0f} points only", "mixed"
    return Remark(clause, mark)


def shadow_evidence(report: Report) -> Remark | None:
    """How far LiRA's AUC is from that on the retrained model, or from chance without one."""
    auc, chance = report.value("lira_auc"), report.value("lira_auc", "oracle")
    if auc is None:
        return None
    beside = "" if chance is None else f" ({chance:.2f} in the retrained model)"
    clause = f"LiRA with {report.provenance.get('shadow models', 'its')} shadow models"
    apart = abs(auc - (0.5 if chance is None else chance))
    mark: Mark = "good" if apart <= 0.05 else "mixed" if apart <= 0.1 else "bad"
    return Remark(f"{clause} tells forget from unseen rows with AUC {auc:.2f}{beside}", mark)


def feature_evidence(report: Report, gone: Headline) -> Remark | None:
    """What the features say, where the answers changed and there are rows enough to say it."""
    score = report.columns[report.main].get("forget_cka")
    if score is None:
        return None
    if score.value is None:
        collapsed = "collapsed" in score.note
        return Remark("all its features are the same: the model collapsed", "bad") if collapsed else None
    figure, oracle = f"CKA {score.value:.3f}", report.value("forget_cka", "oracle")
    state = forgotten(report, gone)
    few = bool(score.note) and (oracle is None or oracle > HARDLY)  # then CKA is high for any two models
    if state == "nothing" and few and (oracle is not None or same_model(report)):
        return Remark("its answers on forget rows are those of before: nothing was forgotten", "bad")
    if state == "nothing" and not few and score.value > HARDLY:
        clause = f"its answers and features on forget rows are those of before ({figure}): nothing was forgotten"
        return Remark(clause, "bad")
    if few:
        return Remark(f"too few forget rows to tell by their features ({figure})", "mixed")
    if score.value <= HARDLY:
        changed: Mark = "good" if state == "something" else "mixed"
        return Remark(f"features of forget rows have changed ({figure})", changed)
    clause = (
        f"features of forget rows {'are what they were' if score.value > SAME else 'have hardly changed'} ({figure})"
    )
    if state != "something":
        return Remark(f"{clause}, and whether its answers on them changed is not known", "mixed")
    if oracle is not None and oracle > HARDLY:
        return Remark(f"{clause}, and so are the retrained model's ({oracle:.3f}), so they tell nothing", "mixed")
    deep = "only the head forgot" if score.value > SAME else "hardly more than the head forgot"
    return Remark(f"{clause}, so {deep}", "bad")
