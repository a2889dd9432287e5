"""Convolutional nets made smaller without their data: what runs into what, pruning, quantisation, repair, storage."""
