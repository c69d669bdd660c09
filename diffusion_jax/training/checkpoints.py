"""Checkpoints: asynchronous, atomic, held to checksums, restored onto any mesh, with a way back when the newest is broken."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax import processes
from diffusion_jax.errors import CheckpointError
from diffusion_jax.files import read_json
from diffusion_jax.identity import versions
from diffusion_jax.lazy import lazy
from diffusion_jax.training.integrity import summed_path, verify
from diffusion_jax.training.mesh import path_name
from diffusion_jax.training.state import TrainState

logger = logging.getLogger(__name__)
ocp = lazy("orbax.checkpoint")

# For what the checksums do not show, such as a state of other shapes, Orbax, TensorStore and the file system raise errors of
# many kinds, and Orbax a bare Exception: whatever it is, it is told in one line, and an older checkpoint is tried.
_UNREADABLE = Exception


def finished_steps(workdir: str | Path) -> list[int]:
    """Return the steps with a finished checkpoint in a run's directory, oldest first."""
    path = Path(workdir) / "checkpoints"
    return sorted(int(entry.name) for entry in path.glob("*") if entry.is_dir() and entry.name.isdigit())


def read_meta(workdir: str | Path, step: int) -> dict[str, Any]:
    """Read what was recorded beside a checkpoint: step, configuration, library versions, metric sums since the last log.

    Raises:
      CheckpointError: there is no such checkpoint, or its record is damaged.
    """
    path = Path(workdir) / "checkpoints" / str(step) / "meta" / "metadata"
    return read_json(path, "the record of a checkpoint", mend="name another --step", error=CheckpointError)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class Checkpointer:
    """The checkpoints of a run, in `workdir`/checkpoints/STEP.

    Args:
      workdir: of the run.
      keep_last: how many of the newest are kept.
      keep_every: steps whose multiples are kept for ever; 0 for none.

    Raises:
      CheckpointError: the directory cannot be written.
    """

    def __init__(self, workdir: str | Path, keep_last: int = 3, keep_every: int = 0) -> None:
        self.path = Path(workdir).resolve() / "checkpoints"
        self._keep = {"max_to_keep": keep_last, "keep_period": keep_every or None}
        self._saved: int | None = None
        self._failed: BaseException | None = None
        self._open()

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(
            **self._keep, cleanup_tmp_directories=True, todelete_subdir="trash", enable_async_checkpointing=True,
            temporary_path_class=summed_path(),
        )  # fmt: skip
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.path, options=options)
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.path}: {error.strerror}; choose a writable --workdir") from error
        self._empty_trash()
        self._note_failures()

    def _note_failures(self) -> None:
        """Keep the error of a save as soon as there is one: Orbax has its thread wait 20 minutes for the peers first."""
        wait = getattr(self._manager, "_wait_for_checkpointers", None)

        def noting() -> None:
            try:
                wait()
            except BaseException as error:
                self._failed = error
                raise

        if wait is not None:
            self._manager._wait_for_checkpointers = noting

    def _empty_trash(self) -> None:
        """Old steps are renamed into trash/ first: killed while deleting, none is left half there under its name."""
        if jax.process_index() == 0:
            shutil.rmtree(self.path / "trash", ignore_errors=True)

    def steps(self) -> list[int]:
        """Return the steps of the finished checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, step: int, config: Mapping[str, Any], sums: Mapping[str, Any] | None = None) -> None:
        """Start to save; the state may be donated as soon as this returns.

        Args:
          sums: metric sums since the last log, so that the next row of a resumed run covers what it should.

        Raises:
          CheckpointError: this or the save before it failed (a full disk, say), or the directory has this or a later step
            already, unless it was saved here just before. What was saved earlier is untouched.
        """
        self.wait()
        flat = {name: np.asarray(value).tolist() for name, value in _flat(jax.device_get(sums or {})).items()}
        meta = {"step": step, "config": dict(config), "versions": versions(), "dtypes": _dtypes(state), "sums": flat}
        meta["checksums"] = True  # a checkpoint that says so is damaged if it comes without them
        args = ocp.args.Composite(state=ocp.args.StandardSave(state.as_dict()), meta=ocp.args.JsonSave(meta))
        with self._failures():
            written = self._manager.save(step, args=args)
        again = step == self._saved and step in finished_steps(self.path.parent)
        if not (written or again):  # Orbax passes over steps that are no later than its newest
            raise CheckpointError(
                f"{self.path} has checkpoints up to step {self.steps()[-1]}, so step {step} cannot be added: choose another "
                "directory, or remove the later checkpoints"
            )
        self._saved = step

    def wait(self) -> None:
        """Wait until the save in progress is on disk; raise a `CheckpointError` if it failed."""
        with self._failures():
            while jax.process_count() > 1 and self._failed is None and self._manager.is_saving_in_progress():
                time.sleep(0.02)
            if jax.process_count() > 1 and self._failed is not None:
                raise self._failed
            self._manager.wait_until_finished()
        self._empty_trash()

    def check(self) -> None:
        """Raise a `CheckpointError` if the save in progress has failed by now; does not wait for it."""
        with self._failures():
            if self._failed is not None:
                raise self._failed
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            if processes.is_lost_peer(error):
                raise
            for leftover in self.path.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)  # it would go on holding the space that was missing
            text = str(error)
            full = any(sign in text for sign in ("RESOURCE_EXHAUSTED", "No space", "File too large", "quota"))
            good = finished_steps(self.path.parent)
            raise CheckpointError(
                f"cannot save a checkpoint to {self.path}: {'the disk is full' if full else _first_line(error)}; "
                f"make room and run the same command again, it resumes from step {good[-1] if good else 0}"
            ) from error

    def restore_latest(self, target: TrainState) -> TrainState | None:
        """Restore the newest readable state, with the target's shapes, dtypes and shardings; None if there is none.

        Broken newer checkpoints are set aside in `broken/`, beside checkpoints/; the log says so.

        Raises:
          CheckpointError: there are checkpoints, and none can be read; nothing is moved then.
        """
        steps, broken = self.steps(), []
        for step in reversed(steps):
            try:
                restored = self._restored(step, target)
            except _UNREADABLE as error:
                if processes.is_lost_peer(error):
                    raise
                broken.append(_first_line(error))
                continue
            if broken:
                logger.warning(
                    "%s; going on from checkpoint %d, the newer ones are moved to %s.",
                    "; ".join(broken), step, self.path.parent / "broken",
                )  # fmt: skip
                self._set_aside([later for later in steps if later > step])
            return restored
        if steps:
            raise CheckpointError(
                f"none of the checkpoints {steps} in {self.path} can be read ({broken[0]}); "
                "restore them from a copy, or remove the directory to start anew"
            )
        return None

    def _restored(self, step: int, target: TrainState) -> TrainState:
        verify(self.path / str(step))
        _check_dtypes(read_meta(self.path.parent, step)["dtypes"], _dtypes(target))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target.as_dict()))
        return TrainState(**self._manager.restore(step, args=args).state)

    def restore_sums(self, step: int, zeros: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metric sums saved with a step, with the shapes and dtypes of `zeros`; where there are none, `zeros`."""
        saved = read_meta(self.path.parent, step).get("sums", {})

        def found(path: tuple[Any, ...], zero: np.ndarray) -> np.ndarray:
            value = np.asarray(saved.get(path_name(path), zero), zero.dtype)
            return value if value.shape == zero.shape else zero

        return jax.tree_util.tree_map_with_path(found, dict(zeros))

    def _set_aside(self, steps: Sequence[int]) -> None:
        self._manager.close()
        if jax.process_index() == 0:
            aside = self.path.parent / "broken"
            aside.mkdir(exist_ok=True)
            for step in steps:
                number = sum(1 for _ in aside.glob(f"{step}*"))
                (self.path / str(step)).rename(aside / (f"{step}.{number}" if number else str(step)))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("broken checkpoints are set aside")
        self._open()

    def reached_preemption(self, step: int) -> bool:
        """Say whether the cluster wants all processes to stop (only under `jax.distributed`)."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def close(self, failed: bool = False) -> None:
        """Finish what is being saved.

        Args:
          failed: whether training failed, which is what is to be said then; peers are not waited for.
        """
        if failed and jax.process_count() > 1:
            return
        with contextlib.suppress(CheckpointError) if failed else contextlib.nullcontext():
            try:
                self.wait()
            finally:
                self._manager.close()


def _flat(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _dtypes(state: TrainState) -> dict[str, str]:
    return {path: str(leaf.dtype) for path, leaf in _flat(state.as_dict()).items()}


def _check_dtypes(saved: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Orbax casts silently; a state of other dtypes is another run's."""
    for path, dtype in wanted.items():
        if saved.get(path, dtype) != dtype:
            raise ValueError(f"{path} was saved as {saved[path]}, not {dtype}")


def restore_part(workdir: str | Path, target: Any, step: int) -> Any:
    """Restore some fields of a step's state, as the nested dict `target` of abstract arrays names them.

    Raises:
      CheckpointError: the checkpoint is damaged, or has other fields, shapes or dtypes.
    """
    folder = (Path(workdir) / "checkpoints").resolve() / str(step)
    verify(folder)
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    args = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(folder / "state", args=args)
    except _UNREADABLE as error:
        if processes.is_lost_peer(error):
            raise
        raise CheckpointError(f"{folder} cannot be read: {_first_line(error)}") from error


def restore_weights(workdir: str | Path, target: Any, weights: str, step: int | None = None) -> tuple[Any, int]:
    """Restore (parameters, step) alone, without the optimiser's state.

    Args:
      target: abstract parameters {group: tree}, with the shardings that they are to have: each device reads its own part.
      weights: "raw", or the label of an average.
      step: of the checkpoint; the newest good one by default, and what is wrong with newer ones is logged.

    Raises:
      CheckpointError: no checkpoint, not this step (those that exist are listed), or none that is whole.
    """
    steps = finished_steps(workdir)
    if not steps:
        raise CheckpointError(f"{workdir} has no finished checkpoint yet; train first, or check --workdir")
    if step is not None and step not in steps:
        raise CheckpointError(f"{workdir} has no checkpoint of step {step} (it has: {', '.join(map(str, steps))})")
    nested = {"params": target} if weights == "raw" else {"ema": {weights: target}}
    broken = []
    for candidate in [step] if step is not None else reversed(steps):
        try:
            found = restore_part(workdir, nested, candidate)
        except CheckpointError as error:
            broken.append(str(error))
            continue
        if broken:
            logger.warning("%s; checkpoint %d is used instead.", "; ".join(broken), candidate)
        return (found["params"] if weights == "raw" else found["ema"][weights]), candidate
    raise CheckpointError(f"{broken[0]}; no checkpoint can be read: restore it from a copy, or name another --step")
