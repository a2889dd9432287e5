"""Training that deletion was planned into: shards, slices, increments that are switched off, and a ledger of what each saw."""
