"""Probes: ways to find forgotten knowledge in a language model, each scored row by row on rows it was not fitted on."""
