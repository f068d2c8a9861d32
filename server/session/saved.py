"""Where open episodes stand, so that another session can go on from there.

One mechanism for two uses: a fork goes on beside the episode, and a session that was lost is
resumed in its place. Guarantees:
- Both need the episode's key, which is drawn at random and told to its session alone. An id is a
  name that the client chooses and others may see: it opens nothing.
- Two open episodes of a server never have the same id, and only the session that holds an episode
  changes what is saved of it. An action that can no longer be saved has not happened.
- An episode is saved after every finished action, never in the middle of one; what an interrupted
  action had trained is remembered as any epoch is, and not trained again.

With a folder, an episode stays in it when its session is closed or the server is killed, until it
is graded or its session begins another. Several servers may have the same folder: a file names the
server that holds its episode, and whichever of them is asked to resume it takes it from the other.
The weights are not in it: whoever trains on has them, or trains them again, to the same bits.
"""

# pyright: strict

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import tempfile
import threading
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import filelock
from pydantic import BaseModel, ConfigDict, ValidationError

from ml_trainer_env.events import Settings
from ml_trainer_env.models import (
    EpochRecord,
    TrainingConfig,
)
from ml_trainer_env.server.episode.schedules import RunningSchedule
from ml_trainer_env.server.episode.situation import Situation
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.runs import Run
from ml_trainer_env.server.tasks import Task
from ml_trainer_env.server.validation import ActionError, InvalidArguments, shown
from ml_trainer_env.task_ids import TaskId

R = TypeVar("R", bound="_Holder")

log = logging.getLogger(__name__)

MAX_FILES = 4096  # the oldest go first; each is a few kilobytes
KEY_BYTES = 24  # of randomness
PATIENCE = 2.0  # seconds to wait for another server that saves
POLL = 0.002  # seconds
SUFFIX = ".json"
OVER = ".over"  # what is left of an episode that was resumed and has ended
LOCKED = "another server has locked the folder of episodes for seconds; try again"
RESUMED = "the episode goes on in another session, which has resumed it"


@dataclass(frozen=True, slots=True)
class Saved:
    """An episode as it stood after its last finished action."""

    episode_id: str
    task: Task
    seed: int
    now: Situation


class _Holder(BaseModel):
    """Of a file: the server that has the episode."""

    holder: str = ""  # until another version's is resumed


class _Entry(_Holder):
    """A file: all of `Saved`, and nothing that opens it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    episode_id: str
    task_id: TaskId
    task_version: int
    seed: int
    training: str  # its key
    history: tuple[EpochRecord, ...]
    config: TrainingConfig | None
    schedule: RunningSchedule | None
    settings: Settings | None = None
    is_diverged: bool
    calls: int
    epochs_shared: int
    attempt: int


def nothing() -> None:
    """What a session gives up that has not begun."""


@dataclass(slots=True, eq=False)
class Held:
    """One session's hold on one episode. Void once closed, or once another session resumed it."""

    episode_id: str
    key: str
    give_up: Callable[[], object] = nothing  # called before another session takes it over
    over: bool = False
    resumed: bool = False  # so there may be a session, of another server too, that had it before


class SavedEpisodes:
    """Any thread may call. Without a folder, only episodes that are open."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._me = secrets.token_hex(8)  # this server, in files
        self._open: dict[str, Saved] = {}  # by the digest of the key
        self._holders: dict[str, Held] = {}  # the same
        self._names: dict[str, Held] = {}  # ids in use
        self._lock = threading.Lock()  # never held while a file is read or written
        self._files = threading.Lock()  # held while one is changed
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            for suffix in (SUFFIX, OVER):
                for file in _by_age(folder, suffix)[:-MAX_FILES]:
                    file.unlink(missing_ok=True)

    def hold(self, episode_id: str | None = None, instead_of: Held | None = None) -> Held:
        """A new episode, under a key of its own. `instead_of`: what the session gives up for it.

        Raises `InvalidArguments` for an id that another open episode has.
        """
        held = Held(episode_id or str(uuid.uuid4()), secrets.token_urlsafe(KEY_BYTES))
        with self._lock:
            if self._names.get(held.episode_id) not in (None, instead_of):
                raise InvalidArguments(
                    f"episode_id: {shown(episode_id)} is in use by another open session; choose "
                    "another one, or leave it out"
                )
            self._register(held)
        return held

    def take_over(self, key: str) -> Held:
        """The hold on an episode that may be open elsewhere: that session loses it.

        The id stays, unless it is in use for another episode by now. Raises `InvalidArguments`, and
        `ActionError` where the folder cannot be written.
        """
        digest = _digest(key)
        self._known(key, "resume")
        while True:
            with self._lock:
                before = self._holders.get(digest)
            if before:
                before.give_up()  # after which no action of it is saved any more
            self._take_from_another_server(digest)
            known = self._known(key, "resume")
            with self._lock:
                if self._holders.get(digest) is not before:
                    continue  # somebody else has taken it over meanwhile, and is to give it up
                if before:
                    before.over = True
                    self._release_name(before)
                taken = known.episode_id in self._names
                held = Held(str(uuid.uuid4()) if taken else known.episode_id, key, resumed=True)
                self._register(held)
            return held

    def find(self, key: str, option: str, begin: Callable[[Task, int], Run]) -> Saved:
        """Where the episode stands; `option` is what brought the key.

        Raises `ActionError`.
        """
        known = self._known(key, option)
        return known if isinstance(known, Saved) else _read_back(known, option, begin)

    def save(self, held: Held, saved: Saved) -> None:
        """Replace what was saved; a graded episode is forgotten. Never raises for a full disk.

        Raises `ActionError` where the session does not hold the episode any more: what it has done
        since has not happened.
        """
        digest = _digest(held.key)
        try:
            with self._among_servers():
                if held.over or not self._is_ours(digest):
                    raise ActionError(RESUMED)
                if saved.now.grade is not None:
                    self._remove(held)
                elif self._folder:
                    entry = _entry(saved, self._me)
                    _write(_file(self._folder, digest), entry.model_dump_json())
        except OSError as error:
            if held.over or not self._is_ours(digest):  # files are replaced whole, so one may look
                raise ActionError(RESUMED) from None
            if saved.now.grade is not None and isinstance(error, filelock.Timeout):
                raise ActionError(LOCKED) from None  # it would be open to whoever has the key
            log.warning("%s: %s; the episode was not saved", self._folder, error)
        with self._lock:
            if saved.now.grade is not None:
                self._open.pop(digest, None)
            elif not held.over:
                self._open[digest] = saved

    def close(self, held: Held) -> None:
        """Its session has ended; the file stays."""
        with self._lock:
            self._release_name(held)
            held.give_up = nothing  # it holds the episode, which holds this
            if not held.over:
                held.over = True
                self._holders.pop(_digest(held.key), None)
                self._open.pop(_digest(held.key), None)

    def forget(self, held: Held) -> None:
        """Nobody goes on from it any more; its id is in use until it is closed."""
        with self._lock:
            if held.over:
                return
            self._open.pop(_digest(held.key), None)
        try:
            with self._among_servers():
                if self._is_ours(_digest(held.key)):
                    self._remove(held)
        except OSError as error:
            log.warning("%s: %s; an episode was not removed", self._folder, error)

    def _known(self, key: str, option: str) -> Saved | _Entry:
        """Of an episode that this server holds, memory knows more than a file on a full disk."""
        digest = _digest(key)
        entry = self._read(digest, _Entry)
        with self._lock:
            saved = self._open.get(digest)
        known = saved if entry is None or entry.holder == self._me else None
        known = known or entry
        if known is None or self._is_over(digest):
            raise InvalidArguments(
                f"{option}: no episode that can go on has this key; a session's state has its own, "
                "nothing else shows it, and an id is no key"
            )
        return known

    # Among servers -------------------------------------------------------------------------------

    @contextmanager
    def _among_servers(self) -> Generator[None, None, None]:
        """No other thread or server changes a file meanwhile. Raises `OSError`."""
        if self._folder is None:
            yield
            return
        lock = filelock.FileLock(self._folder / ".lock", PATIENCE, poll_interval=POLL)
        with self._files, lock:
            yield

    def _take_from_another_server(self, digest: str) -> None:
        """From one that has it. Raises `ActionError` where that cannot be written down."""
        try:
            with self._among_servers():
                entry = self._read(digest, _Entry)
                if self._folder is None or entry is None or entry.holder == self._me:
                    return
                ours = entry.model_copy(update={"holder": self._me})
                _write(_file(self._folder, digest), ours.model_dump_json())
        except OSError as error:
            log.warning("%s: %s; an episode was not resumed", self._folder, error)
            raise ActionError("resume: the server cannot write its folder; try again") from None
        with self._lock:
            self._open.pop(digest, None)  # of a session here, before that server took it

    def _is_ours(self, digest: str) -> bool:
        """Whether no other server has taken it; a file that somebody removed says nothing."""
        file = self._read(digest, _Holder)
        return not self._is_over(digest) if file is None else file.holder == self._me

    def _is_over(self, digest: str) -> bool:
        """Whether it has ended after it had been resumed."""
        return self._folder is not None and _file(self._folder, digest, OVER).exists()

    def _remove(self, held: Held) -> None:
        """Its file; a server that had it before may still ask, and is told by what is left."""
        if self._folder is None:
            return
        digest = _digest(held.key)
        if held.resumed:
            _file(self._folder, digest, OVER).touch()
        _file(self._folder, digest).unlink(missing_ok=True)

    def _register(self, held: Held) -> None:
        """Needs the lock."""
        self._names[held.episode_id] = held
        self._holders[_digest(held.key)] = held

    def _release_name(self, held: Held) -> None:
        """Unless another episode has it by now. Needs the lock."""
        if self._names.get(held.episode_id) is held:
            del self._names[held.episode_id]

    def _read(self, digest: str, what: type[R]) -> R | None:
        if self._folder is None:
            return None
        file = _file(self._folder, digest)
        try:
            return what.model_validate_json(file.read_bytes())
        except OSError:
            return None
        except ValidationError as error:
            log.warning("%s: %s; it counts as absent", file, error)
            return None


def _file(folder: Path, digest: str, suffix: str = SUFFIX) -> Path:
    return folder / f"{digest}{suffix}"


def _by_age(folder: Path, ending: str) -> list[Path]:
    """The oldest first."""
    found: list[tuple[float, Path]] = []
    for file in folder.glob(f"*{ending}"):
        with suppress(FileNotFoundError):  # of another server, which has just removed it
            found.append((file.stat().st_mtime, file))
    return [file for _, file in sorted(found)]


def _digest(key: str) -> str:
    """What is compared and written down, so that neither time nor a folder tells a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _read_back(entry: _Entry, option: str, begin: Callable[[Task, int], Run]) -> Saved:
    """Raises `ActionError` where the same bits cannot come of it."""
    task = task_of(entry.task_id)
    training = begin(task, entry.seed)
    for record in entry.history:
        training = training.after(record)
    if training.key != entry.training or task.version != entry.task_version:
        raise ActionError(
            f"{option}: this episode was trained by another version of the task or the engine, or "
            "on another kind of processor"
        )
    now = Situation(
        training=training,
        config=entry.config,
        schedule=entry.schedule,
        settings=entry.settings,
        is_diverged=entry.is_diverged,
        calls=entry.calls,
        epochs_shared=entry.epochs_shared,
        attempt=entry.attempt,
    )
    return Saved(entry.episode_id, task, entry.seed, now)


def _entry(saved: Saved, holder: str) -> _Entry:
    now = saved.now
    return _Entry(
        episode_id=saved.episode_id,
        task_id=saved.task.task_id,
        task_version=saved.task.version,
        seed=saved.seed,
        training=now.training.key,
        history=now.training.history,
        config=now.config,
        schedule=now.schedule,
        settings=now.settings,
        is_diverged=now.is_diverged,
        calls=now.calls,
        epochs_shared=now.epochs_shared,
        attempt=now.attempt,
        holder=holder,
    )


def _write(file: Path, text: str) -> None:
    """Aside and then into place: whoever is killed here leaves the old file whole."""
    descriptor, aside = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
        Path(aside).replace(file)
    except OSError:
        Path(aside).unlink(missing_ok=True)
        raise
