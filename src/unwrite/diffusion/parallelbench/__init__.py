"""ParallelBench: tasks that are easy one token at a time and break when several are written at once (arXiv 2510.04767).

    load("waiting_line/shuffle")                          samples, drawn from seeds; nothing is downloaded
    score(sample, text, strict=True)                      0.0 or 1.0
    total_correlation, lower_bound, optimal_bound         what a step of several tokens loses, in bits
    IdealListModel                                        exact conditionals: what a sampler alone gets wrong
    sweep(model, samplers, tasks, tokens).curve()         score against tokens a step

Left out are the two tasks whose texts would have to be downloaded (SAMSum, ChatGPT-paraphrases); the words of words_to_sentence
come from lists of topics instead of a language model.
"""

from ...catalog.packages import lazily

__getattr__, __dir__ = lazily(__name__)
