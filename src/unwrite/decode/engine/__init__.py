"""The engine below every drafting strategy: trees, runtimes, acceptance, costs, and the loop."""
