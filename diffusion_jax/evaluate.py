"""Evaluate trained runs, every checkpoint of them, or images that any tool made.

    python -m diffusion_jax.evaluate --workdir=DIR
    python -m diffusion_jax.evaluate --workdir=DIR --checkpoints=all --guidance=1,1.5,3 --steps=10,25 --metrics=fid,pr
    python -m diffusion_jax.evaluate --workdir=BASE,SR --num=2000 --guidance=2/1,3/1 --out=DIR2
    python -m diffusion_jax.evaluate --workdir=DIR --watch
    python -m diffusion_jax.evaluate --samples=DIR --features=inception --features_file=FILE --reference=STATS.npz --out=DIR2

One workdir evaluates one run; several, in order of resolution, a cascade. Samples are drawn as the runs' `sampling`
configuration says, of all classes in turn; flags replace parts of it. Several values of a flag, and several
checkpoints, are gone through, each combination a case; A/B gives a cascade's stages a value each. --watch stays
beside a training job and evaluates every checkpoint as it appears. --samples evaluates a folder of images or an npz
(arr_0 uint8 [N, H, W, C], arr_1 labels), with the data of --workdir, if given, as the real side.

Out come results.jsonl and results.csv (a row for each case, kept as it is found), tensorboard/, report.html (curves
with intervals, trade-offs, pictures, settings, versions: one page, to be opened anywhere), and of the last case that was
asked for metrics.json, which is also printed, and real_and_samples.png. Interrupted, the same command goes on; cases that are
there are not computed again. --out is a new folder, an empty one, or one that evaluations filled: another one is left
untouched. One evaluation at a time writes into a folder.

The metrics, by name (--metrics; left out, all that cost little and for which everything is there):

    fid         Frechet distance to the reference, its 95 % interval, its extrapolation to infinitely many samples, and
                frechet_reference, what held-out real images get. It is called fid in Inception's features, fd_dinov2 in
                DINOv2's, and frechet_distance otherwise
    sfid        the same in Inception's spatial features
    kid         kernel distance, unbiased
    is          Inception Score, of the network's own classes
    pr          precision and recall
    agreement   share of samples in which a small classifier, trained on the run's training images, sees the asked-for
                class, and that classifier's accuracy on held-out images
    cas         accuracy on real held-out images of a classifier trained on samples
    loss        the training loss on held-out images
    accuracy    of a noisy classifier: top-1 and top-5 on held-out images, in each quarter of t (alone with loss, since it
                draws no images)
    vlb         variational bound of held-out images in bits/dim (of chains, or with --bits_per_dim); with
                --bits_per_dim_terms its terms, and the errors of x0 and eps, step by step in bits_per_dim_terms.csv
    ode         their likelihood under the probability-flow ODE in bits/dim
    sr          PSNR, SSIM and consistency of super-resolution, against the originals
    duplicates  samples that equal others
    neighbours  distance to the nearest training image, over that of held-out images: below 1, copying

Features are those of the small classifier of the run's data (no published number compares with them), or of a network
whose weights you name: --features=inception|dinov2|vgg16|clip --features_file=FILE, and --preprocessing. The reference
is the run's training images, or --reference=STATS.npz (of diffusion_jax.reference_stats, pytorch-fid, ADM or EDM).

Of a cascade, base_agreement and cascade_agreement are those of the first and of the last stage; what has no name of a
stage before it is of the last. The held-out images are the source's split "test".

Several hosts: start the same command on each with --coordinator=HOST:PORT --num_processes=N --process_id=I, as in
diffusion_jax.train; they draw and measure together, parameters lie as the run's mesh, or --mesh, says, the first one writes.

Exit status: 0, or 2 after one line that says what is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from diffusion_jax import processes
from diffusion_jax.errors import ConfigError
from diffusion_jax.evaluation import report, sweep
from diffusion_jax.evaluation.evaluator import Evaluator, evaluate_samples
from diffusion_jax.evaluation.inputs import Settings
from diffusion_jax.evaluation.results import Results, Row, metrics_of
from diffusion_jax.evaluation.sweep import wait_for_run, watch
from diffusion_jax.files import user_path
from diffusion_jax.inference import command_line

_LOG = logging.getLogger("diffusion_jax.evaluate")


def define_flags() -> None:
    """Define the program's flags."""
    command_line.define_run_flags(sweep=True)
    command_line.define_feature_flags()
    flags.DEFINE_string("checkpoints", "latest", "latest, all, or steps: 1000,2000; 700/600 for a cascade's stages.")
    flags.DEFINE_string("samples", None, "Folder or npz of images to evaluate, instead of drawing any.")
    flags.DEFINE_string("out", None, "Folder for the results; 'evaluation' in the last workdir if left out.")
    flags.DEFINE_list("metrics", [], "Names, comma-separated; see above. Cheap ones if left out.")
    flags.DEFINE_string("reference", None, "File of reference statistics; the run's training images if left out.")
    flags.DEFINE_integer("num", 1000, "Samples of each case; of given samples, at most.")
    flags.DEFINE_integer("seed", 0, "Of all noise.")
    flags.DEFINE_integer("batch_size", 128, "Samples at a time, over all devices.")
    flags.DEFINE_integer(
        "bits_per_dim", None, "Held-out images whose bound is computed; 16 of discrete chains, else none if left out."
    )
    flags.DEFINE_bool("bits_per_dim_terms", False, "Write that bound's terms, a row for each step: bits_per_dim_terms.csv.")
    flags.DEFINE_integer("ode_steps", 64, "Steps of the ODE of the metric ode.")
    flags.DEFINE_enum("ode_divergence", "hutchinson", ["hutchinson", "exact"], "Of that ODE; exact is for few pixels.")
    flags.DEFINE_enum("precision_recall", "original", ["original", "adm"], "Variant of precision and recall.")
    flags.DEFINE_integer("classifier_steps", 1000, "Training steps of the small classifier.")
    flags.DEFINE_bool("keep_samples", False, "Leave the drawn samples in OUT/samples.")
    flags.DEFINE_bool("report", None, "Write report.html; if left out, where matplotlib is installed.")
    flags.DEFINE_bool("watch", False, "Evaluate every checkpoint of one run as it appears, until its last.")
    flags.DEFINE_float("poll", 10.0, "With --watch: seconds between looks.", lower_bound=0.1)
    flags.DEFINE_float(
        "patience", 3600.0, "With --watch: seconds without a new checkpoint, after which it ends.", lower_bound=0
    )


def _settings(values: Mapping[str, Any]) -> Settings:
    given = {field.name: values[field.name] for field in dataclasses.fields(Settings) if field.name in values}
    return Settings(**{**given, "metrics": tuple(values["metrics"]), "features": command_line.features_of(values)})


def _work(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    settings, workdirs = _settings(values), [str(user_path(workdir)) for workdir in values["workdir"] or []]
    if not workdirs and not values["samples"]:
        raise ConfigError("--workdir=DIR (a trained run) or --samples=DIR (images) is needed")
    out = values["out"] or (Path(workdirs[-1]) / "evaluation" if workdirs else None)
    if out is None:
        raise ConfigError("--out=DIR is needed with --samples")
    wanted = _report_wanted(values["report"])
    if values["samples"]:
        _check_given(values, overrides)
        found = evaluate_samples(values["samples"], out, settings, workdirs[0] if workdirs else None)
        page = _write_report(Results(out), values["samples"], wanted)
    else:
        if values["watch"]:
            _wait(values, workdirs)
        evaluator = Evaluator(workdirs, out, settings, overrides, command_line.mesh_of(values))
        with evaluator.results.held():
            row = (_watch if values["watch"] else _evaluate)(values, evaluator, workdirs, wanted)
            found, page = metrics_of(row), _write_report(evaluator.results, ", ".join(workdirs), wanted)
    shown = {name: value for name, value in found.items() if name != "settings"} | ({"report": str(page)} if page else {})
    return json.dumps(shown, indent=2)


def _evaluate(values: Mapping[str, Any], evaluator: Evaluator, workdirs: list[str], wanted: bool) -> Row:
    """Every case, in order; the report grows with them. The last one's row is returned."""
    todo = sweep.expand(workdirs, values["checkpoints"], command_line.sweep_of(values))
    for number, case in enumerate(todo, start=1):
        if number > 1:
            _write_report(evaluator.results, ", ".join(workdirs), wanted)
        if len(todo) > 1:
            _LOG.info("Case %d of %d.", number, len(todo))
        row = evaluator.evaluate(case)
    evaluator.close()
    return row


def _wait(values: Mapping[str, Any], workdirs: list[str]) -> None:
    if len(workdirs) != 1:
        raise ConfigError("--watch follows one run: give one --workdir")
    wait_for_run(workdirs[0], poll=values["poll"], patience=values["patience"])


def _watch(values: Mapping[str, Any], evaluator: Evaluator, workdirs: list[str], wanted: bool) -> Row:
    """Every checkpoint as it appears, with every setting. The last one's row is returned."""
    rows: list[Row] = []

    def evaluate(step: int) -> None:
        for case in sweep.expand(workdirs, str(step), command_line.sweep_of(values)):
            rows.append(evaluator.evaluate(case))
        _write_report(evaluator.results, workdirs[0], wanted)

    if not watch(workdirs[0], evaluate, poll=values["poll"], patience=values["patience"]):
        raise ConfigError(f"no checkpoint of {workdirs[0]} could be evaluated")
    return rows[-1]


def _check_given(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` for what has no meaning where samples are given."""
    drawn = [*command_line.sweep_of(values), *overrides, *(["watch"] if values["watch"] else [])]
    if drawn or values["checkpoints"] != "latest":
        raise ConfigError(f"--samples are there already: --{drawn[0] if drawn else 'checkpoints'} says how to draw some")
    if len(values["workdir"] or []) > 1:
        raise ConfigError("--samples are compared with the data of one --workdir")


def _report_wanted(flag: bool | None) -> bool:
    if flag is False:
        return False
    try:
        report.check_charts()
    except ConfigError:
        if flag:
            raise
        _LOG.info("No report.html: its charts need matplotlib (pip install 'diffusion_jax[report]').")
        return False
    return True


def _write_report(results: Results, title: str, wanted: bool) -> Path | None:
    """Write the report, and return its path, on the first process alone."""
    if not wanted:
        return None
    with results.held():
        page = report.write(results, f"Evaluation of {title}") if processes.is_first() else None
    if page is not None:
        _LOG.info("Report: %s", page)
    return page


if __name__ == "__main__":
    command_line.run_program("evaluate", define_flags, _work)
