"""The report of an evaluation: a Markdown page with its tables and pictures, from records alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

from ml_trainer_env.agents.summary import percent
from ml_trainer_env.evals import files
from ml_trainer_env.evals.results import (
    Found,
    Interval,
    Row,
    bootstrap,
    engines,
    groups,
    mean,
    paired,
    rows,
    watched,
)
from ml_trainer_env.task_ids import CLUSTER

LADDER = ("nothing", "random", "naive", "expert")  # each must do better than the one before
FAMILY_LADDER = ("nothing", "random", "constant", "expert", "oracle")
OPERATORS_LADDER = ("nothing", "random", "panic", "watchdog", "careful", "oracle")
NOISE = 2.0  # standard errors within which two accuracies count as equal
IMAGES: dict[str, tuple[int, int]] = {  # of validation and of the hidden test
    "easy_mnist": (1000, 2000),
    "medium_fashion": (1500, 2000),
    "hard_cifar": (2000, 2000),
}
OF_INSTANCES = (1000, 2000)

_COLUMNS = (
    *("agent", "attempts", "score", "95% interval", "median", "return"),
    *("val acc", "hidden test", "gap", "epochs", "seconds"),
)
_OF_CLUSTERS = (
    *("agent", "attempts", "both", "95% interval", "recovery", "95% interval"),
    *("restraint", "95% interval", "score", "seconds"),
)

NOT_MEASURED = "-"
PARTIAL = (
    f"{NOT_MEASURED}: not measured. Recovery is of instances that ask for an act, restraint of "
    "those that are best left alone; both, their harmonic mean, is undefined until some of each "
    "are played."
)


class NoResults(ValueError):
    """There is nothing to report."""


def write(found: Found, folder: Path, *, command: str | None = None) -> Path:
    """`report.md` and its pictures, in `folder`; gives the page. Raises `NoResults` and OSError."""
    if not found.results:
        raise NoResults("\n".join([f"{folder}: no whole record in it", *found.refused]))
    from ml_trainer_env.evals import plots  # of an extra

    measured = rows(found.results)
    pictures = plots.draw(measured, folder)
    page = folder / "report.md"
    text = markdown(measured, pictures, command, found.refused)
    files.write(page, text.encode(errors="replace"))  # names of files may hold any bytes
    return page


def markdown(
    found: Sequence[Row],
    pictures: Sequence[tuple[str, str]],
    command: str | None,
    refused: Sequence[str] = (),
) -> str:
    """The page. `pictures` are file names with what they show, `refused` what did not count."""
    results = [result for row in found for result in row.results]
    trained_by = engines(results)
    versions = sorted({f"{r.group} v{r.task_version}" for r in results})
    parts = ["# Evaluation"]
    if command:
        parts.append(f"```\n{command}\n```")
    one = f"Engine: {trained_by[0]}." if len(trained_by) == 1 else "Engines, each with other bits:"
    parts.append(f"Tasks: {', '.join(versions)}. {one}")
    if len(trained_by) > 1:
        parts.append("\n".join(f"{n}. {engine}" for n, engine in enumerate(trained_by, 1)))
    for group in groups(found):
        parts += [f"## {group}", table([row for row in found if row.group == group])]
    parts += ["## Checks", "\n".join(f"- {line}" for line in checks(found))]
    parts += [f"![{shown}]({name})" for name, shown in pictures]
    if refused:
        parts += ["## Not counted", "\n".join(f"- {' '.join(each.split())}" for each in refused)]
    return "\n\n".join(parts) + "\n"


def table(found: Sequence[Row]) -> str:
    """One line a player. The numbers are means over the seeds unless they say otherwise."""
    of_clusters = all(row.group.startswith(CLUSTER) for row in found)
    columns, cells = (_OF_CLUSTERS, _operator_cells) if of_clusters else (_COLUMNS, _cells)
    lines = [_line(columns), _line(["---", *["---:"] * (len(columns) - 1)])]
    lines += [_line(cells(row)) for row in found]
    if of_clusters and any(watched(row).both is None for row in found):
        lines += ["", PARTIAL]
    return "\n".join(lines)


def checks(found: Sequence[Row]) -> list[str]:
    """What must hold of any evaluation, and whether it does."""
    lines: list[str] = []
    for group in groups(found):
        of_group = [row for row in found if row.group == group]
        is_family = "/" in group
        names, ladder = (FAMILY_LADDER, _paired_ladder) if is_family else (LADDER, _ladder)
        if group.startswith(CLUSTER):
            names, ladder = OPERATORS_LADDER, _operators_ladder
        for way in dict.fromkeys(map(_circumstances, of_group)):
            compared = {row.agent: row for row in of_group if _circumstances(row) == way}
            lines += ladder(group, [compared[name] for name in names if name in compared])
        lines += _hidden(group, of_group)
    highest = max(score for row in found for score in row.scores)
    lines.append(f"Highest score: {highest:.4f} ({_verdict(highest <= 1)}: none above 1).")
    return lines


def _circumstances(row: Row) -> tuple[int, str | None]:
    return row.results[0].task_version, row.results[0].engine


def _paired_ladder(group: str, ladder: Sequence[Row]) -> list[str]:
    """Instances differ more than agents do, so agents are compared on each of them."""
    lines: list[str] = []
    for lower, higher in pairwise(ladder):
        apart = paired(lower, higher)
        if apart:
            between = bootstrap(apart)
            lines.append(
                f"{group}: {higher.label} {_score(higher)} over {lower.label} {_score(lower)}: "
                f"{fmean(apart):+.3f} ({between.low:+.3f} to {between.high:+.3f}) paired over "
                f"{len(apart)}, above 0: {_verdict(between.low > 0)}."
            )
    return lines


def _operators_ladder(group: str, ladder: Sequence[Row]) -> list[str]:
    """By the harmonic mean of recovery and restraint."""
    known = [(row, both) for row in ladder if (both := watched(row).both)]
    known.sort(key=lambda pair: pair[1].value)
    return [
        f"{group}: {lower.label} {of_lower.value:.3f} < {higher.label} {of_higher.value:.3f}, "
        f"intervals apart: {_verdict(of_lower.interval.below(of_higher.interval))}."
        for (lower, of_lower), (higher, of_higher) in pairwise(known)
    ]


def _ladder(task_id: str, ladder: Sequence[Row]) -> list[str]:
    lines: list[str] = []
    for lower, higher in pairwise(ladder):
        apart = lower.interval.below(higher.interval)
        lines.append(
            f"{task_id}: {lower.label} {_score(lower)} < {higher.label} {_score(higher)}, "
            f"intervals apart: {_verdict(apart)}."
        )
    return lines


def _hidden(group: str, found: Sequence[Row]) -> list[str]:
    """Whether choosing by validation accuracy flatters: hidden-test minus validation accuracy.

    All attempts are measured on the same two sets, so what counts as noise is the binomial error of
    the sets and not the spread over attempts.
    """
    pairs = [
        (r.val_accuracy, r.hidden_test_accuracy)
        for row in found
        for r in row.results
        if r.val_accuracy is not None and r.hidden_test_accuracy is not None
    ]
    if not pairs:
        return []
    val, hidden = (fmean(column) for column in zip(*pairs, strict=True))
    of_val, of_hidden = IMAGES.get(group, OF_INSTANCES)
    noise = NOISE * math.sqrt(val * (1 - val) / of_val + hidden * (1 - hidden) / of_hidden)
    verdict = "within noise" if abs(hidden - val) <= noise else "a real difference"
    return [
        f"{group}: hidden-test accuracy is {100 * (hidden - val):+.2f} points from validation "
        f"accuracy over {len(pairs)} attempts, {verdict} ({NOISE:g} standard errors of sets of "
        f"this size: {100 * noise:.2f} points)."
    ]


def _cells(row: Row) -> list[str]:
    results, interval = row.results, row.interval
    return [
        row.label,
        f"{len(results)}",
        f"**{fmean(row.scores):.3f}**",
        f"{interval.low:.3f} to {interval.high:.3f}",
        f"{median(row.scores):.3f}",
        f"{fmean(r.episode_return for r in results):+.3f}",
        percent(mean(r.val_accuracy for r in results)),
        percent(mean(r.hidden_test_accuracy for r in results)),
        percent(mean(r.gap for r in results)),
        f"{fmean(r.epochs for r in results):.0f}",
        f"{fmean(r.seconds for r in results):.1f}",
    ]


def _operator_cells(row: Row) -> list[str]:
    found = watched(row)
    both = f"**{found.both.value:.3f}**" if found.both else NOT_MEASURED
    cells = [both, _between(found.both.interval if found.both else None)]
    for each in (found.recovery, found.restraint):
        cells += [f"{each.value:.3f}" if each else NOT_MEASURED]
        cells += [_between(each.interval if each else None)]
    seconds = fmean(r.seconds for r in row.results)
    score = f"{fmean(row.scores):.3f}"
    return [row.label, f"{len(row.results)}", *cells, score, f"{seconds:.1f}"]


def _between(interval: Interval | None) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}" if interval else NOT_MEASURED


def _score(row: Row) -> str:
    return f"{fmean(row.scores):.3f}"


def _verdict(holds: bool) -> str:
    return "yes" if holds else "**no**"


def _line(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"
