"""The desk's pieces of HTML for a cluster: its numbers, what happened, and what it came to."""

# pyright: strict

from __future__ import annotations

from html import escape
from itertools import pairwise

from ml_trainer_env.cluster_status import ClusterStatus
from ml_trainer_env.events import Train
from ml_trainer_env.models import Grade, TrainingStatus
from ml_trainer_env.server.desk import cards, lanes, words
from ml_trainer_env.server.desk.lanes import Kind, Mark
from ml_trainer_env.server.desk.story import Story

SHAPES: dict[Kind, str] = {  # as in the picture
    "incident": "✕",
    "restore": "◀",
    "ranks": "■",
    "data": "◆",
    "diagnose": "○",
    "settings": "●",
}
KEYS = (
    ("desk-key-val", "validation"),
    ("desk-key-train", "train, faint: step by step"),
    ("desk-key-other", "what a healthy cluster makes"),
)


def summary(story: Story, *, busy: bool = False) -> str:
    """The head of a board."""
    status, cluster = story.status, story.status.cluster
    assert cluster
    told = story.task.description
    aim = story.task.aim.removeprefix(told).strip()
    spinner = cards.SPINNER if busy else ""
    return (
        '<section class="desk-summary" aria-label="Summary">'
        '<div class="desk-title"><div>'
        f"<h2>{spinner}{escape(story.task.title)}</h2>"
        f"<p>{escape(status.task_id)}, seed {story.seed}. {escape(told)}</p>"
        f"<details><summary>What is asked, and what it is worth</summary><p>{escape(aim)}</p>"
        f"</details></div></div>{_incidents(story)}{_budget(story, cluster)}"
        f"{_tiles(status, cluster, _ranks(story))}{_finding(story)}</section>"
    )


def _incidents(story: Story) -> str:
    """Those that ended the last window, if nothing was done since."""
    last = story.points[-1] if story.points else None
    if last is None or not isinstance(last.plan, Train) or not last.window or story.status.done:
        return ""
    return cards.note(_sentence(words.counted(last.window.incidents)), "error")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _budget(story: Story, cluster: ClusterStatus) -> str:
    most = story.task.tool_calls
    calls = most - story.status.tool_calls_left
    deadline = round(cluster.deadline)  # the last step may end a little after it
    return (
        '<div class="desk-budget">'
        + cards.bar("Clock, s", min(round(cluster.seconds), deadline), deadline)
        + cards.bar("Tool calls", calls, most)
        + "</div>"
    )


def _ranks(story: Story) -> int:
    assert story.task.cluster
    return story.task.cluster.world.ranks


def _tiles(status: TrainingStatus, cluster: ClusterStatus, ranks: int) -> str:
    last = cluster.windows[-1].ranks if cluster.windows else ()
    silent = [each.rank for each in last if not each.alive and each.rank not in cluster.excluded]
    idle = [f"out: {_list(cluster.excluded)}"] if cluster.excluded else []
    idle += [f"no answer: {_list(silent)}"] if silent else []
    shards = f"shards out: {_list(cluster.quarantined)}" if cluster.quarantined else "all shards"
    tiles = (
        ("Goodput", words.percent(cluster.goodput), "of the clock became progress"),
        ("Step", str(cluster.step), _lost(cluster.steps_made - cluster.step)),
        (
            "Val loss",
            words.number(status.val_loss, 3),
            f"train {words.number(status.train_loss, 3)}",
        ),
        (
            "Learning rate",
            words.short(cluster.learning_rate_in_force),
            f"{cluster.config.lr_schedule}, peak {words.short(cluster.config.learning_rate)}",
        ),
        (
            "Ranks at work",
            f"{ranks - len(cluster.excluded) - len(silent)} of {ranks}",
            "; ".join([*idle, shards]),
        ),
    )
    return (
        '<dl class="desk-tiles desk-plain">'
        + "".join(cards.tile(*tile) for tile in tiles)
        + "</dl>"
    )


def _lost(steps: int) -> str:
    if not steps:
        return "none was lost"
    return f"{steps} more {'was' if steps == 1 else 'were'} lost"


def _list(numbers: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, numbers))


def _finding(story: Story) -> str:
    """Of a diagnosis, until something else is done."""
    last = story.points[-1].window if story.points else None
    if last is None or not last.finding or story.status.done:
        return ""
    title = "<h3>What the diagnosis found</h3>"
    return f'<div class="desk-finding">{title}{_lines(last.finding)}</div>'


def _lines(finding: tuple[str, ...]) -> str:
    return f'<pre tabindex="0">{escape(chr(10).join(finding))}</pre>'


def legend(story: Story, other: Story | None = None) -> str:
    """The key to the picture, and what its numbered marks are."""
    shown = "".join(f'<li><i class="{style}"></i>{name}</li>' for style, name in KEYS)
    shown += '<li><i class="desk-key-tick">|</i>a checkpoint is written</li>'
    shown += '<li><i class="desk-key-cell"></i>the fuller a cell, the less usual</li>'
    if story.forks:
        shown += '<li><i class="desk-key-rate"></i>the best remedy that is known</li>'
    if other:
        shown += (
            '<li><i class="desk-key-val desk-key-dashed"></i>validation of the other record</li>'
        )
    marks = lanes.marks(lanes.spans(story.points))
    return f'<ul class="desk-keys">{shown}</ul>{_events(marks)}{_in_words(story)}'


def _events(marks: list[Mark]) -> str:
    if not marks:
        return ""
    rows = "".join(
        f'<li><b>{number}</b><span><i class="desk-mark-{mark.kind}" aria-hidden="true">'
        f"{SHAPES[mark.kind]}</i> {mark.seconds:.0f} s</span>"
        f"<span>{escape(mark.text)}{_folded(mark)}</span></li>"
        for number, mark in enumerate(marks, start=1)
    )
    return f'<ol class="desk-eras" aria-label="What happened, and what was done">{rows}</ol>'


def _folded(mark: Mark) -> str:
    if not mark.finding:
        return ""
    return f"<details><summary>what it found</summary>{_lines(mark.finding)}</details>"


def _in_words(story: Story) -> str:
    """The picture for who cannot see it."""
    last = story.status.cluster
    return f'<p class="desk-unseen">{escape(str(last))}</p>' if last else ""


def ledger(story: Story) -> str:
    """What every call took of the clock, and the score: nothing is paid on the way."""
    ends = [status.cluster.seconds for status in cards.statuses(story) if status.cluster]
    took = [end - start for start, end in pairwise([0.0, *ends])]
    earned = [status.reward for status in cards.statuses(story)]
    rows = [
        [_seconds(each), _seconds(end), cards.term(reward)]
        for each, end, reward in zip(took, ends, earned, strict=True)
    ]
    total = [_seconds(sum(took)), "<td></td>", cards.term(sum(earned))]
    return cards.calls("Calls", story.played, ("took, s", "clock, s", "score"), rows, total)


def _seconds(value: float) -> str:
    return f"<td>{value:.1f}</td>" if value >= 0.05 else '<td class="desk-none">·</td>'


def grade(given: Grade) -> str:
    """The final score, what had happened, and what each course is worth."""
    inputs = given.components[0].inputs if given.components else {}
    facts = [
        ("Happened", str(given.hidden.get("happened", words.NONE))),
        ("At", str(given.hidden.get("at", words.NONE))),
        ("This run", _steps(inputs.get("steps"))),
        ("Nothing done", _steps(inputs.get("steps_of_nothing"))),
        ("Best remedy", _steps(inputs.get("steps_of_best"))),
    ]
    loss = words.number(inputs.get("hidden_test_loss"))
    return cards.graded(
        given.model_copy(update={"hidden": {}}), [*facts, ("Hidden-test loss", loss)]
    )


def _steps(value: float | None) -> str:
    return words.NONE if value is None else f"{value:.0f} steps"
