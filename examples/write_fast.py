"""The same text in fewer forwards: python examples/write_fast.py [model] [prompt]"""

import sys

import unwrite
from unwrite.decode import TokenRecycling

model_name = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
prompt = sys.argv[2] if len(sys.argv) > 2 else "The harbour museum"

loaded = unwrite.load(model_name)
inputs = loaded.tokenizer(prompt, return_tensors="pt")
out = loaded.model.generate(
    **inputs, custom_generate=TokenRecycling(), max_new_tokens=60, do_sample=False, return_dict_in_generate=True
)
plain = loaded.model.generate(**inputs, max_new_tokens=60, do_sample=False)
print(loaded.tokenizer.decode(out.sequences[0]))
print(out.stats.line())
print("identical to plain decoding:", out.sequences.tolist() == plain.tolist())
