"""Audits: metrics, attacks and benchmark suites that say whether knowledge is gone, and the report of one.

    report = evaluate(unlearned, split, tokenizer=tok, before=original, attacks=[Relearn(), Quantise()])
    report.save("audit")          # report.json and a self-contained report.html

`base` says what a metric, an attack and a suite are, `context` what an audit asks of a model, `kinds` which kinds of
data there are. What is measured on language models is in `text`, on image models in `images`; then there are
`attacks`, `suites` and the `report`. Names are imported when first used, so `import unwrite.audit` stays light.
"""

from ..catalog.packages import lazily

__getattr__, __dir__ = lazily(__name__)
