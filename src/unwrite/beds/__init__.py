"""What experiments and benchmarks share: data, splits, how models are trained, prompts, drafts, budgets."""
