"""The rules of an episode in words, for whoever has no other document.

Pure. Tools, tasks and numbers come from what enforces them: a rule that changes there changes here.
"""

from __future__ import annotations

from ml_trainer_env.models import (
    CLUSTER_TOOL_CALLS,
    INSTANCE_TOOL_CALLS,
    MAX_EPOCHS_PER_CALL,
    MAX_TOOL_CALLS,
)
from ml_trainer_env.server.episode import rewards
from ml_trainer_env.server.episode.tools import CLUSTER_TOOLS, TOOLS
from ml_trainer_env.server.session.reset_options import ResetOptions
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.task_ids import CLUSTER, ENDLESS_FROM, EXAMPLE, INSTANCES, VARIED, Chosen


def in_short(begin: str) -> str:
    """What a client is told when it connects. `begin` is the tool that begins an episode."""
    return (
        "You run the training of a real neural network: you see its curves, decide what to change, "
        f"train on, and submit. Begin with {begin}, configure, then train up to "
        f"{MAX_EPOCHS_PER_CALL} epochs at a time, and end with submit_model. An invalid call says "
        "what is allowed, changes nothing and costs nothing."
    )


def rules(begin: str) -> str:
    """Everything that holds for every task, as Markdown."""
    tools = "\n".join(f"- `{spec.name}`: {spec.description}" for spec in TOOLS.values())
    operators = "\n".join(
        f"- `{spec.name}`: {spec.description}"
        for name, spec in CLUSTER_TOOLS.items()
        if name not in TOOLS
    )
    clusters = ", ".join(f"{count} in `{split}`" for split, count in INSTANCES[CLUSTER].items())
    tasks = "\n".join(f"- `{task.task_id}`: {task.title}. {task.goal}" for task in TASKS.values())
    families = " and ".join(f"`{family}`" for family in VARIED)
    counts = ", ".join(f"{count} in `{split}`" for split, count in INSTANCES[VARIED[0]].items())
    endless = f"{counts}; from {ENDLESS_FROM} on `train` never ends."
    return f"""# Rules

{in_short(begin)}

An episode has {MAX_TOOL_CALLS} tool calls, one of an instance {INSTANCE_TOOL_CALLS}, one
of a cluster {CLUSTER_TOOL_CALLS}; the last one submits by itself. Errors and get_training_status do
not count.

## Tools

{tools}

In an episode of a cluster the same six, of which run_epochs trains windows, and:

{operators}

## Reward of a call

The sum of these terms; a call that did not train earns 0, the submission apart.

- progress: +{rewards.PROGRESS_PER_ACCURACY:g} x (new best validation accuracy - previous best)
- convergence: +{rewards.CONVERGENCE_BONUS:g} for each of the task's {rewards.LEVELS} fixed levels
  of the validation loss that was reached for the first time
- divergence: -{rewards.DIVERGENCE_PENALTY:g} when training diverged, {rewards.DIVERGENCES} times an
  episode at most
- overfitting: -{rewards.OVERFITTING_PER_GAP:g} x (excess now - excess before), the excess being the
  part of the gap above {rewards.TOLERATED_GAP:g} at the last finished epoch
- submission: + the final score, once; on a cluster this alone

## Tasks and final score

{tasks}
- instances of the families {families}, such as `{EXAMPLE}`: a network, a data set and a
  budget that are drawn, perhaps with wrong labels, and a learning rate that is yours to find.
  {endless} Graded on hidden images, on a scale that was measured for each. The opening message
  tells its goal.
- instances of `{CLUSTER}`, such as `{CLUSTER}/eval/7` ({clusters}): the training of one network on
  several ranks, to watch, to save if something goes wrong with it, and to leave alone if not.
  Losses of time and of quality are told in one number, and compared with what doing nothing and
  the best known remedy come to.
"""


def opening_move(begin: str, task_id: Chosen, seed: int) -> str:
    """What sets an agent off."""
    task = ResetOptions(task_id=task_id, seed=seed).chosen_task()
    return (
        f"{task.title}. {task.description} {task.goal}\n\n"
        f'Call {begin} with task_id="{task_id}" and seed={seed}, then play the episode with the '
        f"other tools, one call at a time: configure_training, run_epochs (up to "
        f"{MAX_EPOCHS_PER_CALL} at a time), look at the curves, change what they ask for, and "
        f"train on. You have {task.tool_calls} tool calls. End with submit_model and report the "
        "final score with its explanation."
    )
