"""Forget, retain and holdout rows: reading, checking, encoding, and the sets that ship."""

from .examples import Example, Examples, ForgetSplit

__all__ = ["Example", "Examples", "ForgetSplit"]
