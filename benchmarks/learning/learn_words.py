"""Can a language model learn it? GRPO by TRL, from random weights: `make learn-words`.

    make learn-words ARGS='--steps 200'    # goes on where it was; the last line is JSON

The model is a Qwen3 of 200 thousand parameters, whose words include whole tool calls: it need not
learn to spell, only what to call and when. It plays `varied_mlp` through `adapters/trl.py`, on a
server of its own, and is judged on validation before and after, by the same sampling.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from ml_trainer_env.adapters import text
from ml_trainer_env.adapters.rollout import connecting
from ml_trainer_env.adapters.trl import dataset, factory
from ml_trainer_env.agents.moves import SUBMIT, Move, configure, rate, run
from ml_trainer_env.benchmarks.learning import tiny_model
from ml_trainer_env.evals.results import bootstrap
from ml_trainer_env.local_server import LOGS, local_server
from ml_trainer_env.surroundings import variables_set
from ml_trainer_env.task_ids import named
from ml_trainer_env.terminal import stdout

FOLDER = Path("outputs") / "learn-words"
TRAIN, VALIDATION = "varied_mlp/train", "varied_mlp/validation"
RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
CALLS: list[Move] = [
    *(configure(optimizer="adamw", learning_rate=each, lr_schedule="cosine") for each in RATES),
    *(rate(each) for each in RATES),
    run(1),
    run(4),
    run(20),
    SUBMIT,
]
GROUP, GROUPS = 8, 2  # rollouts from one start, and starts in a step
MOST_CALLS = 8
VOCABULARY = 2000
WIDTH = 64


def texts(url: str) -> list[str]:
    """What the model will read: the cards of training instances, and the tools."""
    session = connecting(url)()
    found = [text.RULES, text.OVER]
    found += [text.opening(session.begin(task_id, 0)) for task_id in named(f"{TRAIN}/0-39")]
    found += [json.dumps(tool.input_schema) for tool in session.tools()]
    session.close()
    return found


def trainer(url: str, steps: int) -> GRPOTrainer:
    words = tiny_model.tokenizer(texts(url), CALLS, VOCABULARY)
    calls = [tiny_model.ids(words, tiny_model.written(call))[0] for call in CALLS]
    others = sorted(set(range(len(words))) - {*calls, tiny_model.END})
    return GRPOTrainer(
        model=tiny_model.model(words, WIDTH),
        args=GRPOConfig(
            output_dir=str(FOLDER),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,  # activations of so small a model fit
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            max_steps=steps,
            num_generations=GROUP,
            num_generations_eval=GROUP,
            per_device_train_batch_size=GROUP * GROUPS,
            per_device_eval_batch_size=GROUP * GROUPS,
            max_completion_length=4000,
            max_tool_calling_iterations=MOST_CALLS,
            generation_kwargs={"suppress_tokens": others, "eos_token_id": [*calls, tiny_model.END]},
            logging_steps=1,
            save_steps=10,
            save_total_limit=1,
            report_to="none",
            seed=0,
        ),
        train_dataset=dataset(TRAIN),
        eval_dataset=dataset(VALIDATION),
        processing_class=words,
        environment_factory=factory(url),
    )


def measure(url: str, steps: int) -> dict[str, Any]:
    set_seed(0)
    grpo = trainer(url, steps)
    before = FOLDER / "before.json"
    if not before.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        before.write_text(json.dumps(grpo.evaluate()))
    grpo.train(resume_from_checkpoint=get_last_checkpoint(str(FOLDER)))
    after = grpo.evaluate()
    rewards = [log["reward"] for log in grpo.state.log_history if "reward" in log]
    tenth = max(1, len(rewards) // 10)
    return {
        "steps": len(rewards),
        "rewards": [round(reward, 4) for reward in rewards],
        "first": [fmean(rewards[:tenth]), *bootstrap(rewards[:tenth])],
        "last": [fmean(rewards[-tenth:]), *bootstrap(rewards[-tenth:])],
        "validation": [json.loads(before.read_text())["eval_reward"], after["eval_reward"]],
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
    with _serving() as url:
        found = measure(url, options.steps)
    for name in ("first", "last"):
        value, low, high = found[name]
        stdout().print(f"return of the {name} tenth: {value:.3f} ({low:.3f} to {high:.3f})")
    before, after = found["validation"]
    stdout().print(f"return on validation, before and after: {before:.3f}, {after:.3f}")
    print(json.dumps({"benchmark": "learn-words", **found}))


if __name__ == "__main__":
    main()
