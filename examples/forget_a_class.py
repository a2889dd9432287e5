"""Take a class out of an image classifier, beside a retrained model and a control: python examples/forget_a_class.py [epochs]"""

import sys

import unwrite
from unwrite.data.images.sets import digits
from unwrite.data.images.splits import split_by_class
from unwrite.models.image_training import fitted, image_recipe
from unwrite.nets.small_vision import SmallCNN

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
data = digits()
split = split_by_class(data.train, 3, test=data.test)
train = split.train
recipe = image_recipe(SmallCNN, epochs=epochs, num_classes=10, channels=1, image_size=8)
before = fitted(recipe, train, range(len(train)), seed=0)  # trained once, found again
oracle = fitted(recipe, train, train.positions(split.retain.index), seed=0)  # never saw a three
after = unwrite.SSD(alpha=8, importance_batch=16).apply(before, split.forget, split.retain, copy=True)
control = unwrite.HeadOnly().apply(before, split.forget, split.retain, copy=True)
report = unwrite.evaluate(after, split, before=before, oracle=oracle, references={"control": control})
for name in ("forget_accuracy", "TA", "forget_cka"):
    print(f"{name}: {report.value(name):.3f}")
