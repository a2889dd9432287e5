"""Lists of metrics under one name, as benchmarks publish them."""
