"""The run folder: atomic writes, content hashes, provenance, resume, the score cache on disk, and progress."""

from .atomic import (
    cache_dir,
    fetched_dir,
    lock,
    need_free,
    new_folder,
    remove_folder,
    scratch_folder,
    sync,
    write_json,
    write_text,
)
from .cache import (
    cache_folder,
    cached_files,
    cached_json,
    clean,
    drop,
    entry_lock,
    say_unwritable,
    seal,
    sound,
    spare_folder,
    store_json,
    stored_json,
    unwritable,
)
from .folder import Run, versions
from .hashing import canonical_json, hash_file, hash_json, hash_model, hash_tensors, model_key
from .holding import claimed
from .progress import Progress, hush, progress, silent, training_progress
from .seeding import seeded
from .strict import Malformed, conforms, parse_json, read_json
from .tensors import read_tensors

__all__ = [
    "Malformed",
    "Progress",
    "Run",
    "cache_dir",
    "cache_folder",
    "cached_files",
    "cached_json",
    "canonical_json",
    "claimed",
    "clean",
    "conforms",
    "drop",
    "entry_lock",
    "fetched_dir",
    "hash_file",
    "hash_json",
    "hash_model",
    "hash_tensors",
    "hush",
    "lock",
    "model_key",
    "need_free",
    "new_folder",
    "parse_json",
    "progress",
    "read_json",
    "read_tensors",
    "remove_folder",
    "say_unwritable",
    "scratch_folder",
    "seal",
    "seeded",
    "silent",
    "sound",
    "spare_folder",
    "store_json",
    "stored_json",
    "sync",
    "training_progress",
    "unwritable",
    "versions",
    "write_json",
    "write_text",
]
