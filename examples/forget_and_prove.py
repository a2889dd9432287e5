"""Make a language model forget rows, and audit it: python examples/forget_and_prove.py [model] [forget.jsonl] [retain.jsonl]"""

import sys

import unwrite
from unwrite.audit import Quantise, Relearn

model_name, *files = sys.argv[1:] or ["smollm2-135m"]
split = unwrite.split_from(*files) if files else unwrite.landmarks()

loaded = unwrite.load(model_name)
method = unwrite.NPO(retain_loss="nll")
unlearned = method.apply(
    loaded.model,
    split.forget,
    split.retain,
    processing_class=loaded.tokenizer,
    args={"learning_rate": 2e-5, "num_train_epochs": 3},
    copy=True,
)
report = unwrite.evaluate(
    unlearned,
    split,
    tokenizer=loaded.tokenizer,
    before=loaded.model,
    attacks=[Relearn(rows=len(split.forget) // 2, steps=6, every=2), Quantise()],
)
report.save("audit")
print(f"probability of the forgotten answers: {report.value('forget_probability'):.3f}")
print("audit/report.html has the rest")
