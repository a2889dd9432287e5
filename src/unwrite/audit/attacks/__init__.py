"""What is tried on a model to bring back what it should have lost: training again, rounding its weights."""
