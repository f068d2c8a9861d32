"""A language model that is made in a second, offline: a tokenizer of the project's own words and a
Qwen3 of random weights, with the chat template and the form of tool calls of the real ones.

One that is to learn from nothing has a shorter template, and can say a few words only.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl.chat_template_utils import add_response_schema, qwen3_chat_template

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

# Without the tools' schemas: three quarters of what would be read, and of no use to a model whose
# words are whole calls. Messages never change once they are written, as TRL's tool loop wants it.
BRIEF = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson }}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- message.content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
NEVER = -30.0  # the logit of what a model cannot say


def tokenizer(
    texts: Sequence[str] = (text.RULES, text.OVER),
    calls: Sequence[Move] = (),
    size: int = 600,
    sentences: bool = False,
) -> PreTrainedTokenizerFast:
    """Of `size` words that are frequent in `texts`, and a word for each whole call of `calls`."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not sentences)
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


def brief(texts: Sequence[str], calls: Sequence[Move], size: int) -> PreTrainedTokenizerFast:
    """With the short template, and words as long as what `texts` have in common: whole sentences.

    So a card is a few dozen words, and a loss is one, together with what it is the loss of.
    """
    made = tokenizer(texts, calls, size, sentences=True)
    add_response_schema(made)  # how calls are read, while TRL knows the template
    made.chat_template = BRIEF
    return made


def model(
    words: PreTrainedTokenizerFast,
    width: int = 32,
    layers: int = 2,
    said: Collection[int] | None = None,
) -> Qwen3ForCausalLM:
    """`said`: the only words that it can say; left out, all."""
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=width // 2,
        max_position_embeddings=LONGEST,
        initializer_range=width**-0.5,  # what was read must not drown in the last word
        eos_token_id=END,
        pad_token_id=PADDING,
    )
    made = Qwen3ForCausalLM(config)
    if said is not None:
        # In the model and not in the sampler: so the probabilities that are learned with are those
        # that were sampled from. It begins with chance, and has no favourites apart from the text.
        made.lm_head.weight.data.zero_()
        bias = torch.full((len(words),), NEVER)
        bias[list(said)] = 0.0
        made.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
    return made


def written(move: Move) -> str:
    """A reply that makes this call."""
    return _call(move) + SPECIAL[END]


def ids(words: PreTrainedTokenizerFast, reply: str) -> list[int]:
    found: Any = words(reply, add_special_tokens=False)["input_ids"]
    return found


def _call(move: Move) -> str:
    call = json.dumps({"name": move.tool, "arguments": move.arguments})
    return f"<tool_call>\n{call}\n</tool_call>"
