"""The desk's pieces of HTML. Pure functions of what they show; all text from outside is escaped."""

# pyright: strict

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from itertools import accumulate

from ml_trainer_env.models import Grade, RewardTerms, TrainingStatus
from ml_trainer_env.server.desk import words
from ml_trainer_env.server.desk.story import Era, Story
from ml_trainer_env.server.episode.played import Played
from ml_trainer_env.server.episode.signals import DEFINITIONS

FAULTS = re.compile(r"; (?!got )")  # between the faults of one message: `a: ...; got 11; b: ...`
TERMS = tuple(RewardTerms.model_fields)
SPINNER = '<i class="desk-spin" role="img" aria-label="busy"></i>'


def masthead() -> str:
    """What this page is."""
    return (
        '<header class="desk-masthead"><h1>ML Training Optimizer</h1>'
        "<p>Run the training of a real neural network: choose how it learns, train, watch the "
        "curves, change what you would, and submit the best checkpoint. Or operate a cluster that "
        "trains one, and on which something may go wrong.</p></header>"
    )


def step(number: int | None, title: str, text: str = "") -> str:
    """The heading of a card of controls; a number where it is a step on the way."""
    told = f"<p>{escape(text)}</p>" if text else ""
    counted = f'<span aria-hidden="true">{number}</span>' if number else ""
    return f'<div class="desk-step"><h2>{counted}{escape(title)}</h2>{told}</div>'


def note(text: str = "", kind: str = "info") -> str:
    """One message beside the controls that it is about. `kind`: info, busy, good, error or full."""
    if not text:
        return ""
    role = "alert" if kind in ("error", "full") else "status"
    mark = {"info": "i", "busy": SPINNER, "good": "✓", "error": "!", "full": "!"}[kind]
    lines = FAULTS.split(text) if kind == "error" else [text]
    faults = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return (
        f'<div class="desk-note desk-{kind}" role="{role}"><b aria-hidden="true">{mark}</b>'
        f"<div>{faults}</div></div>"
    )


def empty(title: str, text: str, code: str = "") -> str:
    """A state in which there is nothing to show: what it is, and what to do."""
    shown = f'<pre tabindex="0"><code>{escape(code)}</code></pre>' if code else ""
    return f'<div class="desk-empty"><h2>{escape(title)}</h2><p>{escape(text)}</p>{shown}</div>'


def looking(what: str) -> str:
    """The first moment, before the server has answered."""
    return f'<div class="desk-empty"><p>{SPINNER} {escape(what)}</p></div>'


def full(reason: str) -> str:
    """No place is free."""
    return (
        '<div class="desk-empty desk-full" role="alert"><h2>The server is full</h2>'
        f"<p>{escape(reason[:1].upper() + reason[1:])}.</p>"
        "<p>Until then you can watch what others do: the tab Watch shows every open episode, and "
        "Records those that are over.</p></div>"
    )


# What an episode is like -------------------------------------------------------------------------


def summary(story: Story, *, busy: bool = False) -> str:
    """The head of a board: which task, how it goes, what is left, the numbers that count."""
    status = story.status
    return (
        '<section class="desk-summary" aria-label="Summary">'
        '<div class="desk-title"><div>'
        f"<h2>{escape(story.task.title)}</h2>"
        f"<p>{escape(status.task_id)}, seed {story.seed}. {escape(story.task.aim)}</p></div>"
        f"{_signal(status, busy=busy)}</div>"
        f"{_diverged(status)}{_budget(story)}{_tiles(status)}</section>"
    )


def _signal(status: TrainingStatus, *, busy: bool) -> str:
    mark, tone = words.SIGNALS[status.convergence_signal]
    word = status.convergence_signal.replace("_", " ")
    spinner = SPINNER if busy else ""
    return (
        f'<div class="desk-signal desk-{tone}"><strong>{spinner}<span aria-hidden="true">{mark}'
        f"</span> {word}</strong><small>{escape(DEFINITIONS[status.convergence_signal])}</small>"
        "</div>"
    )


def _diverged(status: TrainingStatus) -> str:
    if not status.is_diverged or status.done:
        return ""
    return note(
        "Training has diverged: the loss exploded, and that epoch is spent. Lower the learning "
        "rate or change the configuration: training then resumes from the best checkpoint.",
        "error",
    )


def _budget(story: Story) -> str:
    status, most = story.status, story.task.tool_calls
    calls = most - status.tool_calls_left
    return (
        '<div class="desk-budget">'
        + bar("Epochs", status.current_epoch, status.max_epochs)
        + bar("Tool calls", calls, most)
        + "</div>"
    )


def bar(label: str, spent: int, of: int) -> str:
    """How much of something is spent."""
    return (
        f'<div><span>{label}</span><div class="desk-bar" role="progressbar" aria-label="{label} '
        f'spent" aria-valuemin="0" aria-valuemax="{of}" aria-valuenow="{spent}">'
        f'<i style="width:{spent / of:.1%}"></i></div>'
        f"<span><b>{spent}</b> of {of}, {of - spent} left</span></div>"
    )


def _tiles(status: TrainingStatus) -> str:
    config = status.current_config
    best = f"epoch {status.best_val_epoch}" if status.best_val_epoch else "no epoch yet"
    rate = words.short(config.learning_rate_in_force) if config else words.NONE
    tiles = (
        ("Best val accuracy", words.percent(status.best_val_accuracy), best),
        (
            "Val accuracy",
            words.percent(status.val_accuracy),
            f"loss {words.number(status.val_loss)}",
        ),
        (
            "Train accuracy",
            words.percent(status.train_accuracy),
            f"loss {words.number(status.train_loss)}",
        ),
        ("Gap", words.percent(status.generalization_gap), "clean train − val"),
        ("Learning rate", rate, f"{config.lr_schedule}, next epoch" if config else "not set"),
    )
    return '<dl class="desk-tiles">' + "".join(tile(*each) for each in tiles) + "</dl>"


def tile(name: str, value: str, detail: str) -> str:
    """One number that counts."""
    return (
        f"<div><dt>{escape(name)}</dt><dd><b>{escape(value)}</b>"
        f"<small>{escape(detail)}</small></dd></div>"
    )


def legend(story: Story | None, other: Story | None = None) -> str:
    """The key to the curves, and the numbered configurations that ruled."""
    keys = (
        ("desk-key-val", "validation"),
        ("desk-key-train", "train"),
        ("desk-key-rate", "learning rate"),
    )
    shown = "".join(f'<li><i class="{style}"></i>{name}</li>' for style, name in keys)
    shown += '<li><i class="desk-key-best">★</i>the epoch that is graded</li>'
    if story and story.pool:
        shown += '<li><i class="desk-key-pool"></i>validation of the recipes of the pool</li>'
    if other:
        shown += '<li><i class="desk-key-other"></i>dashed: the other record</li>'
    ruled = story.eras if story else ()
    return f'<ul class="desk-keys">{shown}</ul>{_eras(ruled)}{_in_words(story)}'


def _eras(ruled: Sequence[Era]) -> str:
    if not ruled:
        return ""
    rows = "".join(
        f"<li><b>{number}</b><span>epoch{'' if era.first == era.last else 's'} "
        f"{era.first}{'' if era.first == era.last else f'–{era.last}'}</span>"
        f"<span>{escape(era.label)}</span></li>"
        for number, era in enumerate(ruled, start=1)
    )
    return f'<ol class="desk-eras" aria-label="Configurations that ruled">{rows}</ol>'


def _in_words(story: Story | None) -> str:
    """The curves for who cannot see them."""
    if story is None or not story.points:
        return ""
    last = story.points[-1]
    return (
        f'<p class="desk-unseen">Curves of {words.plural(len(story.points), "epoch")}. The last: '
        f"train loss {words.number(last.train_loss)}, val loss {words.number(last.val_loss)}, "
        f"train accuracy {words.percent(last.train_accuracy)}, "
        f"val accuracy {words.percent(last.val_accuracy)}.</p>"
    )


# What it earned -----------------------------------------------------------------------------------


def ledger(story: Story) -> str:
    """The reward of every call, term by term."""
    given = statuses(story)
    rows = [
        [*(term(getattr(s.reward_terms, name)) for name in TERMS), term(s.reward)] for s in given
    ]
    sums = [term(sum(getattr(s.reward_terms, name) for s in given)) for name in TERMS]
    sums.append(term(sum(s.reward for s in given)))
    return calls("Reward ledger", story.played, (*TERMS, "reward"), rows, sums)


def statuses(story: Story) -> list[TrainingStatus]:
    """Of the calls that counted."""
    return [move.status for move in story.played if move.status]


def calls(
    title: str,
    played: Sequence[Played],
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    total: Sequence[str],
) -> str:
    """Every call, the latest first, with its row of cells: `rows` has those that counted."""
    if not played:
        return ""
    numbers = accumulate(1 if move.status else 0 for move in played)
    lines = [
        _row(number, move, rows[number - 1]) if move.status else _refused(move, len(heads))
        for number, move in zip(numbers, played, strict=True)
    ]
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<section class="desk-ledger" aria-label="{title}"><h2>{title}</h2>'
        '<div class="desk-scroll" tabindex="0" role="region" aria-label="Every call">'
        f'<table><thead><tr><th scope="col">#</th><th scope="col">call</th>{head}</tr></thead>'
        f"<tbody>{''.join(reversed(lines))}</tbody>"
        f'<tfoot><tr><td></td><th scope="row">total</th>{"".join(total)}</tr></tfoot>'
        "</table></div></section>"
    )


def _row(number: int, move: Played, cells: Sequence[str]) -> str:
    call = escape(words.call(move.tool, move.arguments))
    return f'<tr><td>{number}</td><th scope="row">{call}</th>{"".join(cells)}</tr>'


def _refused(move: Played, columns: int) -> str:
    """It earned nothing and is told why."""
    return (
        f'<tr class="desk-refused"><td>✕</td><th scope="row">{escape(move.tool)}</th>'
        f'<td colspan="{columns}">refused: {escape(move.error or "")}</td></tr>'
    )


def term(value: float) -> str:
    """A cell of what was earned."""
    tone = "up" if value > 0 else "down" if value < 0 else "none"
    return f'<td class="desk-{tone}">{words.signed(value)}</td>'


def grade(given: Grade) -> str:
    """The final score with all that it is made of."""
    facts = (
        ("Graded epoch", str(given.graded_epoch or words.NONE)),
        ("Val accuracy", words.percent(given.val_accuracy)),
        ("Gap", words.percent(given.generalization_gap)),
        ("Hidden-test accuracy", words.percent(given.hidden_test_accuracy)),
    )
    return graded(given, facts)


def graded(given: Grade, facts: Sequence[tuple[str, str]]) -> str:
    """A grade, with these facts."""
    parts = "".join(
        f"<li><span>{escape(part.name)}</span>"
        f'<div class="desk-bar"><i style="width:{part.value:.1%}"></i></div>'
        f"<b>{part.value:.3f}</b><small>weight {part.weight:g}; "
        f"{escape(', '.join(f'{name} {value:.4g}' for name, value in part.inputs.items()))}</small>"
        "</li>"
        for part in given.components
    )
    shown = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    by = "" if given.submitted_by == "agent" else " The last tool call submitted by itself."
    return (
        '<section class="desk-grade" aria-label="Grade"><div class="desk-score">'
        f"<small>final score</small><b>{given.score:.3f}</b><small>of 1</small></div>"
        f"<div><ul>{parts}</ul><dl>{shown}</dl>"
        f"{_revealed(given)}<p>{escape(given.explanation)}{by}</p></div></section>"
    )


def _revealed(given: Grade) -> str:
    """What an instance had hidden."""
    if not given.hidden:
        return ""
    facts = "".join(
        f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_value(value))}</dd></div>"
        for name, value in given.hidden.items()
    )
    return f'<h3>What was hidden</h3><dl class="desk-hidden">{facts}</dl>'


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def remark(text: str) -> str:
    """What an agent said, word for word."""
    return f'<blockquote class="desk-remark">{escape(text)}</blockquote>' if text else ""
