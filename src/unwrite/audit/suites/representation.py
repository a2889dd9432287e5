"""The suite that judges an unlearned classifier twice, by its answers and by its features (arXiv 2503.06991).

Where both disagree, the features are what was or wasn't forgotten: a change of the head alone has AGL near 1 and the features,
so the AGR, of the model before. Give downstream sets in the split (`downstream`); what a retrained model of another seed
gets is the ceiling of AGR, never 1.
"""

from __future__ import annotations

from ...data.images.splits import ImageSplit
from ..base import Headline, Suite
from ..images import metrics as of
from ..images import representation as rep
from ..images.metrics import ImageMetric
from ..report.parts import Mark, Remark
from ..report.report import Report
from .vision import RIGHT

__all__ = ["REPRESENTATION"]

AHEAD = 0.1  # of AGL before AGR, from which the answers say more than the features do


def _metrics(split: ImageSplit) -> list[ImageMetric]:
    if split.forget.labels is None:
        return []
    sets = list(split.downstream) or ["test"]
    return [
        rep.AgreementOfLogits(),
        rep.AgreementOfFeatures(),
        rep.LogitsAndFeatures(),
        of.Accuracy("forget"),
        of.Accuracy("test forget"),
        of.Accuracy("retain"),
        of.Accuracy("test retain"),
        rep.FormerHead(),
        *(rep.DownstreamLikeness(on=name) for name in ("forget", "retain", *sets)),
        *(rep.DownstreamLikeness(on=name, to="before") for name in ("forget", *sets)),
        *(rep.DownstreamNeighbours(on=name) for name in sets),
    ]


def agreement_evidence(report: Report) -> Remark | None:
    """Both agreements with the retrained model, beside those of the model before."""
    answers, features = report.value("agl"), report.value("agr")
    if answers is None or features is None:
        return None
    before = report.value("agr", "before")
    clause = f"agrees with the retrained model {answers:.2f} by its answers and {features:.2f} by its features"
    if before is None:
        return Remark(clause, "mixed")
    clause += f" (before: {before:.2f})"
    mark: Mark = "good" if features > before else "mixed"
    if features <= before and answers > features + AHEAD:
        clause, mark = f"{clause}, which are no nearer to it than they were: its answers alone were changed", "bad"
    return Remark(clause, mark)


REPRESENTATION = Suite(
    "representation",
    _metrics,
    "Image classifiers by answers and by features: CKA and k-NN on downstream sets beside the retrained model.",
    of="images",
    gone=RIGHT,
    kept=Headline("RA", "higher", 100.0, noun="labels"),
    axes=("forget_accuracy", "TA"),
    scale=100.0,
    roles=("oracle",),
    evidence=(agreement_evidence,),
)
