"""A language model that is made in a second, offline: a tokenizer of the project's own words and a
Qwen3 of random weights, with the chat template and the tool calls of the real ones.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl.chat_template_utils import qwen3_chat_template

from ml_trainer_env.adapters import text
from ml_trainer_env.agents.moves import Move

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = [
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]
LONGEST = 16384  # tokens


def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=600,
        special_tokens=[*SPECIAL, *WORDS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([text.RULES, text.OVER], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    made.chat_template = qwen3_chat_template
    return made


def model(words: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=LONGEST,
        eos_token_id=SPECIAL.index("<|im_end|>"),
        pad_token_id=SPECIAL.index("<|endoftext|>"),
    )
    return Qwen3ForCausalLM(config)


def written(move: Move) -> str:
    """A reply that makes this call."""
    call = json.dumps({"name": move.tool, "arguments": move.arguments})
    return f"<tool_call>\n{call}\n</tool_call><|im_end|>"


def ids(words: PreTrainedTokenizerFast, reply: str) -> list[int]:
    found: Any = words(reply, add_special_tokens=False)["input_ids"]
    return found
