"""Networks for text: an encoder, two decoders with their cache off, an encoder with a decoder, a recurrent one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.architecture import Architecture, Inputs
from benchmarks.zoo.library_shim import import_torchvision

__all__ = ["TEXT"]


class LstmTagger(nn.Module):
    """Embedding, two recurrent layers, a tag for every word.

    Args:
        words: Number of words.
        hidden: Size of the layers.
        num_tags: Number of tags.

    Shapes:
        Word numbers ``(batch, length)`` to logits ``(batch, length, tags)``.
    """

    def __init__(self, words: int, hidden: int, num_tags: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, hidden)
        self.forwards = nn.LSTM(hidden, hidden, batch_first=True)
        self.norm = nn.LayerNorm(hidden)
        self.tags = nn.Linear(hidden, num_tags)

    def forward(self, ids: Tensor) -> Tensor:
        """Score the tags of every word."""
        y, _ = self.forwards(self.embedding(ids))
        return self.tags(self.norm(y))


def _bert(reduced: bool) -> Any:
    import_torchvision()
    from transformers import BertConfig, BertForSequenceClassification

    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(num_labels=3, **({**small, "vocab_size": 50} if reduced else {})))


def _llama(reduced: bool) -> Any:
    import_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = (32, 64, 2, 2, 1, 50) if reduced else (512, 1408, 8, 8, 4, 8000)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return LlamaForCausalLM(LlamaConfig(use_cache=False, **dict(zip((*names, "vocab_size"), sizes, strict=True))))


def _gpt2(reduced: bool) -> Any:
    import_torchvision()
    from transformers import GPT2Config, GPT2LMHeadModel

    small = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 32}
    small |= {"bos_token_id": 0, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(use_cache=False, **(small if reduced else {})))


def _t5(reduced: bool) -> Any:
    import_torchvision()
    from transformers import T5Config, T5ForConditionalGeneration

    small = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
    config = T5Config(use_cache=False, decoder_start_token_id=0, **(small if reduced else {}))
    return T5ForConditionalGeneration(config)


def _words(full: int, *more: str, keyword: bool = True) -> Any:
    """Word numbers, with a mask that ends the first text early where one is asked for."""

    def sample(reduced: bool, batch: int) -> Inputs:
        words, length = (50, 8) if reduced else (full, 64)
        ids = torch.randint(0, words, (batch, length))
        if not keyword:
            return Inputs((ids,))
        mask = torch.ones_like(ids)
        mask[0, length // 2 :] = 0
        others = {"attention_mask": mask, "token_type_ids": torch.zeros_like(ids), "decoder_input_ids": ids[:, :6]}
        return Inputs(kwargs={"input_ids": ids, **{name: others[name] for name in more}})

    return sample


TEXT = (
    Architecture(
        "BERT-base, classifier",
        "transformers",
        _bert,
        _words(30_522, "attention_mask", "token_type_ids"),
        ("bert.encoder.layer.1", "bert.pooler"),
    ),
    Architecture(
        "Llama-like decoder, cache off",
        "transformers",
        _llama,
        _words(8000, "attention_mask"),
        ("model.layers.1", "model.norm"),
    ),
    Architecture("GPT-2, cache off", "transformers", _gpt2, _words(50_257), ("transformer.h.1", "transformer.ln_f")),
    Architecture(
        "T5-small encoder-decoder",
        "transformers",
        _t5,
        _words(32_128, "attention_mask", "decoder_input_ids"),
        ("encoder.block.1", "encoder.final_layer_norm"),
    ),
    Architecture(
        "LSTM tagger",
        "own",
        lambda reduced: LstmTagger(50, 16, 4) if reduced else LstmTagger(20_000, 256, 17),
        _words(20_000, keyword=False),
        ("forwards", "norm"),
    ),
)
