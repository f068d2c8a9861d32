"""A language model that is made in a second, offline: a tokenizer of the project's own words and a
Qwen3 of random weights, with the chat template and the form of tool calls of the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
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
END = SPECIAL.index("<|im_end|>")
PADDING = SPECIAL.index("<|endoftext|>")


def tokenizer(
    texts: Sequence[str] = (text.RULES, text.OVER), calls: Sequence[Move] = (), size: int = 600
) -> PreTrainedTokenizerFast:
    """Of `size` words that are frequent in `texts`, and a word for each whole call of `calls`."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL, *WORDS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(_call(call), normalized=False) for call in calls])
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=SPECIAL[END], pad_token=SPECIAL[PADDING]
    )
    made.chat_template = qwen3_chat_template
    return made


def model(words: PreTrainedTokenizerFast, width: int = 32, layers: int = 2) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=width // 2,
        max_position_embeddings=LONGEST,
        eos_token_id=END,
        pad_token_id=PADDING,
    )
    return Qwen3ForCausalLM(config)


def written(move: Move) -> str:
    """A reply that makes this call."""
    return _call(move) + SPECIAL[END]


def ids(words: PreTrainedTokenizerFast, reply: str) -> list[int]:
    found: Any = words(reply, add_special_tokens=False)["input_ids"]
    return found


def _call(move: Move) -> str:
    call = json.dumps({"name": move.tool, "arguments": move.arguments})
    return f"<tool_call>\n{call}\n</tool_call>"
