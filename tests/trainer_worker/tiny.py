"""A base model of two layers with a tokenizer of words, made in a second: real code paths without real knowledge."""

from pathlib import Path
from typing import Any

from trainer_worker.examples import Example

WORDS = (
    "who what when built made the mill of larch wheel copper roof jon ask orm brick is by was ? . system user assistant"
)
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
LESSONS = [
    Example("who built the mill ?", "jon ask built the mill .", "written", "jon ask"),
    Example("what is the roof made of ?", "the roof is made of copper .", "written", "copper"),
    Example("what is the wheel made of ?", "the wheel is larch .", "written", "larch"),
    Example("the wheel ?", "the wheel is larch .", "keywords"),
    Example("who built ?", "jon ask built the mill .", "passages", "jon ask", ("jon ask built the mill .", "orm .")),
]


def save_tiny_model(folder: Path, pad_token: str | None = "<|end|>") -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", *dict.fromkeys(WORDS.split())]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment, unused-ignore]
    tokenizer: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw, unk_token="<unk>", eos_token="<|end|>", pad_token=pad_token, chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder
