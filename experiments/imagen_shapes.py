"""Does a small text-conditional model draw what it is told? Guidance and thresholding, on drawn shapes.

    python -m experiments.imagen_shapes

A 16x16 model of captions such as "a small red circle on blue" (configs/imagen.py:shapes, minutes on two CPU cores), asked for
the captions of held-out drawings. Shapes are classified by a random forest of outlines, trained on drawings; colours by the
palette's nearest colour, most frequent on the border (ground) and among the other pixels (shape). What these see in the
real held-out drawings is printed beside what they see in samples, for guidance 1 and 3, with static and dynamic thresholds
(Saharia et al. 2022, section 2.3, arXiv 2205.11487). Clipped is the share of pixel values at the ends of the range:
over-guided images saturate.

Interrupted, it goes on where it was when run again. What it found is in docs/systems.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image, ImageDraw
from sklearn.ensemble import RandomForestClassifier

from diffusion_jax import data, training
from diffusion_jax.data.files import tile
from diffusion_jax.data.sources.shapes import CLASSES, COLOURS
from diffusion_jax.inference import Generator, find
from diffusion_jax.inference.requests import ask
from diffusion_jax.training.recipes import load_recipe

from . import common

_OUT = flags.DEFINE_string("out", "runs/imagen_shapes", "Where the run, the picture and metrics.json go.")
_VARIANT = flags.DEFINE_enum("variant", "full", ["full", "tiny"], "tiny: seconds, to see that everything works.")
_NUM = flags.DEFINE_integer("num", 256, "Samples of each setting.")
_RECIPE = Path(__file__).resolve().parent.parent / "configs" / "imagen.py"
SETTINGS = [(1.0, "static"), (1.0, "dynamic"), (3.0, "static"), (3.0, "dynamic")]
_COLUMNS = 12


def captions(tokens: np.ndarray, vocabulary: list[str]) -> list[list[str]]:
    """The words of one-hot texts [N, L, D]."""
    return [[vocabulary[i] for i in row[:, : len(vocabulary)].argmax(-1)] for row in tokens]


def colours(images: np.ndarray) -> np.ndarray:
    """(shape's, ground's) colour, as places in the palette, of images uint8 [N, H, W, 3]: int [N, 2]."""
    palette = np.array(list(COLOURS.values()), np.float32)
    nearest = ((images[:, :, :, None].astype(np.float32) - palette) ** 2).sum(-1).argmin(-1)
    found = []
    for picture in nearest:
        border = np.concatenate([picture[0], picture[-1], picture[1:-1, 0], picture[1:-1, -1]])
        ground = np.bincount(border, minlength=len(palette)).argmax()
        rest = picture[picture != ground]
        found.append((np.bincount(rest, minlength=len(palette)).argmax() if rest.size else ground, ground))
    return np.array(found)


def outlines(images: np.ndarray) -> np.ndarray:
    """What the shapes look like, whatever their colours, places, sizes and turns: float [N, features].

    A pixel's share of the shape is where its colour lies between the ground's and the shape's; features are shares by
    distance from the centre, in units of the shape's size, and the strengths of its angular frequencies near and far.
    """
    palette, (rows, columns) = np.array(list(COLOURS.values()), np.float64), np.indices(images.shape[1:3])
    found = []
    for image, (shape, ground) in zip(images.astype(np.float64), colours(images), strict=True):
        along = palette[shape] - palette[ground]
        cover = np.clip((image - palette[ground]) @ along / max(along @ along, 1.0), 0, 1) + 1e-9
        mass = cover.sum()
        across, down = columns - (cover * columns).sum() / mass, rows - (cover * rows).sum() / mass
        distance, angle = np.hypot(across, down) / np.sqrt(mass), np.arctan2(down, across)
        far = distance > np.sqrt((cover * distance**2).sum() / mass)
        waves = [abs((cover * part * np.exp(1j * k * angle)).sum()) / mass for part in (far, ~far) for k in range(2, 7)]
        rings, _ = np.histogram(distance, bins=np.linspace(0, 1.2, 9), weights=cover / mass)
        found.append([*rings, *waves, np.sqrt(mass), cover[distance < 0.2].mean() if (distance < 0.2).any() else 1.0])
    return np.array(found)


def agreements(forest: RandomForestClassifier, images: np.ndarray, words: list[list[str]]) -> dict[str, float]:
    """The shares of images in which shape, its colour and the ground's are as the words say."""
    names = list(COLOURS)
    seen = [CLASSES[label] for label in forest.predict(outlines(images))]
    drawn = [(names[a], names[b]) for a, b in colours(images)]
    said = [(shape, colour, ground) for _, _, colour, shape, _, ground in words]
    right = np.array([(s == w[0], c == w[1], g == w[2]) for s, (c, g), w in zip(seen, drawn, said, strict=True)])
    clipped = float(np.isin(images, (0, 255)).mean())
    return dict(zip(("shape", "colour", "ground"), right.mean(0).tolist(), strict=True)) | {"clipped": clipped}


def train_forest(config: dict, count: int) -> RandomForestClassifier:
    """A classifier of the drawings' shapes."""
    batch = next(data.from_config(config["data"], seed=1).one_pass(count, limit=count))
    return RandomForestClassifier(200, min_samples_leaf=2, random_state=0).fit(outlines(batch["image"]), batch["label"])


def study(out: Path, variant: str, num: int) -> dict:
    """Train, sample in every setting, measure; returns what is written to out/metrics.json."""
    config = load_recipe(f"{_RECIPE}:shapes{',tiny' if variant == 'tiny' else ''}")
    training.train(config, out / "run")
    runs = find([str(out / "run")])
    params, _ = runs.load()
    pipeline = runs.runs[0].pipeline("test")
    texts, _ = ask(runs.cascade.conditioners, runs.runs[0].data, num)
    vocabulary = list(config["data"]["source"]["vocabulary"])
    words = captions(texts(np.arange(num))["text"], vocabulary)
    real = next(pipeline.one_pass(num, limit=num))["image"]
    forest = train_forest(config, 3000 if variant == "full" else 30)
    found, shown = {"real": agreements(forest, real, words)}, [("real", real)]
    for guidance, threshold in SETTINGS:
        chosen = find([str(out / "run")], sampling={"guidance": [guidance], "threshold": [threshold]})
        generator = Generator(chosen.cascade, params, batch_size=64)
        images = np.concatenate([drawn.images[-1] for drawn in generator(range(num), texts)])
        name = f"guidance {guidance:g}, {threshold}"
        found[name] = agreements(forest, images, words)
        shown.append((name, images))
    (out / "metrics.json").write_text(json.dumps(found, indent=2) + "\n")
    picture(shown, words).save(out / "text_shapes.png", optimize=True)
    return found


def picture(shown: list[tuple[str, np.ndarray]], words: list[list[str]]) -> Image.Image:
    """A row of images for each setting, the same captions in the same columns."""
    scale, gap, left, top = 4, 2, 130, 46
    side = shown[0][1].shape[1] * scale + gap
    sheet = Image.new("RGB", (left + _COLUMNS * side + gap, top + len(shown) * (side + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (_, size, colour, shape, _, ground) in enumerate(words[:_COLUMNS]):
        for line, text in enumerate((size, f"{colour} {shape}"[:11], f"on {ground}")):
            pen.text((left + column * side + 2, 2 + 14 * line), text, fill=0)
    for row, (name, images) in enumerate(shown):
        pen.text((4, top + row * (side + gap) + side // 2 - 6), name, fill=0)
        sheet.paste(
            Image.fromarray(tile(images[:_COLUMNS], columns=_COLUMNS, gap=gap, scale=scale)), (left, top + row * (side + gap))
        )
    return sheet


def main() -> str:
    """Run the study and say where to look."""
    out = Path(_OUT.value)
    found = study(out, _VARIANT.value, _NUM.value)
    names = ("shape", "colour", "ground", "clipped")
    rows = [f"{name:24s}" + "".join(f"{values[key]:10.3f}" for key in names) for name, values in found.items()]
    head = f"{'':24s}" + "".join(f"{name:>10s}" for name in names)
    return "\n".join([head, *rows, "", f"picture: {out / 'text_shapes.png'}", f"all numbers: {out / 'metrics.json'}"])


if __name__ == "__main__":
    common.run_program("imagen_shapes", main)
