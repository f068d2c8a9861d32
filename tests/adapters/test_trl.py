"""TRL's own trainer drives the environment: offline, on the CPU."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import plain
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import get_json_schema
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from ml_trainer_env.adapters import text
from ml_trainer_env.adapters.rollout import Rollout, connecting
from ml_trainer_env.adapters.trl import TrainingRun, dataset, factory
from ml_trainer_env.agents.moves import SUBMIT, Move, configure, rate, run
from ml_trainer_env.benchmarks.learning import tiny_model
from ml_trainer_env.models import TrainingConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the library are not ours

TASK = "medium_fashion"
GROUP = [  # of rollouts from one start
    [
        configure(optimizer="adamw", learning_rate=0.003),
        run(4),
        run(40),
        rate(0.01),
        run(20),
        SUBMIT,
    ],
    [configure(learning_rate=0.01), run(20), Move("get_training_status", {}), run(5)],
    [run(3)],
    [],
]


class Scripted:
    """In the place of `model.generate`: what each rollout of the group replies, turn by turn."""

    def __init__(self, words: PreTrainedTokenizerFast, group: list[list[Move]]) -> None:
        self._words = words
        self._group = group
        self._turn = 0
        self._playing = list(range(len(group)))
        self.prompts: list[str] = []

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        assert len(input_ids) == len(self._playing)
        padded = self._words.batch_decode(input_ids)
        self.prompts += [prompt.replace("<|endoftext|>", "") for prompt in padded]
        scripts = [self._group[number] for number in self._playing]
        self._playing = [n for n in self._playing if self._turn < len(self._group[n])]
        replies = [
            tiny_model.written(script[self._turn])
            if self._turn < len(script)
            else "Done.<|im_end|>"
            for script in scripts
        ]
        self._turn += 1
        written = [torch.tensor(tiny_model.ids(self._words, reply)) for reply in replies]
        padding = self._words.convert_tokens_to_ids("<|endoftext|>")
        padded = torch.nn.utils.rnn.pad_sequence(written, True, float(padding))  # type: ignore[arg-type]
        return torch.cat([input_ids, padded], dim=1)


def trainer(folder: Path, url: str, script: list[list[Move]] | None, **options: Any) -> GRPOTrainer:
    words = tiny_model.tokenizer()
    model = tiny_model.model(words)
    if script is not None:
        model.generate = Scripted(words, script)  # type: ignore[assignment]
    chosen: dict[str, Any] = {
        "max_completion_length": 6000,
        "max_steps": 1,
        "num_generations": len(GROUP),
        "per_device_train_batch_size": len(GROUP),
    }
    return GRPOTrainer(
        model=model,
        args=GRPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            **(chosen | options),
        ),
        train_dataset=dataset(TASK, seeds=[7]),
        processing_class=words,
        environment_factory=factory(url),
    )


def test_a_group_is_rewarded_with_the_returns_of_its_episodes(tmp_path: Path, url: str) -> None:
    grpo = trainer(tmp_path, url, GROUP)

    grpo.train()

    returns = torch.tensor([plain(url, TASK, 7, moves).episode_return for moves in GROUP])
    logged = grpo.state.log_history[0]
    assert logged["rewards/TrainingRun/mean"] == pytest.approx(float(returns.mean()))
    assert logged["rewards/TrainingRun/std"] == pytest.approx(float(returns.std()))
    assert logged["tools/failure_frequency"] == 0  # a refused call is an answer
    assert returns.unique().numel() == 3  # two of them train nothing


def test_a_model_is_told_what_the_environment_answers(tmp_path: Path, url: str) -> None:
    grpo = trainer(tmp_path, url, GROUP)
    said: list[str] = grpo.model.generate.prompts  # type: ignore[union-attr]

    grpo.train()

    whole = max(said, key=len)
    for told in (
        text.RULES,
        "Fashion Item Classifier",
        "configured optimizer=adamw, learning_rate=0.003",
        "trained 4 epochs",
        "error: num_epochs: must be a whole number with 1 <= num_epochs <= 20; got 40",
        "The episode is over. Score",
    ):
        assert told in whole
    assert len(whole) < 9000  # characters, six calls and the schemas of the tools among them


def test_a_rollout_without_room_for_answers_is_graded(tmp_path: Path, serve: Any) -> None:
    """The answers no longer fit, so the trainer ends the rollout; what was trained counts."""
    url = serve(max_sessions=len(GROUP))
    begun = [configure(learning_rate=0.01), run(20)]
    grpo = trainer(tmp_path, url, [begun] * len(GROUP), max_completion_length=250)

    grpo.train()

    expected = plain(url, TASK, 7, begun).episode_return
    logged = grpo.state.log_history[0]
    assert logged["rewards/TrainingRun/mean"] == pytest.approx(expected)
    assert logged["completions/clipped_ratio"] < 1
    assert expected > 0


def test_after_a_step_no_session_is_open(tmp_path: Path, serve: Any) -> None:
    url = serve(max_sessions=len(GROUP))
    grpo = trainer(tmp_path, url, GROUP)

    grpo.train()

    others = [Rollout(connecting(url), patience_s=20) for _ in GROUP]
    for other in others:  # all places are free, while the trainer still has its environments
        other.begin("easy_mnist")
    for other in others:
        other.close()


@pytest.mark.slow
def test_a_model_that_nobody_scripts_is_trained(tmp_path: Path, url: str) -> None:
    """Of random weights it writes no calls; every rollout is graded all the same."""
    grpo = trainer(tmp_path, url, None, max_steps=3, max_completion_length=24)

    grpo.train()

    assert [log["reward"] for log in grpo.state.log_history[:3]] == [0, 0, 0]
    assert all(environment._rollout.is_over for environment in grpo.environments or [])


def test_the_tools_are_those_of_the_environment(url: str) -> None:
    session = connecting(url)()
    listed = {tool.name: tool.input_schema for tool in session.tools()}
    session.close()
    run_ = factory(url)()

    offered = {
        name: get_json_schema(getattr(run_, name))["function"]["parameters"]
        for name, _ in inspect.getmembers(TrainingRun, inspect.isfunction)
        if not name.startswith("_") and name not in ("reset", "get_reward")
    }

    assert offered.keys() == listed.keys()
    for name, schema in listed.items():
        assert offered[name]["properties"].keys() == schema.get("properties", {}).keys()
        assert set(offered[name].get("required", [])) == set(schema.get("required", []))
    options = offered["configure_training"]["properties"]
    assert options.keys() == TrainingConfig.model_fields.keys()
    assert options["batch_size"]["enum"] == [32, 64, 128, 256]
    assert options["optimizer"]["enum"] == ["sgd", "adam", "adamw"]


def test_a_data_set_has_a_row_for_each_task_and_seed() -> None:
    rows = dataset("varied_mlp/eval/3-5", "easy_mnist", seeds=range(2))

    assert rows["task_id"][:] == [
        *["varied_mlp/eval/3"] * 2,
        *["varied_mlp/eval/4"] * 2,
        *["varied_mlp/eval/5"] * 2,
        *["easy_mnist"] * 2,
    ]
    assert rows["seed"][:] == [0, 1] * 4
    with pytest.raises(ValueError, match="no task is named"):
        dataset("varied_rnn/train")
