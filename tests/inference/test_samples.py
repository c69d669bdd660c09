"""Folders of samples: what is there, what is not ours, and what a kill leaves."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.files import png_of
from diffusion_jax.errors import ConfigError, DataError, DiffusionError
from diffusion_jax.identity import differences
from diffusion_jax.inference import SampleFolder, manifest, open_samples
from diffusion_jax.inference.manifest import Manifest
from diffusion_jax.inference.samples import check_folder
from diffusion_jax.spec import Spec

SPEC = Spec.image((4, 5), 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, *SPEC.shape), np.uint8)
LABELS = np.arange(12) % 3


def fill(path, format: str, indices, num: int | None = None, seed: int = 0, batch: int = 4) -> None:
    """Draw these samples, and finish the first `num`, if it is given."""
    indices = np.asarray(indices)
    with SampleFolder(path, {"seed": seed}, format, SPEC) as folder:
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            folder.add(part, IMAGES[part])
        folder.flush()
        if num is not None:
            folder.finish(num, LABELS[:num])


def missing(path, format: str, num: int = 12) -> list[int]:
    with SampleFolder(path, {"seed": 0}, format, SPEC) as folder:
        return folder.missing(num)


def complete(path, format: str, num: int = 12) -> None:
    """Draw what is missing; what is there then is what it should be."""
    fill(path, format, missing(path, format, num), num, batch=3)
    found = open_samples(path)
    np.testing.assert_array_equal(np.concatenate(list(found.batches(5))), IMAGES[:num])
    np.testing.assert_array_equal(found.labels, LABELS[:num])


def content_of(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("format", ["png", "npz"])
def test_a_folder_is_continued_mended_and_grows(tmp_path, format):
    fill(tmp_path, format, [0, 1, 2, 5])
    assert missing(tmp_path, format) == [3, 4, *range(6, 12)]
    removed = "000001.png" if format == "png" else "parts/000000000.npz"
    (tmp_path / removed).unlink()
    assert missing(tmp_path, format, 9)[0] == (1 if format == "png" else 0)
    complete(tmp_path, format, 9)
    before = content_of(tmp_path)
    complete(tmp_path, format, 9)
    assert content_of(tmp_path) == before  # what is there already is not written again
    assert missing(tmp_path, format, 12) == [9, 10, 11]
    with pytest.raises(ConfigError, match="holds 9 samples, more than the 8 asked for: give --num=9 or more"):
        missing(tmp_path, format, 8)
    complete(tmp_path, format)
    names = {"samples.json", "manifest.jsonl", "grid.png", ".writer"}
    names |= {"samples.npz"} if format == "npz" else {"labels.json", *(f"{index:06d}.png" for index in range(12))}
    assert {path.name for path in tmp_path.rglob("*")} == names
    if format == "png":
        assert json.loads((tmp_path / "labels.json").read_text()) == LABELS.tolist()


def test_grey_images_come_back_with_one_channel(tmp_path):
    grey = IMAGES[:2, ..., :1]
    with SampleFolder(tmp_path, {}, "png", Spec.image((4, 5), 1)) as folder:
        folder.add(np.arange(2), grey)
        folder.finish(2)
        assert folder.missing(2) == []
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "000001.png")), grey[1, ..., 0])


def test_other_settings_are_refused_and_named(tmp_path):
    SampleFolder(tmp_path, {"seed": 0, "stages": [{"steps": 10}]}, "png", SPEC).close()
    before = (tmp_path / "samples.json").read_text()
    with pytest.raises(ConfigError, match=r"seed was 0, now 1; stages\[0\].steps was 10, now 20"):
        SampleFolder(tmp_path, {"seed": 1, "stages": [{"steps": 20}]}, "png", SPEC)
    with pytest.raises(ConfigError, match="format was 'png', now 'npz'"):
        SampleFolder(tmp_path, {"seed": 0, "stages": [{"steps": 10}]}, "npz", SPEC)
    assert (tmp_path / "samples.json").read_text() == before
    (tmp_path / "samples.json").write_text(before.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ConfigError, match="samples.json is not what it was"):  # nor do edited settings make samples theirs
        SampleFolder(tmp_path, {"seed": 1, "stages": [{"steps": 10}]}, "png", SPEC)
    with pytest.raises(ConfigError, match="did you mean 'png'"):
        check_folder(tmp_path / "new", "pgn", SPEC)
    assert differences([1, 2], [1]) == [" was [1, 2], now [1]"]


# What is not ours ------------------------------------------------------------------------------------------------------

FOREIGN = {
    "a picture by a sample's name": lambda path: (path / "000000.png").write_bytes(png_of(IMAGES[1])),
    "a picture of a person's own": lambda path: (path / "cat.png").write_bytes(png_of(IMAGES[1])),
    "notes": lambda path: (path / "notes.txt").write_text("mine"),
    "labels": lambda path: (path / "labels.json").write_text("[1]"),
    "a grid": lambda path: (path / "grid.png").write_bytes(png_of(IMAGES[1])),
    "an archive": lambda path: np.savez(path / "samples.npz", IMAGES),
    "another tool's settings": lambda path: (path / "samples.json").write_text("{}"),
    "another tool's manifest": lambda path: (path / "manifest.jsonl").write_text('{"file_name": "0.png"}\n'),
    "an empty manifest": lambda path: (path / "manifest.jsonl").write_text(""),
    "no manifest": lambda path: (path / "manifest.jsonl").write_bytes(b"\xff\xfe\x00"),
    "a folder": lambda path: ((path / "holiday").mkdir(), (path / "holiday" / "a.jpg").write_bytes(b"x")),
    "an edit": lambda path: SampleFolder(path, {}, "png", SPEC, "edit.json").close(),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_that_holds_anything_else_is_refused_and_left_alone(tmp_path, name):
    FOREIGN[name](tmp_path)
    before = content_of(tmp_path)
    for refused in (lambda: check_folder(tmp_path, "png", SPEC), lambda: fill(tmp_path, "png", range(12), 12)):
        with pytest.raises(DataError, match="choose another folder") as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert content_of(tmp_path) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def other_image(path: Path) -> None:
    path.write_bytes(png_of(IMAGES[7]))


def other_part(path: Path) -> None:
    """A readable part of the same samples, from another seed."""
    np.savez(path, images=IMAGES[::-1][:4])


LATER = {  # (format, what is done to a folder of samples, the file that is named)
    "a picture that is cut": ("png", lambda path: cut(path / "000001.png"), "000001.png"),
    "a bit that flipped": ("png", lambda path: flip(path / "000002.png"), "000002.png"),
    "another picture": ("png", lambda path: other_image(path / "000002.png"), "000002.png"),
    "a picture beyond": ("png", lambda path: other_image(path / "000009.png"), "000009.png"),
    "a picture of another": ("png", lambda path: other_image(path / "mine.png"), "mine.png"),
    "a part that is cut": ("npz", lambda path: cut(path / "parts" / "000000000.npz"), "parts/000000000.npz"),
    "a part of another seed": ("npz", lambda path: other_part(path / "parts" / "000000004.npz"), "parts/000000004.npz"),
    "a part that overlaps": ("npz", lambda path: other_part(path / "parts" / "000000002.npz"), "parts/000000002.npz"),
    "a part beyond": ("npz", lambda path: other_part(path / "parts" / "000000008.npz"), "parts/000000008.npz"),
    "an archive": ("npz", lambda path: np.savez(path / "samples.npz", IMAGES), "samples.npz"),
    "a removed manifest": ("png", lambda path: (path / "manifest.jsonl").unlink(), "earlier version, without manifest.jsonl"),
    "a bad line": ("png", lambda path: (path / "manifest.jsonl").open("a").write("{}{\n"), "manifest.jsonl, line 10: not JSON"),
    "a list": ("png", lambda path: (path / "manifest.jsonl").open("a").write("[]\n"), "manifest.jsonl, line 10: a list"),
    "a wrong kind": (
        "png", lambda path: (path / "manifest.jsonl").open("a").write('{"file": 3}\n'), "manifest.jsonl, line 10: 'file'"
    ),
    "settings cut": ("png", lambda path: cut(path / "samples.json"), "samples.json, the settings of these samples, cannot be"),
}  # fmt: skip


@pytest.mark.parametrize("name", LATER)
def test_what_was_changed_since_is_named_and_left_alone(tmp_path, name):
    format, change, named = LATER[name]
    fill(tmp_path, format, range(8))
    change(tmp_path)
    before = content_of(tmp_path)
    with pytest.raises(DiffusionError) as caught:
        missing(tmp_path, format)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert {**content_of(tmp_path), ".writer": b""} == {**before, ".writer": b""}


@pytest.mark.parametrize("format", ["png", "npz"])
def test_finished_samples_that_were_changed_are_not_read(tmp_path, format):
    fill(tmp_path, format, range(12), 12)
    file = tmp_path / ("000003.png" if format == "png" else "samples.npz")
    for change in (flip, lambda path: path.unlink()):
        change(file)
        with pytest.raises(DataError, match=rf"{file.name} (is not as it was written|is missing|cannot be read)"):
            list(open_samples(tmp_path).batches(4))


def test_parts_that_were_brought_back_do_not_overlap(tmp_path):
    """Parts that were lost, drawn again with other ends, and then found: their rows are taken once."""
    fill(tmp_path / "a", "npz", range(8))
    names = ("000000000.npz", "000000004.npz")
    for name in names:
        shutil.move(tmp_path / "a" / "parts" / name, tmp_path / name)
    fill(tmp_path / "a", "npz", [2, 3, 4, 5])
    for name in names:
        shutil.move(tmp_path / name, tmp_path / "a" / "parts" / name)
    complete(tmp_path / "a", "npz")


@pytest.mark.parametrize("format", ["png", "npz"])
def test_samples_with_a_gap_are_not_joined(tmp_path, format):
    with pytest.raises(DataError, match="sample 4 is missing"):
        fill(tmp_path, format, [0, 1, 2, 3, 5], 6)
    with pytest.raises(DataError, match="sample 5 is beyond the 5 asked for"):
        fill(tmp_path, format, [4], 5)


# What a kill leaves ----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a program where it stands."""


@contextlib.contextmanager
def killed_after(steps: int, monkeypatch):
    """Let a program change the disk so often, and no more: files renamed, removed, and lines added, of which one is torn."""
    left = [steps]

    def limited(real, torn=None):
        def call(*args, **more):
            if left[0] == 0:
                if torn:
                    torn(*args)
                left[0] = -1
            if left[0] < 0:
                raise Killed
            left[0] -= 1
            return real(*args, **more)

        return call

    def torn(manifest, lines):
        with open(manifest.path, "ab") as file:
            file.write(json.dumps(lines[0]).encode()[:20])

    with monkeypatch.context() as patched, contextlib.suppress(Killed):
        patched.setattr("os.replace", limited(os.replace))
        patched.setattr("pathlib.Path.unlink", limited(Path.unlink))
        append = "diffusion_jax.inference.manifest.Manifest._append"
        patched.setattr(append, limited(Manifest._append, torn))
        yield


@pytest.mark.parametrize("format", ["png", "npz"])
def test_a_kill_at_any_moment_leaves_a_folder_that_goes_on(tmp_path, monkeypatch, format):
    """Killed after its first change of the disk, its second, ..., twice in a row; then the samples are what they should be."""
    for steps in range(0, 40, 2 if format == "png" else 1):
        path = tmp_path / str(steps)
        for num in (9, 12):
            with killed_after(steps, monkeypatch):
                with SampleFolder(path, {"seed": 0}, format, SPEC) as folder:
                    missing_now = np.asarray(folder.missing(num))
                    for start in range(0, len(missing_now), 4):
                        part = missing_now[start : start + 4]
                        folder._store.write(part, IMAGES[part])  # in this thread, whose end is the program's
                    folder.finish(num, LABELS[:num])
        for folder in {path, *(file.parent for file in path.rglob("*.npz"))}:
            (folder / ".000001.png.1.tmp").write_text("of another process")
        complete(path, format)
        assert not [file for file in path.rglob(".*") if file.name != ".writer"]


def test_a_full_disk_is_one_clear_error_and_leaves_a_folder_that_goes_on(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    fill(tmp_path, "png", range(3))
    with monkeypatch.context() as patched, SampleFolder(tmp_path, {"seed": 0}, "png", SPEC) as folder:
        patched.setattr("pathlib.Path.write_bytes", full)
        folder.add(np.arange(3, 6), IMAGES[3:6])
        with pytest.raises(DataError, match="No space left on device"):
            folder.finish(6)
    complete(tmp_path, "png")


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    with SampleFolder(tmp_path, {"seed": 0}, "png", SPEC) as folder:
        for second in (lambda: check_folder(tmp_path, "png", SPEC), lambda: fill(tmp_path, "png", range(3))):
            with pytest.raises(DataError, match=rf"is being written by process {os.getpid()} .*drawing samples"):
                second()
        folder.add(np.arange(3), IMAGES[:3])
    complete(tmp_path, "png")


def test_a_folder_is_looked_at_while_another_writes(tmp_path, monkeypatch):
    """What appears between a look at the names and one at the manifest is not taken for somebody else's."""
    fill(tmp_path, "png", range(3))
    real = manifest.read_lines

    def read_lines(path):
        lines = real(path)
        monkeypatch.setattr(manifest, "read_lines", real)
        fill(tmp_path, "png", range(3, 6))
        return lines

    monkeypatch.setattr(manifest, "read_lines", read_lines)
    Manifest(tmp_path, "samples.json").check()
    assert (tmp_path / "000005.png").exists()


def test_what_is_no_image_is_written_as_numbers(tmp_path):
    values = np.random.default_rng(0).standard_normal((5, 7, 2)).astype(np.float32)
    spec = Spec((7, 2), "points")
    for part, num in ((slice(0, 2), 2), (slice(2, 5), 5)):
        with SampleFolder(tmp_path, {}, None, spec) as folder:
            folder.add(np.arange(5)[part], values[part])
            assert folder.finish(num) == tmp_path
    with np.load(tmp_path / "samples.npz") as whole:
        np.testing.assert_array_equal(whole["arr_0"], values)
    with pytest.raises(ConfigError, match="format of points samples: unknown 'png'"):
        SampleFolder(tmp_path / "new", {}, "png", spec)
