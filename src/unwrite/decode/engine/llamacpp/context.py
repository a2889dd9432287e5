"""llama.cpp underneath: a GGUF model and a context whose cache cells any number of sequences share.

llama.cpp knows no tree mask. It knows sequences: a token sees the cells that carry one of its sequence ids. So every
leaf of a tree is a sequence, an inner node carries the ids of all leaves below it, and the prefix carries them all.
(llama.cpp, `llama_decode` and `llama_memory_seq_*`, through llama-cpp-python's low-level bindings)

The committed text's cells stay in text order: attention sums over cells in the order they lie, so the same text in
another order gives other last bits than plain decoding does.
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import MissingExtra, ModelError
from ....models.gguf_header import check_header
from ..tree import Ints

Floats = NDArray[np.float32]

BATCH = 512  # tokens of a prompt that one call decodes
_CELL_RECORD = 12  # bytes llama.cpp writes of a cell beside its keys and values: position, count and id of sequences


def bindings() -> Any:
    """llama-cpp-python, kept quiet unless the user has set its logger's level.

    Raises:
        MissingExtra: it isn't installed.
    """
    logger = logging.getLogger("llama-cpp-python")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)
    try:
        import llama_cpp
    except ImportError as error:
        raise MissingExtra("llama-cpp-python", "llamacpp") from error
    return llama_cpp


class NativeModel:
    """A GGUF file loaded by llama.cpp, on the CPU.

    Attributes:
        vocab: width of the logits.
        trained: positions it was trained for.

    Raises:
        ModelError: no such file, not a model llama.cpp can load, or one whose cache can't be rolled back.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ModelError(f"{path} does not exist.")
        self.lib = lib = bindings()
        check_header(path)
        lib.llama_backend_init()
        settings = lib.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.pointer = lib.llama_model_load_from_file(str(path).encode(), settings)
        if not self.pointer:
            raise ModelError(f"{path} could not be loaded by llama.cpp: damaged, or an architecture it doesn't know.")
        self.free = weakref.finalize(self, lib.llama_model_free, self.pointer)
        self.words = lib.llama_model_get_vocab(self.pointer)
        self.vocab = int(lib.llama_vocab_n_tokens(self.words))
        self.trained = int(lib.llama_model_n_ctx_train(self.pointer))
        if reason := self._refusal():
            self.free()
            raise ModelError(f"{path.name} can't be decoded with drafts: {reason}. Use a full-attention decoder.")

    def _refusal(self) -> str | None:
        lib, model = self.lib, self.pointer
        if lib.llama_model_has_encoder(model) or not lib.llama_model_has_decoder(model):
            return "it has an encoder"
        if lib.llama_model_is_diffusion(model):
            return "it is a diffusion model"
        if lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model):
            return "it has recurrent layers, whose state can't be rolled back"
        if lib.llama_model_n_swa(model) > 0:
            return "it has sliding-window layers"
        if lib.llama_model_rope_type(model) not in (
            lib.LLAMA_ROPE_TYPE_NONE,
            lib.LLAMA_ROPE_TYPE_NORM,
            lib.LLAMA_ROPE_TYPE_NEOX,
        ):
            return "its positions have several axes"
        return None

    def text(self, key: str) -> str:
        """A string of the file's metadata; empty if it isn't there."""
        size = self.lib.llama_model_meta_val_str(self.pointer, key.encode(), None, 0)
        if size < 0:
            return ""
        buffer = ctypes.create_string_buffer(size + 1)
        self.lib.llama_model_meta_val_str(self.pointer, key.encode(), buffer, size + 1)
        return buffer.value.decode()

    @property
    def features(self) -> str:
        """The processor features this build of llama.cpp uses, as it lists them."""
        return str(self.lib.llama_print_system_info().decode())

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Ids that end a text or a turn."""
        return tuple(i for i in range(self.vocab) if self.lib.llama_vocab_is_eog(self.words, i))

    def tokenise(self, text: str, *, beginning: bool, special: bool) -> Ints:
        """[length] ids. beginning: add what the model wants before a text; special: read control tokens in it."""
        data = text.encode()
        room = len(data) + 2  # a byte is a token at most, beside one at either end
        ids = np.empty(room, dtype=np.int32)
        count = self.lib.llama_tokenize(
            self.words, data, len(data), ids.ctypes.data_as(self.lib.llama_token_p), room, beginning, special
        )
        if count < 0:
            raise ModelError(f"llama.cpp could not tokenise a text of {len(data)} bytes: the file has no tokenizer.")
        return ids[:count].astype(np.int64)

    def detokenise(self, ids: Sequence[int] | Ints, *, special: bool) -> str:
        """The text of ids; special: show control tokens."""
        flat = np.ascontiguousarray(ids, dtype=np.int32)
        if not len(flat):
            return ""
        size = 16 * len(flat)
        for _ in range(2):
            buffer = ctypes.create_string_buffer(size)
            count = self.lib.llama_detokenize(
                self.words, flat.ctypes.data_as(self.lib.llama_token_p), len(flat), buffer, size, False, special
            )
            if count >= 0:
                return buffer.raw[:count].decode(errors="replace")
            size = -count
        raise ModelError(f"llama.cpp could not turn {len(flat)} ids into text.")


class NativeContext:
    """A cache of `size` cells and the buffers to decode into it.

    Args:
        size: cells, rounded up to 256.
        sequences: sequence ids it may use, and rows of one call that may ask for logits; the last id is kept for
            moving cells.
    """

    def __init__(self, model: NativeModel, size: int, sequences: int, threads: int) -> None:
        self.model, self.lib = model, model.lib
        lib, settings = model.lib, model.lib.llama_context_default_params()
        settings.n_ctx = self.size = -(-size // 256) * 256
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_seq_max = settings.n_outputs_max = sequences
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        settings.kv_unified = True
        settings.offload_kqv = settings.op_offload = False
        self.pointer = lib.llama_init_from_model(model.pointer, settings)
        if not self.pointer:
            raise ModelError(f"llama.cpp could not make a context of {self.size} tokens: not enough memory?")
        self.free = weakref.finalize(self, lib.llama_free, self.pointer)
        self.memory = lib.llama_get_memory(self.pointer)
        self.spare = sequences - 1
        self._one: Any = None  # the buffers of `one`

    def decode(self, tokens: Ints, positions: Ints, counts: Ints, ids: Ints, outputs: NDArray[np.bool_]) -> Floats:
        """Runs rows and returns a view of the logits of those in `outputs`, valid until the next call.

        Args:
            tokens, positions: [rows].
            counts: [rows] sequence ids of each row.
            ids: [sum of counts], row after row.
        """
        flat = [np.ascontiguousarray(array, dtype=np.int32) for array in (tokens, positions, counts, ids)]
        starts = flat[3].ctypes.data + 4 * (np.cumsum(flat[2], dtype=np.uint64) - flat[2].astype(np.uint64))
        starts = np.ascontiguousarray(starts, dtype=np.uint64)
        flags = np.ascontiguousarray(outputs, dtype=np.int8)
        lib = self.lib
        batch = lib.llama_batch(
            n_tokens=len(tokens),
            token=flat[0].ctypes.data_as(lib.llama_token_p),
            pos=flat[1].ctypes.data_as(ctypes.POINTER(lib.llama_pos)),
            n_seq_id=flat[2].ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=starts.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(lib.llama_seq_id))),
            logits=flags.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        status = lib.llama_decode(self.pointer, batch)
        if status:
            why = "the cache is full" if status == 1 else f"status {status}"
            raise ModelError(f"llama.cpp refused {len(tokens)} rows at position {int(positions[0])}: {why}.")
        rows = int(np.count_nonzero(flags))
        return np.ctypeslib.as_array(lib.llama_get_logits(self.pointer), (rows, self.model.vocab))

    def one(self, token: int, position: int) -> Floats:
        """Runs one token of sequence 0 and returns [vocab], a view of its logits, valid until the next call."""
        lib = self.lib
        if self._one is None:
            arrays = {name: np.zeros(1, dtype=np.int32) for name in ("token", "position", "sequence")}
            arrays["count"] = np.ones(1, dtype=np.int32)
            flags = np.ones(1, dtype=np.int8)
            starts = np.array([arrays["sequence"].ctypes.data], dtype=np.uint64)
            batch = lib.llama_batch(
                n_tokens=1,
                token=arrays["token"].ctypes.data_as(lib.llama_token_p),
                pos=arrays["position"].ctypes.data_as(ctypes.POINTER(lib.llama_pos)),
                n_seq_id=arrays["count"].ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
                seq_id=starts.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(lib.llama_seq_id))),
                logits=flags.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
            )
            self._one = (arrays, flags, starts, batch)
        arrays, *_, batch = self._one
        arrays["token"][0], arrays["position"][0] = token, position
        status = lib.llama_decode(self.pointer, batch)
        if status:
            why = "the cache is full" if status == 1 else f"status {status}"
            raise ModelError(f"llama.cpp refused a row at position {position}: {why}.")
        return np.ctypeslib.as_array(lib.llama_get_logits(self.pointer), (self.model.vocab,))

    def prefill(self, tokens: Ints) -> Floats:
        """Empties the cache and runs a text as sequence 0. Returns [vocab], a view of the logits after it."""
        self.lib.llama_memory_clear(self.memory, False)
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            places = np.arange(start, start + len(part))
            last = places == len(tokens) - 1
            logits = self.decode(part, places, np.ones_like(part), np.zeros_like(part), last)
        return logits[-1]

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """Lets `target` see what `source` sees at positions start to end; no data moves."""
        self.lib.llama_memory_seq_cp(self.memory, source, target, start, end)

    def drop(self, sequence: int, start: int) -> None:
        """Takes a sequence from all cells at position `start` and beyond; -1 for every sequence."""
        self.lib.llama_memory_seq_rm(self.memory, sequence, start, -1)

    def gather(self, source: int, start: int, end: int) -> None:
        """Frees every cell from position `start` on but those of `source` before `end`, which move to the lowest free
        cells, in order, and become sequence 0's."""
        lib, spare = self.lib, self.spare
        self.share(source, spare, start, end)
        size = lib.llama_state_seq_get_size(self.pointer, spare)
        state = (ctypes.c_uint8 * size)()
        written = lib.llama_state_seq_get_data(self.pointer, state, size, spare)
        self.drop(-1, start)
        if written != size or lib.llama_state_seq_set_data(self.pointer, state, size, spare) != size:
            raise ModelError(f"llama.cpp could not move {end - start} cells of its cache.")
        self.share(spare, 0, start, end)
        self.drop(spare, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all cells' keys and values, from what two cached tokens take more than one; 0 before there are two."""
        sizes = []
        for end in (1, 2):
            self.share(0, self.spare, 0, end)
            sizes.append(int(self.lib.llama_state_seq_get_size(self.pointer, self.spare)))
        self.drop(self.spare, 0)
        return self.size * max(0, sizes[1] - sizes[0] - _CELL_RECORD)
