"""Python's garbage collector during the tests: off until all are found, and then only for what a file's tests make.

What is imported and found stays, a million objects. Collections would look at them again and again: a fifth of the time it takes
to find the tests, and half a second at the end of every training, which collects.
"""

import gc

gc.disable()  # before anything large is imported; conftest, which imports this first, has it on again for the tests


def keep():
    """No collection looks at what is alive now."""
    gc.collect()
    gc.freeze()
