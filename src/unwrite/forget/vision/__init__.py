"""Methods that take images out of classifiers and regressors; their classes are found by the catalogue."""
