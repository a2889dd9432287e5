"""How methods run: works, trainers, streams, batches, losses; what no method file repeats."""
