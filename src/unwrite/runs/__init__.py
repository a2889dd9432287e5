"""The run folder: atomic writes, content hashes, provenance, resume, and the score cache on disk."""

from .atomic import cache_dir, lock, new_folder, write_json, write_text
from .folder import Run, versions
from .hashing import canonical_json, hash_file, hash_json, hash_model, hash_tensors

__all__ = [
    "Run",
    "cache_dir",
    "canonical_json",
    "hash_file",
    "hash_json",
    "hash_model",
    "hash_tensors",
    "lock",
    "new_folder",
    "versions",
    "write_json",
    "write_text",
]
