"""Can a language model learn it? GRPO by TRL, from random weights: `make learn-words`.

    make learn-words ARGS='--steps 200'    # half an hour; goes on; the last line is JSON

The model is a Qwen3 of 230 thousand parameters, whose words include whole tool calls: it need not
learn to spell, only what to call and when. It plays `varied_mlp` through `adapters/trl.py`, on a
server of its own, and is judged on validation before and after, by the same sampling. On disk are
TRL's checkpoints, the rollouts (`before.jsonl`, `rollouts.jsonl`, `after.jsonl`) and `words.png`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_model
from transformers import TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from ml_trainer_env.adapters import text
from ml_trainer_env.adapters.rollout import Rollout, connecting
from ml_trainer_env.adapters.trl import dataset, factory
from ml_trainer_env.agents.moves import SUBMIT, Move, configure, run
from ml_trainer_env.benchmarks.learning import tiny_model, words_rollouts
from ml_trainer_env.local_server import LOGS, local_server
from ml_trainer_env.surroundings import variables_set
from ml_trainer_env.task_ids import named
from ml_trainer_env.terminal import stdout

FOLDER = Path("outputs") / "learn-words"
TRAIN, VALIDATION = "varied_mlp/train", "varied_mlp/validation"
RATES = (3e-5, 3e-4, 3e-3, 3e-2, 3e-1)
CALLS: list[Move] = [
    *(configure(optimizer="adamw", learning_rate=each, lr_schedule="cosine") for each in RATES),
    run(1),
    run(20),
    SUBMIT,
]
MOST_CALLS = 7  # of an episode; one that is cut off is submitted as it stands
GROUP, GROUPS = 8, 4  # rollouts from one start, and starts in a step
UPDATES = 4  # of the model in a step: episodes are dear, updates are not
VOCABULARY = 1200
WIDTH = 64
PARTS = 10  # of the run, in the report
SETTINGS: dict[str, Any] = {
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant",
    "num_generations": GROUP,
    "num_generations_eval": GROUP,
    "per_device_train_batch_size": GROUP * GROUPS,
    "per_device_eval_batch_size": GROUP * GROUPS,
    "num_iterations": UPDATES,
    "scale_rewards": "batch",  # a group whose returns hardly differ has little to say
    "entropy_coef": 0.02,
    "max_completion_length": 1000,
    "max_tool_calling_iterations": MOST_CALLS,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,  # activations of so small a model fit
    "logging_steps": UPDATES,
    "save_steps": 5 * UPDATES,
    "save_total_limit": 1,
    "report_to": "none",
    "seed": 0,
}


def texts(url: str) -> list[str]:
    """What the model will read: cards of training instances, and what calls are answered."""
    chance = random.Random(0)
    found = [text.OVER] * MOST_CALLS
    with Rollout(connecting(url)) as rollout:
        for task_id in named(f"{TRAIN}/0-79"):
            found.append("user\n\n" + text.opening(rollout.begin(task_id, 0)))
            for _ in range(MOST_CALLS):
                if not rollout.is_over:
                    found.append("tool\n" + text.answer(rollout.call(*chance.choice(CALLS))))
    return found


def rows(tasks: str) -> Dataset:
    """The adapter's, without the rules: words that are always the same teach nothing."""
    nothing = [{"role": "user", "content": ""}]
    return dataset(tasks).map(lambda _: {"prompt": nothing})


def trainer(url: str, steps: int, noting: words_rollouts.Noting) -> GRPOTrainer:
    words = tiny_model.brief(texts(url), CALLS, VOCABULARY)
    said = [tiny_model.ids(words, tiny_model.written(call))[0] for call in CALLS]
    said.append(tiny_model.END)
    return GRPOTrainer(
        model=tiny_model.model(words, WIDTH, said=said),
        args=GRPOConfig(
            output_dir=str(FOLDER),
            max_steps=steps * UPDATES,
            generation_kwargs={"eos_token_id": said},  # each is the end of its turn
            **SETTINGS,
        ),
        reward_funcs=[noting],
        train_dataset=rows(TRAIN),
        eval_dataset=rows(VALIDATION),
        processing_class=words,
        environment_factory=factory(url),
    )


def train(url: str, steps: int) -> float:
    """Until so many steps are on disk, and what they led to on validation: seconds a step."""
    before, during, after = (FOLDER / f"{name}.jsonl" for name in ("before", "rollouts", "after"))
    set_seed(0)
    noting = words_rollouts.Noting(before, UPDATES)
    grpo = trainer(url, steps, noting)
    if len(words_rollouts.read(before)) < GROUP * len(named(VALIDATION)):
        before.unlink(missing_ok=True)
        grpo.evaluate()
    checkpoint = get_last_checkpoint(str(FOLDER))
    done = int(checkpoint.rpartition("-")[2]) // UPDATES if checkpoint else 0
    words_rollouts.keep(during, done)
    noting.path = during
    if checkpoint is None or done < steps:
        grpo.train(resume_from_checkpoint=checkpoint)
    else:  # what is told to train on from its last step plays one more
        assert grpo.model is not None
        load_model(grpo.model, Path(checkpoint) / "model.safetensors")
    noting.path = after
    after.unlink(missing_ok=True)
    grpo.evaluate()
    state = TrainerState.load_from_json(f"{get_last_checkpoint(str(FOLDER))}/{TRAINER_STATE_NAME}")
    return UPDATES * median(log["step_time"] for log in state.log_history if "step_time" in log)


def report() -> dict[str, Any]:
    before, during, after = (
        words_rollouts.read(FOLDER / f"{name}.jsonl") for name in ("before", "rollouts", "after")
    )
    by_task = [
        {task: value for (_, task), value in words_rollouts.by_start(played).items()}
        for played in (before, after)
    ]
    judged = [words_rollouts.told(found.values()) for found in by_task]
    words_rollouts.draw(during, judged, PARTS, FOLDER / "words.png")
    return {
        "steps": 1 + during[-1].step,
        "parts": [
            words_rollouts.told(words_rollouts.by_start(part).values())
            for part in words_rollouts.parts(during, PARTS)
        ],
        "validation": judged,
        "gain": words_rollouts.told(by_task[1][task] - by_task[0][task] for task in by_task[0]),
        "habits": [words_rollouts.habits(played) for played in (before, after)],
    }


@contextmanager
def _serving() -> Iterator[str]:
    variables = {
        "ML_TRAINER_MAX_SESSIONS": str(4 * GROUP * GROUPS),
        "ML_TRAINER_STATE_DIR": str(FOLDER / "state"),  # few words: many rollouts make equal moves
    }
    with variables_set(variables), local_server(LOGS / "learn-words-server.log") as url:
        yield url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the cores are the server's
    FOLDER.mkdir(parents=True, exist_ok=True)
    with _serving() as url:
        seconds = train(url, options.steps)
    found = report()
    for part in (*found["parts"], *found["validation"], found["gain"]):
        stdout().print("{:.3f} ({:.3f} to {:.3f})".format(*part))
    print(json.dumps({"benchmark": "learn-words", "seconds a step": round(seconds, 1), **found}))


if __name__ == "__main__":
    main()
