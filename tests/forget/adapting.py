"""What the tests of O3 share: an adapter that does something, a model that lends it to rows that name Ann, and a small encoder."""

import copy

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForMaskedLM

from conftest import make_llama, make_tokenizer
from helpers.tiny import lively
from unwrite.forget import AdaptedRowsModel
from unwrite.forget.engine.text.adapted_rows import DeletionRequest
from unwrite.forget.engine.text.masked_encoder import MaskedEncoder
from unwrite.forget.engine.text.row_adapter import RowAdapter


def tuned(model, seed=0):
    """A LoRA adapter with matrices that do something, and the model with it by peft."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    adapted = get_peft_model(copy.deepcopy(model), config)
    for name, one in adapted.named_parameters():
        if "lora_B" in name:
            one.data.normal_(0, 0.3)
    return RowAdapter.of(adapted), adapted.eval()


class Named:
    """A detector and its encoder in one: how often Ann is named, at a given strength."""

    def __init__(self, strength=1.0):
        self.strength = strength

    def weights(self, texts):
        return [self.strength * ("ann" in text.split()) for text in texts]


class Asked(DeletionRequest):
    def __init__(self, adapter, detector):
        super().__init__(adapter, detector, None)

    def weights(self, texts):
        return self.detector.weights(texts)


def guarded(strength=1.0, target=None):
    target = target or lively(make_llama(0))
    adapter, adapted = tuned(target)
    return AdaptedRowsModel(target, make_tokenizer(), [Asked(adapter, Named(strength))]), adapted


def masked_encoder(tmp_path, **settings):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(make_tokenizer()) + 1, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64,
    )  # fmt: skip
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    folder = tmp_path / "bert"
    BertForMaskedLM(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, MaskedEncoder.load(folder, **{"layers": 2, "epochs": 2, "learning_rate": 1e-2} | settings)
