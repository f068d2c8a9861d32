"""What happens in a server, counted for whoever watches it: `server/doors/metrics.py` tells it.

Each is told of at the place where it happens. No label names a session, a task or anything that a
client chose. Any thread may call. What there is at the moment (sessions, who waits, states) nobody
counts: it is looked at when somebody asks.
"""

# pyright: strict

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

COUNTED = CollectorRegistry()
UNKNOWN = "unknown"  # for every tool that there is not: a client may make up any name

_epochs = Counter(
    "ml_trainer_epochs_total",
    "Epochs that episodes got: trained here, or shared, their record being known",
    ["source"],
    registry=COUNTED,
)
EPOCHS_TRAINED = _epochs.labels("trained")
EPOCHS_SHARED = _epochs.labels("shared")
EPOCHS_REPEATED = Counter(
    "ml_trainer_epochs_repeated_total",
    "Epochs trained again, on the way to new ones, because no state was at hand",
    registry=COUNTED,
)
TRAINING_SECONDS = Counter(
    "ml_trainer_training_seconds_total",
    "Seconds that the epochs with source trained took, whatever their threads",
    registry=COUNTED,
)
_grades = Counter(
    "ml_trainer_grades_total",
    "Grades that submissions got: computed here, or shared, being known",
    ["source"],
    registry=COUNTED,
)
GRADES_COMPUTED = _grades.labels("computed")
GRADES_SHARED = _grades.labels("shared")
CORE_SECONDS = Counter(
    "ml_trainer_core_seconds_total",
    "Seconds for which cores were lent, added up over the cores",
    registry=COUNTED,
)
CORE_WAIT_SECONDS = Histogram(
    "ml_trainer_core_wait_seconds",
    "Seconds from asking for cores to getting them, once a slice of a training",
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60),
    registry=COUNTED,
)
TRAININGS_REFUSED = Counter(
    "ml_trainer_trainings_refused_total",
    "Trainings that were told to come again, because too many waited for a core",
    registry=COUNTED,
)
SESSIONS_REFUSED = Counter(
    "ml_trainer_sessions_refused_total",
    "Sessions that were told to come again, because all places were taken",
    registry=COUNTED,
)
TOOL_CALL_SECONDS = Histogram(
    "ml_trainer_tool_call_seconds",
    "Seconds that calls of tools took, waiting for a core included, refused ones too",
    ["tool"],
    buckets=(0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300),
    registry=COUNTED,
)
WORKERS_LOST = Counter(
    "ml_trainer_workers_lost_total",
    "Workers that were found dead, in the middle of an order or before it",
    registry=COUNTED,
)
FAILURES = Counter(
    "ml_trainer_failures_total",
    "Mistakes of the server itself, each with its traceback in the log",
    registry=COUNTED,
)
ENGINE = Gauge(
    "ml_trainer_engine_info",
    "1: what trains, known once the first episode has begun; equal fingerprints give equal bits",
    ["fingerprint", "precision"],
    registry=COUNTED,
)
