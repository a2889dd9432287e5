"""Every paper's claim, measured again: one file a paper, `run(budget) -> Claim`."""
