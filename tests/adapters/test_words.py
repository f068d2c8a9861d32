"""The language model that learns from random weights: its words, its rollouts, its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast
from trl.chat_template_utils import is_chat_template_prefix_preserving, parse_response
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from ml_trainer_env.adapters import text
from ml_trainer_env.adapters.trl import dataset, factory
from ml_trainer_env.agents.moves import SUBMIT, Move, configure, run
from ml_trainer_env.benchmarks.learning import tiny_model, words_rollouts
from ml_trainer_env.benchmarks.learning.words_rollouts import Call, Rollout

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the library are not ours

CALLS = [configure(optimizer="adamw", learning_rate=3e-5, lr_schedule="cosine"), run(4), SUBMIT]
CONFIGURE, RUN = "configure_training", "run_epochs"


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    return tiny_model.brief([text.RULES, "tool\n" + text.OVER] * 3, CALLS, 700)


def said(words: PreTrainedTokenizerFast) -> list[int]:
    return [tiny_model.ids(words, tiny_model.written(call))[0] for call in CALLS]


def message(move: Move) -> dict[str, Any]:
    call = {"name": move.tool, "arguments": move.arguments}
    function = {"type": "function", "function": call}
    return {"role": "assistant", "content": "", "tool_calls": [function]}


@pytest.mark.parametrize("move", CALLS)
def test_a_call_is_a_word_and_is_read_back_as_that_call(
    words: PreTrainedTokenizerFast, move: Move
) -> None:
    reply = tiny_model.ids(words, tiny_model.written(move))[:1]
    prompt: Any = words.apply_chat_template(
        [{"role": "user", "content": "Train."}], add_generation_prompt=True, return_dict=False
    )

    read = parse_response(words, reply, prefix=prompt)

    assert read["tool_calls"] == message(move)["tool_calls"]
    conversation = [{"role": "user", "content": "Train."}, message(move)]
    rendered: Any = words.apply_chat_template(conversation, return_dict=False)
    assert rendered == [*prompt, *reply, tiny_model.END]


def test_messages_do_not_change_when_others_follow_and_no_tool_is_described(
    words: PreTrainedTokenizerFast,
) -> None:
    talk = [{"role": "user", "content": "Train."}, message(CALLS[1])]
    answer = {"role": "tool", "name": RUN, "content": text.OVER}

    plain = words.apply_chat_template(talk, tokenize=False)
    with_tools = words.apply_chat_template([*talk, answer], tools=[described], tokenize=False)

    assert is_chat_template_prefix_preserving(words)
    assert str(with_tools) == f"{plain}<|im_start|>tool\n{text.OVER}<|im_end|>"


def described(epochs: int) -> str:
    """A tool.

    Args:
        epochs: How many.
    """
    return str(epochs)


def test_sentences_are_words(words: PreTrainedTokenizerFast) -> None:
    assert len(tiny_model.ids(words, text.RULES)) < 5


def test_a_model_says_nothing_but_its_words_all_of_them_alike(
    words: PreTrainedTokenizerFast,
) -> None:
    model = tiny_model.model(words, said=said(words))
    read = torch.tensor([tiny_model.ids(words, text.RULES)])

    chances = model(read).logits[0, -1].softmax(-1)

    assert chances[said(words)].tolist() == pytest.approx([1 / 3] * 3)
    assert not model.lm_head.bias.requires_grad


def test_every_rollout_is_noted_with_its_return(
    words: PreTrainedTokenizerFast, tmp_path: Path, url: str
) -> None:
    noting = words_rollouts.Noting(tmp_path / "rollouts.jsonl", updates=2)
    ends = [*said(words), tiny_model.END]
    grpo = GRPOTrainer(
        model=tiny_model.model(words, said=ends),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            max_steps=4,
            num_iterations=2,
            num_generations=4,
            per_device_train_batch_size=4,
            max_completion_length=1000,
            max_tool_calling_iterations=5,
            generation_kwargs={"eos_token_id": ends},
            logging_steps=2,
            save_strategy="no",
            report_to="none",
        ),
        reward_funcs=[noting],
        train_dataset=dataset("easy_mnist", seeds=range(2)),
        processing_class=words,
        environment_factory=factory(url),
    )

    grpo.train()

    found = words_rollouts.read(noting.path)
    assert [each.step for each in found] == [0] * 4 + [1] * 4
    logged = [log["reward"] for log in grpo.state.log_history if "reward" in log]
    assert list(words_rollouts.by_start(found).values()) == pytest.approx(logged)
    tools = {call.tool for each in found for call in each.calls}
    assert tools <= {move.tool for move in CALLS}
    assert any(each.calls for each in found)
    words_rollouts.keep(noting.path, steps=1)
    assert words_rollouts.read(noting.path) == found[:4]


def test_calls_after_the_end_do_not_count() -> None:
    talk = [
        message(CALLS[0]),
        {"role": "tool", "name": CONFIGURE, "content": "configured learning_rate=3e-05"},
        message(CALLS[1]),
        {
            "role": "tool",
            "name": RUN,
            "content": "trained 4 epochs\nepoch 4 of 20; val accuracy 0.5, val loss 1.25, gap 0",
        },
        message(CALLS[1]),
        {"role": "tool", "name": RUN, "content": text.OVER},
        message(CALLS[1]),
    ]

    assert list(words_rollouts._calls(talk)) == [
        Call(CONFIGURE, 3e-5, 0, None),
        Call(RUN, 4, 4, 1.25),
    ]


def test_habits_tell_rates_and_reactions() -> None:
    probed = (
        Call(CONFIGURE, 3e-5, 0, None),
        Call(RUN, 1, 1, 2.31),
        Call(CONFIGURE, 3e-3, 0, None),
        Call(RUN, 20, 20, 0.9),
        Call("submit_model", None, 0, None),
    )
    rollouts = [
        Rollout(0, "varied_mlp/train/0", 1.0, probed),
        Rollout(1, "varied_mlp/train/0", 0.0, ()),
    ]

    found = words_rollouts.habits(rollouts)

    assert found["first rates"] == {3e-5: 1}
    assert found["most frequent calls after"] == {
        "a loss like guessing": {"cases": 1, f"{CONFIGURE} 0.003": 1.0},
        "a loss far below it": {"cases": 1, "submit_model": 1.0},
    }
    assert found["submitted"] == found["never trained"] == found["trained one epoch first"] == 0.5
    assert found["share of the budget trained"] == pytest.approx(21 / 28 / 2)
    assert [len(part) for part in words_rollouts.parts(rollouts, 2)] == [1, 1]
