"""How the contracts apply a method to texts: two steps on a model of three blocks and sixteen rows."""

import peft  # noqa: F401 - before the tests, whose collections pass over what is imported by then

from unwrite import catalog

ON_TEXTS = {slug: record for slug, record in catalog.methods().items() if "text" in record.forgets}
# Batches of fewer rows than there are, and names that stand in them; everything else is as it comes.
FIELDS = {slug: {"importance_batch": 4} for slug in ("ssd", "lfssd", "random-dampening")}
# Answers have few words, and four tenths of the benign rows say what forget rows do.
FIELDS["content-filter"] = {"n": 6, "window": 6, "alpha": 0.5}
FIELDS["alu"] = {"subjects": ("ann", "eli")}  # these rows name no entity
FIELDS["codeeraser"] = {"on": "all"}  # these rows hold no secrets
FIELDS["concept-masking"] = {"points": 4, "answer_tokens": 8}
FIELDS["eco"] = {"threshold": 0.0}  # these rows are too alike to tell apart, so every prompt is flagged
FIELDS["key-space"] = {"positions": "all", "alpha": 1.0}  # too few rows for a vector each, or to choose a factor on
FIELDS["o3"] = {"fewest": 4, "layers": 2}
FIELDS["rocr"] = {"target": "ann", "substitute": "hana", "nullspace_share": 0.5}
# SGD moves weights by the gradient itself, so a weight that gets none stays.
ARGUMENTS = {
    "optim": "sgd",
    "learning_rate": 1e-2,
    "weight_decay": 0.0,
    "warmup_epochs": 0.0,
    "lr_scheduler_type": "constant",
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
}


def of_kind(kind):
    """The slugs of a kind's methods that forget texts."""
    return [slug for slug, record in ON_TEXTS.items() if record.kind == kind]


def made(slug):
    """The method with settings that fit so few rows."""
    return catalog.method(slug).load()(**FIELDS.get(slug, {}))


def apply(slug, model, forget, retain, tokenizer, args=None, **options):
    """The method on texts."""
    args = {**ARGUMENTS, **(args or {})}
    return made(slug).apply(model, forget, retain, processing_class=tokenizer, args=args, **options)
