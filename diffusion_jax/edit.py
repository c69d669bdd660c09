"""Edit images with a trained run: a model that was trained for nothing but to draw.

    python -m diffusion_jax.edit --workdir=DIR --method=sdedit --images=STROKES --strength=0.5 --out=DIR2
    python -m diffusion_jax.edit --workdir=DIR --method=ilvr --images=REFERENCES --factor=4 --out=DIR2
    python -m diffusion_jax.edit --workdir=DIR --method=repaint --images=PHOTOS --masks=MASKS --out=DIR2
    python -m diffusion_jax.edit --workdir=DIR --method=interpolate --images=FACES --between=5 --out=DIR2

sdedit       noises each image to the time --strength and samples back: 0 returns it, 1 forgets it. With --masks only what is
             white in the mask changes; --repeats takes the result as the next image.
ilvr         draws images that share the low frequencies of each image, shrunk --factor times. Below the time --stop
             nothing is held, so that detail can form.
repaint      draws what is white in the mask anew; what is black is returned exactly. --jump and --resamples say how far and
             how often the walk goes back; --resamples=1 is plain replacement.
interpolate  encodes each image and the next into noise, and decodes --between points of the way. It walks the flow
             both ways, so it needs a deterministic first-order solver (ddim or euler), and neither guidance nor threshold.

Images (png, jpeg, webp) must have the size of the run's; --fit shrinks and crops them to it. A mask has the name of its
image (another ending will do) and its size. A class-conditional model takes --labels, in turn; without them it edits as if
it had no classes, if it was trained with condition dropout.

Out come 000000.png, 000001.png, ... in the order of the images' names, grid.png with images above results, edit.json with the
settings, and manifest.jsonl with the checksum of every file. Image i is the same whatever the batch size, and an edit that was
interrupted goes on when the same command is given again. --out is a new folder, an empty one, or one that this command filled:
a folder that holds any other file is an error, and nothing in it is touched. Solver, grid, steps, guidance and threshold are
the run's own, or what the flags say.

Exit status: 0, or 2 after one line that says what is wrong.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from diffusion_jax.data.files import fitted, load_image, masked_images, named_files, tile
from diffusion_jax.errors import ConfigError, DataError, check_choice
from diffusion_jax.files import user_path
from diffusion_jax.inference import command_line, requests
from diffusion_jax.inference.cascade import StageParams
from diffusion_jax.inference.generator import mesh_of, place_batch
from diffusion_jax.inference.requests import Requests
from diffusion_jax.inference.run import Runs, find
from diffusion_jax.inference.samples import SampleFolder, check_folder
from diffusion_jax.process import Denoiser
from diffusion_jax.process.process import gaussian
from diffusion_jax.registry import build
from diffusion_jax.rng import named
from diffusion_jax.sampling import editing, latents
from diffusion_jax.spec import Spec
from diffusion_jax.systems import Denoises, Sampling, ability
from diffusion_jax.training.mesh import replicated
from diffusion_jax.values import Count, Fraction, Probability, Seed, check_options

_LOG = logging.getLogger("diffusion_jax.edit")
_RECORD = "edit.json"

METHODS = ("sdedit", "ilvr", "repaint", "interpolate")
_FLOWS = ("ddim", "euler")
"""Solvers whose walk can be turned round."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is done to which images; see the flags' help."""

    method: str
    images: str
    out: str
    masks: str | None = None
    strength: Fraction = 0.5
    repeats: Count = 1
    factor: Count = 4
    stop: Probability = 0.0
    jump: Count = 10
    resamples: Count = 10
    between: Count = 5
    fit: bool = False
    seed: Seed = 0
    batch_size: Count = 16
    conditioning: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self)
        check_choice("method", self.method, METHODS)
        if self.method == "repaint" and not self.masks:
            raise ConfigError("--method=repaint needs --masks=DIR: white is drawn anew, black is kept")
        if self.masks and self.method in ("ilvr", "interpolate"):
            raise ConfigError(f"--method={self.method} takes no --masks; sdedit and repaint do")


def edit(runs: Runs, options: Options) -> Path:
    """Edit all images, and return the path of the picture that shows them.

    Raises:
      DiffusionError: bad options or images, before parameters are loaded or anything is compiled.
    """
    system, sampling = _stage(runs, options)
    check_folder(options.out, "png", system.spec, _RECORD)
    names, images, masks = read_images(options.images, options.masks, system.spec, options.fit)
    wanted = _requests(runs, sampling, options)
    if options.method == "interpolate" and len(images) < 2:
        raise DataError(f"--method=interpolate needs two images at least; {options.images} has {len(images)}")
    if options.method == "ilvr":
        editing.low_pass(jnp.zeros((1, *system.spec.shape)), options.factor)  # a bad factor fails here
    params, steps = runs.load()
    settings = {
        **{name: value for name, value in dataclasses.asdict(options).items() if name not in ("out", "batch_size")},
        **runs.settings(params, steps)[0],
        "sampling": sampling.settings(),
        "inputs": names,
        "pixels": hashlib.sha256(images.tobytes() + (b"" if masks is None else masks.tobytes())).hexdigest(),
    }
    each, firsts = (options.between + 2, len(images) - 1) if options.method == "interpolate" else (1, len(images))
    picture = lambda results: _picture(images, masks, results, options)  # noqa: E731
    with SampleFolder(options.out, settings, "png", system.spec, _RECORD) as folder:
        missing = folder.missing(each * firsts)
        if len(missing) < each * firsts:
            _LOG.info("%d of %d results are there already", each * firsts - len(missing), each * firsts)
        rows = sorted({index // each for index in missing})
        for done, results in draw(system, params[0], sampling, options, images, masks, wanted, rows):
            folder.add(np.add.outer(each * done, np.arange(each)).ravel(), results)
            _LOG.info("%d of %d images are edited", rows.index(done[-1]) + 1, len(rows))
        return folder.finish(each * firsts, picture=picture, shown=8 * each)


def _stage(runs: Runs, options: Options) -> tuple[Any, Sampling]:
    """The system and how it is sampled; the flow where images are encoded."""
    if len(runs.cascade.stages) > 1:
        raise ConfigError("one --workdir is edited with; a cascade's base and its super-resolution are runs of their own")
    stage = runs.cascade.stages[0]
    system, sampling = stage.system, stage.sampling
    gaussian(ability(system, Denoises).process, "editing", "sample alone")
    if stage.classifier is not None:
        raise ConfigError("editing follows no classifier: leave out --classifier (--config.sampling.classifier=None)")
    if any(each.needs_data for each in system.conditioners):
        told = ", ".join(each.name for each in system.conditioners)
        raise ConfigError(f"editing takes a run that draws from noise and labels alone, this one is conditioned on {told}")
    if options.method != "interpolate":
        return system, sampling
    name = sampling.solver if isinstance(sampling.solver, str) else dict(sampling.solver)["name"]
    eta = 0.0 if isinstance(sampling.solver, str) else dict(sampling.solver).get("eta", 0.0)
    if name not in _FLOWS or eta:
        raise ConfigError(
            f"--method=interpolate encodes images by walking the solver backwards, which the solver {name!r} cannot"
            f"{' with eta > 0' if eta else ''}: use --solver=ddim or --solver=euler"
        )
    if sampling.guidance != 1:
        raise ConfigError(
            f"--method=interpolate: guidance {sampling.guidance:g} does not lead back to an image; use --guidance=1"
        )
    return system, dataclasses.replace(sampling, threshold="none")


def _requests(runs: Runs, sampling: Sampling, options: Options) -> Requests:
    """What the flags ask for; without them the conditioners' nulls: a model with condition dropout is unconditional then."""
    conditioners = runs.cascade.conditioners
    if options.conditioning:
        return requests.ask(conditioners, runs.runs[0].data, given=options.conditioning)[0]
    columns: dict[str, np.ndarray] = {}
    for each in conditioners:
        usual = each.default()
        if usual and (not each.drop or sampling.guidance != 1):
            asked = " or ".join(f"--{flag.name}" for flag in each.flags[:1])
            raise ConfigError(
                f"the model has {each.meaning}: say which with {asked}"
                + (", or set --guidance=1 to edit without" if each.drop else "")
            )
        columns |= {name: np.asarray(column) for name, column in each.null(usual).items()} if usual else {}
    return Requests(columns)


# Images ----------------------------------------------------------------------------------------------------------------


def read_images(folder: str, masks: str | None, spec: Spec, fit: bool) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    """Read (names, uint8 [N, H, W, C], masks float32 [N, H, W, 1]) of a folder's images; what is white in a mask's file is 1.

    Raises:
      DataError: no folder, no images, one of another size than the model's, or a mask that is missing or of another size.
    """
    files = named_files(user_path(folder)).values()
    found = masked_images(user_path(folder), user_path(masks)) if masks else ((None, load_image(path), None) for path in files)
    images, holes = [], []
    for path, (_, image, mask) in zip(files, found, strict=True):
        if not fit and image.shape[:2] != spec.size:
            height, width = spec.size
            raise DataError(
                f"{path} is {image.shape[1]}x{image.shape[0]}, but the model draws {width}x{height}: resize it, or give --fit"
            )
        images.append(fitted(image, spec.size, spec.channels))
        if mask is not None:
            holes.append((fitted(mask, spec.size, 1) >= 128).astype(np.float32))
    return [path.name for path in files], np.stack(images), np.stack(holes) if masks else None


def _picture(images: np.ndarray, masks: np.ndarray | None, results: np.ndarray, options: Options) -> np.ndarray:
    """Up to eight images above what became of them; of an interpolation, each pair a row."""
    if options.method == "interpolate":
        return tile(results[: 8 * (options.between + 2)], columns=options.between + 2, scale=max(1, 64 // images.shape[1]))
    shown = [images[:8], results[:8]]
    if masks is not None:
        holes = np.where(masks[:8] == 1, 128, images[:8]).astype(np.uint8)
        shown.insert(1, holes)
    return tile(np.concatenate(shown), columns=len(shown[0]), scale=max(1, 64 // images.shape[1]))


# Drawing ---------------------------------------------------------------------------------------------------------------


def draw(
    system: Denoises,
    params: StageParams,
    sampling: Sampling,
    options: Options,
    images: np.ndarray,
    masks: np.ndarray | None,
    wanted: Requests,
    rows: Sequence[int],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (int [n] of `rows`, results uint8 [n, H, W, C]) a batch at a time.

    An interpolation's row i is the pair of images i and i + 1, and gives [n * (between + 2), H, W, C], pair by pair.

    Args:
      images: uint8 [N, H, W, C].
      masks: float32 [N, H, W, 1], 1 is to be filled.
      wanted: the conditioning of each image.
      rows: which images are edited.
    """
    work, key = _METHODS[options.method], named(jax.random.key(options.seed), "edit")
    pairs = options.method == "interpolate"
    columns: dict[str, np.ndarray] = {"image": images[:-1] if pairs else images}
    columns |= {"other": images[1:]} if pairs else {}
    columns |= {} if masks is None else {"mask": masks}
    solver, grid = build("solver", sampling.solver), sampling.build_grid()

    def run(params: StageParams, rows: dict[str, jax.Array], request: Any, indices: jax.Array) -> jax.Array:
        denoise = system.denoiser(params.own, named(key, "request"), request, indices, sampling)
        encode = lambda x: system.codec.encode(params.frozen, {"image": x}, named(key, "encode"))  # noqa: E731
        floats = {name: x if name == "mask" else encode(x) for name, x in rows.items()}
        edited = work(denoise, solver, grid, named(key, "solver"), floats, indices, options)
        flat = system.codec.decode(params.frozen, edited.reshape(-1, *edited.shape[-3:]))
        return flat.reshape(*edited.shape[:-3], *flat.shape[1:])

    mesh = mesh_of(params)
    run = jax.jit(run, out_shardings=None if mesh is None else replicated(mesh))
    if len(rows):
        _LOG.info("Compiling for batches of %d; the first images follow.", options.batch_size)
    for start in range(0, len(rows), options.batch_size):
        part = np.asarray(rows[start : start + options.batch_size])
        indices = np.concatenate([part, np.repeat(part[-1:], options.batch_size - len(part))])  # one program for all batches
        columns_of = {name: column[indices] for name, column in columns.items()}
        batch = place_batch((columns_of, wanted(indices), indices), params)
        yield part, np.asarray(run(params, *batch))[: len(part)].reshape(-1, *images.shape[1:])


def _sdedit(denoise: Denoiser, solver: Any, grid: Any, key: jax.Array, rows: Any, indices: Any, given: Options) -> jax.Array:
    mask = rows.get("mask")
    return editing.sdedit(denoise, solver, grid, key, rows["image"], given.strength, mask, given.repeats, indices=indices)


def _ilvr(denoise: Denoiser, solver: Any, grid: Any, key: jax.Array, rows: Any, indices: Any, given: Options) -> jax.Array:
    return editing.ilvr(denoise, solver, grid, key, rows["image"], given.factor, given.stop, indices=indices)


def _repaint(denoise: Denoiser, solver: Any, grid: Any, key: jax.Array, rows: Any, indices: Any, given: Options) -> jax.Array:
    return editing.repaint(
        denoise, solver, grid, key, rows["image"], rows["mask"], given.jump, given.resamples, indices=indices
    )


def _interpolate(denoise: Denoiser, solver: Any, grid: Any, key: jax.Array, rows: Any, indices: Any, given: Options) -> Any:
    """[B, between + 2, H, W, C]: both ends, as they come back, and what lies between."""
    ends = [latents.encode(denoise, grid, rows[name]) for name in ("image", "other")]
    shares = jnp.linspace(0.0, 1.0, given.between + 2)
    return jnp.moveaxis(latents.interpolate(denoise, grid, *ends, shares), 0, 1)


_METHODS: Mapping[str, Callable[..., jax.Array]] = {
    "sdedit": _sdedit, "ilvr": _ilvr, "repaint": _repaint, "interpolate": _interpolate,
}  # fmt: skip


def define_flags() -> None:
    """Define the program's flags."""
    command_line.define_run_flags()
    command_line.define_conditioning_flags(leave_out=("images", "masks"))
    flags.DEFINE_string("step", None, "Checkpoint step; the newest if left out.")
    flags.DEFINE_string("method", None, f"What is done: {', '.join(METHODS)}.", required=True)
    flags.DEFINE_string("images", None, "Folder of the images.", required=True)
    flags.DEFINE_string("masks", None, "Folder of their masks, by the same names: white is drawn anew, black is kept.")
    flags.DEFINE_string("out", None, "Folder for the results; made if need be.", required=True)
    flags.DEFINE_float("strength", 0.5, "sdedit: the time in [0, 1] to which images are noised.")
    flags.DEFINE_integer("repeats", 1, "sdedit: how often the result becomes the next image.")
    flags.DEFINE_integer("factor", 4, "ilvr: how many times images are shrunk; larger holds less fast.")
    flags.DEFINE_float("stop", 0.0, "ilvr: the time in [0, 1) below which nothing is held.")
    flags.DEFINE_integer("jump", 10, "repaint: steps that a return goes back.")
    flags.DEFINE_integer("resamples", 10, "repaint: how often each stretch is walked; 1 is plain replacement.")
    flags.DEFINE_integer("between", 5, "interpolate: images between each two.")
    flags.DEFINE_bool("fit", False, "Shrink and crop images and masks to the model's size.")
    flags.DEFINE_integer("seed", 0, "Of all noise.")
    flags.DEFINE_integer("batch_size", 16, "Images at a time.")


def _work(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    fields = {field.name: values[field.name] for field in dataclasses.fields(Options) if field.name != "conditioning"}
    options = Options(**fields, conditioning=command_line.conditioning(values, leave_out=("images", "masks")))
    return str(edit(find(**command_line.run_options(values, overrides)), options))


if __name__ == "__main__":
    command_line.run_program("edit", define_flags, _work)
