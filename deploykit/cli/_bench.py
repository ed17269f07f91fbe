"""What bench, validate and ship share: which backend runs which artifact, and what to do with the report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit import loading, registry
from deploykit.artifact import Artifact, ModelRef
from deploykit.cli import _engines, _gates, _shared
from deploykit.cli._command import command_line
from deploykit.config import Config
from deploykit.errors import ArtifactError, BackendUnavailableError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from deploykit.bench.engine import Settings, Subject
    from deploykit.bench.report import Report

REFERENCE = "torch"

#: Sets of backends that stand for their members.
ALL, DEFAULT = "all", "default"

backend_option = click.option(
    "--backend",
    "backends",
    type=_shared.NameList(),
    default=DEFAULT,
    show_default=True,
    help="Backends, like torch,ort; `default`: torch, ort, trt, and openvino where it is installed; `all`: every one.",
)
data_option = click.option(
    "--data",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Inputs to use: an .npz by name, or FILE.py:FUNCTION (its code runs), called as FUNCTION(seed, **sizes), or "
    "as FUNCTION() for a recording; default: the model's own sample.",
)
metric_option = click.option(
    "--metric",
    metavar="FILE.py:FUNCTION[:min]",
    help="Your metric in place of the model's: a function (its code runs), called as FUNCTION(infer) or "
    "FUNCTION(infer, data) with the arrays of --data, that returns a number; higher is better, or with :min lower.",
)

drift_option = click.option(
    "--drift",
    type=click.IntRange(0),
    metavar="STEPS",
    help="Steps that a model with carried states (--streaming) is streamed over; default: 10000, 0 for none.",
)

html_option = _shared.output_option(
    "--html",
    "html_target",
    help="Write the report as a web page: one file with its charts, to read, send or print.",
)


def drift_steps(asked: int | None) -> int:
    """The steps to stream."""
    from deploykit.bench.scenario import DRIFT_STEPS

    return DRIFT_STEPS if asked is None else asked


def wanted_backends(names: tuple[str, ...]) -> tuple[str, ...]:
    """The backends that were asked for; ``all`` is every one that a user can name, ``default`` those that say so.

    Raises:
        UnknownNameError: there is no such backend.
        BackendUnavailableError: one that was asked for by name cannot run here; says what to install.
    """
    visible = tuple(name for name in registry.backend_names() if not registry.backend(name).hidden)
    if not names:
        raise UsageError(f"--backend names no backend: write one or more of {', '.join((*visible, DEFAULT, ALL))}.")
    sets = {ALL: visible, DEFAULT: tuple(filter(_runs_by_default, visible))}
    for name in named_backends(names):
        if ":" not in name and name not in registry.backend_names():
            raise UnknownNameError("backend", name, (*visible, *sets))
        reason = registry.backend(name).available()
        if reason is not None:
            raise BackendUnavailableError(f"backend {name} cannot run here: {reason}")
    return tuple(dict.fromkeys(member for name in names for member in sets.get(name, (name,))))


def named_backends(names: Sequence[str]) -> list[str]:
    """Those that were asked for by their own names, and so must run."""
    return [name for name in names if name not in (ALL, DEFAULT)]


def _runs_by_default(name: str) -> bool:
    backend = registry.backend(name)
    return backend.default == "always" or (backend.default == "available" and backend.available() is None)


def model(config: Config, named: Sequence[str], described: ModelRef) -> ModelRef:
    """The model that the targets and options mean; of no use where the targets are artifacts, which name their own.

    Raises:
        UsageError: options that describe a model stand beside artifacts.
    """
    if any(map(_is_file, named)) and described != _shared.NOTHING:
        options = ", ".join(f"--{name}" for name in _shared.DESCRIBING)
        raise UsageError(f"{options} describe a model, and an artifact names its own: leave them out.")
    return _shared.model_ref(config, named[0] if named else None, described)


def targets(
    config: Config, named: Sequence[str], ref: ModelRef, engines: _engines.Asked = _engines.NOTHING
) -> tuple[Artifact, list[Artifact]]:
    """The reference, and the artifacts: those named, else the model's newest export and what was made from it.

    Raises:
        UsageError: artifacts of different models, or models and artifacts, were named together.
        ArtifactError: an artifact does not say which PyTorch model it came from.
    """
    files = [name for name in named if _is_file(name)]
    if not files:
        if len(named) > 1:
            raise UsageError(f"name one model or several artifacts, not {len(named)} models: {', '.join(named)}.")
        parent = _shared.exported(config, ref)
        return reference(ref, [parent]), [parent, *_shared.derived(config, parent)]
    if len(files) < len(named):
        raise UsageError(f"name either a model or artifacts, not both: {', '.join(named)}.")
    found = [_engines.at(name, ref, engines) for name in files]
    model = found[0].model
    for artifact in found:
        if artifact.model is None or model is None:
            raise ArtifactError(
                f"{artifact.path} does not say which PyTorch model it came from, so there is nothing to hold it "
                "against: make it with `deploykit export`."
            )
        if not model.same_model(artifact.model):
            raise UsageError(
                f"{found[0].path} and {artifact.path} come from different models: bench them one after the other."
            )
    assert model is not None
    return reference(model, found), found


def reference(model: ModelRef, artifacts: Sequence[Artifact]) -> Artifact:
    """The PyTorch model, asked for no sizes that its artifacts are not declared for."""
    bounds = {name: bounds for artifact in artifacts for name, bounds in artifact.dims.items()}
    dims = (*model.dims, *(f"{name}={size.low}:{size.high}" for name, size in bounds.items()))
    return Artifact.of_model(replace(model, dims=dims), loading.model_name(model))


def plan(
    backends: Sequence[str], reference: Artifact, artifacts: Sequence[Artifact], named: Sequence[str] = ()
) -> list[Subject]:
    """One subject for each backend and artifact that go together, the reference first; else one with a reason.

    Raises:
        UsageError: a backend that is among the ``named`` runs none of the artifacts.
    """
    from deploykit.bench.engine import Subject

    subjects = [Subject(REFERENCE, reference, None)]
    for name in backends:
        if name == REFERENCE:
            continue
        backend = registry.backend(name)
        reason = backend.available()
        fitting = [artifact for artifact in artifacts if artifact.format in backend.accepts]
        if "torch" in backend.accepts:
            fitting.append(reference)
        if backend.precision is not None:
            fitting = [replace(artifact, precision=backend.precision) for artifact in fitting]
        if reason is None and not fitting:
            make = "" if backend.made_by is None else f": make one with `{backend.made_by}`"
            reason = f"no artifact here is of a format that it runs ({', '.join(sorted(backend.accepts))}){make}."
            if name in named:
                raise UsageError(f"backend {name} has nothing to run: {reason}")
        subjects += [Subject(name, None, reason)] if reason else [Subject(name, artifact, None) for artifact in fitting]
    return subjects


def evaluate(
    config: Config,
    named: Sequence[str],
    model: ModelRef,
    backends: tuple[str, ...],
    settings: Settings,
    json_target: str | None,
    html_target: Path | None,
    asked: _gates.Asked,
    engines: _engines.Asked,
) -> None:
    """What bench and validate do, the one with latency and the other without."""
    from deploykit.bench.gates import judge

    gates = asked.gates(settings.scenario)
    wanted = wanted_backends(backends)
    if not settings.latency and wanted == (REFERENCE,):
        raise UsageError(f"{REFERENCE} is the reference itself: name a backend to hold against it, like ort.")
    reference, found = targets(config, named, model, engines)
    artifacts = _engines.fitting(config, found, engines)
    names = named_backends(backends)
    subjects = plan(wanted, reference, artifacts, named=names)
    report = judge(run(subjects, reference, settings), gates)
    finish(report, json_target, html_target, asked, names)


def run(subjects: Sequence[Subject], reference: Artifact, settings: Settings) -> Report:
    """Run the engine with a progress bar on stderr, if that is a terminal."""
    from deploykit.bench.engine import bench

    settings = replace(settings, command=command_line())
    with _progress_bar() as progress:
        return bench(subjects, reference, settings, progress)


def finish(
    report: Report, json_target: str | None, html_target: Path | None, asked: _gates.Asked, named: Sequence[str] = ()
) -> None:
    """Write the files, print the table, and end with the exit code that the report has.

    1 when a row did not run (or a backend that was ``named`` turned down all that there was to run), 3 when all ran and
    one lies outside a tolerance or a gate; the gates are named on stderr.
    """
    from rich.console import Console

    from deploykit.bench.report import render, to_json

    gone = {name: reason for name in named if (reason := _turned_down(report, name)) is not None}
    if gone:
        report = replace(report, passed=False)
    if json_target != "-":
        render(report, Console())
    if json_target is not None:  # after the table, which a file that cannot be written must not cost
        _shared.emit_json(to_json(report), json_target)
    if html_target is not None:
        from deploykit.bench import html

        html.save(report, html_target)
    asked.write(report)
    told = _gates.missed(report.gates)
    if told is not None:
        click.echo(f"error: {told}", err=True)
    for name, reason in gone.items():
        click.echo(f"error: backend {name} cannot run this: {reason}", err=True)
    if gone or any(row.fault == "error" for row in report.rows):
        click.get_current_context().exit(1)
    if not report.passed:
        click.get_current_context().exit(3)


def _turned_down(report: Report, backend: str) -> str | None:
    """Why a backend ran nothing of what there was to run; None where it ran something."""
    rows = [row for row in report.rows if row.backend == backend]
    return rows[0].reason if rows and all(row.status == "unavailable" for row in rows) else None


def _is_file(name: str) -> bool:
    """A path of an artifact rather than a model's name; a path that does not exist is told by whoever reads it."""
    path = Path(name)
    if name in registry.zoo_names() or path.suffix in (".py", ".pt2"):
        return False
    return path.exists() or (path.suffix != "" and ":" not in name)


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, float], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda step, done: bar.update(task, description=step, completed=done)
