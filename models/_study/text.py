"""The study as a document: how it was done, one table and picture a task, windows, ablation, and the claims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from deploykit.files import write_text

from . import sizes
from .ablation import ALL
from .claims import findings
from .picture import picture
from .results import CLAIMED, Latency, Results
from .statistics import best, comparison, paired_difference, paired_ratio, spread

NOT_KNOWN = "–"
_COUNTS = {"charlm": "Next character", "traffic": "Traffic forecasting", "names": "Names by language"}

METHOD = """# The study

Which recurrent network for which task? Written by `python -m models.study`; the numbers are in `results.json`.

## How it was done

- **Equal budgets.** Every architecture has the largest hidden size (a multiple of 4) whose whole model, head and all,
  stays within one number of parameters, found by bisection.
- **One recipe** for all: AdamW with warm-up and cosine decay, clipping by norm, the same number of steps, the same
  batches by seed. Only the peak learning rate is each architecture's own, chosen by validation in short runs on
  another seed. Nothing else was tuned for anybody.
- **Splits.** Validation chooses the weights, and the test split is looked at once a run.
- **Seeds.** A number is the median over the seeds, in brackets the smallest and the largest; ratios are paired by seed.
  One is called better than another only where every run of it is; else no difference was seen, and nobody won. Of two
  equals, one looks better or worse like this in one of ten cases with three seeds, in one of 126 with five.
- **Training time** is of steps that all architectures take in turn, a few at a time in an order drawn anew each round,
  so that a machine that others use too slows all alike. The ratio to the GRU's is the median of the ratios within
  rounds, with its 95 % bootstrap interval. Seconds are this machine's, and good for nothing else.
- **Latency** is batch 1 at the window's length, timed by deploykit's bench: the GRU and up to three others with all
  their backends take turns in windows, and ratios are of windows of one round, with 95 % intervals.
- **int8** is dynamic, forced wherever it can be (`--prefer int8`) and kept whatever it costs, so that its price shows.
  In small networks it is often slower than float.
"""


def write(studies: Sequence[Results], folder: Path) -> None:
    """Write ``study.md`` and one picture a task to ``folder``. Studies of one task are those of several budgets.

    Raises:
        OutputError: a file cannot be written.
    """
    for own, _ in sizes.by_task(studies).values():
        write_text(folder / f"{own.task}.svg", picture(own))
    write_text(folder / "study.md", document(studies))


def document(studies: Sequence[Results]) -> str:
    """All of it as Markdown."""
    tasks = sizes.by_task(studies).values()
    glance = [overview([own for own, _ in tasks])] if len(tasks) > 1 else []
    return "\n".join([METHOD, *glance, *(section(own, others) for own, others in tasks)])


def overview(studies: Sequence[Results]) -> str:
    """The verdicts on every claim, a column a task."""
    found = [findings(results) for results in studies]
    rows = [[each[0].claim, *(finding.verdict for finding in each)] for each in zip(*found, strict=True)]
    header = ("claim", *(results.task for results in studies))
    return f"## The article's claims at a glance\n\n{table(header, rows)}\n"


def section(results: Results, others: Sequence[Results] = ()) -> str:
    """One task; ``others`` are its studies at other budgets."""
    parts = [f"## {_COUNTS.get(results.task, results.task)}", _warning(results), _setting(results), _winner(results)]
    parts += [f"![{results.task}: metric, training time and latency of each architecture]({results.task}.svg)"]
    parts += [
        _quality(results),
        _deployment(results),
        _sizes(results, others),
        _windows(results),
        _ablation(results),
        _claims(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _warning(results: Results) -> str:
    said = []
    if results.settings.get("synthetic"):
        said.append("**A made-up series, not real traffic: these numbers say that the study works and nothing else.**")
    if results.share < 1:
        said.append(f"To fit its hours on this machine, {results.share:.0%} of the planned steps were made.")
    return " ".join(said)


def _setting(results: Results) -> str:
    settings, machine = results.settings, results.environment
    data = ", ".join(f"{name} {value}" for name, value in results.data.items() if name != "sha256")
    baselines = ", ".join(f"{name} {value:.3f}" for name, value in results.baselines.items())
    better = "higher" if results.higher_is_better else "lower"
    return (
        f"Data: {data}. Metric: {results.metric} in {results.unit} ({better} is better). Baselines on the same test "
        f"split: {baselines}. Budget {settings.get('budget', 0):,} parameters, {settings.get('steps')} steps of "
        f"{settings.get('batch')} x {settings.get('window')}, {settings.get('seeds')} seeds. CPU: "
        f"{machine.get('cpu', 'unknown')}, {settings.get('threads')} thread."
    )


def _winner(results: Results) -> str:
    scores = {name: results.metrics("family", name) for name in results.architectures}
    name = best({one: found for one, found in scores.items() if found}, results.higher_is_better)
    if name is None:
        return "No architecture is clearly the best: the runs of the best few overlap."
    return f"Every run of {name} is better than every run of the others."


def _quality(results: Results) -> str:
    gru = results.metrics("family", "gru")
    rows = []
    for name in results.architectures:
        runs = results.of("family", name)
        found = results.metrics("family", name)
        first = next(iter(runs.values()))
        pace = results.pace(name)
        ratio = paired_ratio(found, gru) if name != "gru" else None
        rows.append(
            [
                name,
                f"{first.hidden}",
                f"{first.parameters:,}",
                f"{first.rate:g}",
                _spread(found.values()),
                NOT_KNOWN if ratio is None else f"{ratio.told(3)}: {comparison(found, gru, results.higher_is_better)}",
                NOT_KNOWN if pace is None else f"{pace.seconds_per_1000_targets:.3g}",
                NOT_KNOWN if pace is None else _spread(one.seconds for one in runs.values() if one.reason is None),
                NOT_KNOWN if pace is None else pace.ratio.told(),
            ]
        )
    header = ("architecture", "hidden", "parameters", "peak rate", results.metric, "over the GRU's")
    times = ("seconds per 1000 targets", "seconds of a run", "training time over the GRU's")
    return "### Quality and training\n\n" + table((*header, *times), rows) + _edges(results) + _failures(results)


def _edges(results: Results) -> str:
    """Who trained at the smallest or the largest rate that was tried, beyond which a better one may lie."""
    rates = {one.rate for one in results.records if one.kind == "rate"}
    if len(rates) < 2:
        return ""
    chosen = {one.architecture: one.rate for one in results.records if one.kind == "family"}
    names = [name for name, rate in chosen.items() if rate in (min(rates), max(rates))]
    if not names:
        return ""
    return f"\n\nAt the edge of the rates that were tried, beyond which a better one may lie: {', '.join(names)}."


def _failures(results: Results) -> str:
    said = [
        f"- {one.architecture}{f' ({one.variant})' if one.variant else ''}, seed {one.seed}: {reason}"
        for one in results.records
        if one.kind == "family" and (reason := one.reason or (one.deployed.reason if one.deployed else None))
    ]
    return "\n\nWhat failed:\n\n" + "\n".join(said) if said else ""


def _deployment(results: Results) -> str:
    rows = []
    for name in results.architectures:
        runs = {seed: one.deployed for seed, one in results.of("family", name).items() if one.deployed is not None}
        if not runs:
            continue
        first = next(iter(runs.values()))
        int8 = {seed: one.int8_metric for seed, one in runs.items() if one.int8_metric is not None}
        plain = {seed: one.float_metric for seed, one in runs.items() if one.float_metric is not None}
        cost = paired_difference(int8, plain)
        cells = [
            ("torch", "float32", ""),
            ("ort", "float32", ""),
            ("ort", "int8", "portable"),
            ("ort", "int8", "fused"),
        ]
        rows.append(
            [
                name,
                _kilobytes(first.float_bytes),
                _kilobytes(first.int8_bytes),
                NOT_KNOWN if first.coverage is None else f"{first.coverage:.0%}",
                _spread(int8.values()),
                NOT_KNOWN if cost is None else cost.told(4),
                *(_latency(results.latency(name, *cell)) for cell in cells),
            ]
        )
    if not rows:
        return ""
    head = ("architecture", "float32 kB", "int8 kB", "int8 share", f"int8 {results.metric}", "int8 less float32")
    columns = (*head, "PyTorch ms", "onnxruntime ms", "int8 ms", "int8 fused ms")
    notes = (
        "Latency: the median, and behind it the ratio to the GRU's of the same column, with its interval. The int8 "
        "share is of the multiply-accumulates; ~ marks windows that did not agree with each other."
    )
    return f"### Deployment\n\n{table(columns, rows)}\n\n{notes}{_unavailable(results)}"


def _unavailable(results: Results) -> str:
    reasons = dict.fromkeys(
        f"{one.backend} {one.precision} {one.kernels}".strip() + f": {one.reason}"
        for one in results.latencies
        if one.reason is not None
    )
    return "\n\nNot timed:\n\n" + "\n".join(f"- {reason}" for reason in reasons) if reasons else ""


def _sizes(results: Results, others: Sequence[Results]) -> str:
    if not others:
        return ""
    told = f"{results.metric} at several budgets of parameters, with the same recipe and number of steps."
    return f"### Number of parameters\n\n{table(*sizes.rows(results, others))}\n\n{told}"


def _windows(results: Results) -> str:
    windows = sorted({one.window for one in results.records if one.kind == "window"})
    if not windows:
        return ""
    named = [name for name in CLAIMED if any(results.metrics("window", name, str(size)) for size in windows)]
    rows = []
    for size in windows:
        scores = {name: results.metrics("window", name, str(size)) for name in named}
        first = best({name: found for name, found in scores.items() if found}, results.higher_is_better)
        rows.append([str(size), *(_spread(scores[name].values()) for name in named), first or "no difference seen"])
    return f"### Length of the window\n\n{table(('steps', *named, 'clearly best'), rows)}"


def _ablation(results: Results) -> str:
    rows = []
    for one in ALL:
        runs = results.of("ablation", one.architecture, one.variant)
        if not runs:
            continue
        base = results.metrics("ablation", one.architecture, one.base)
        changed = results.metrics("ablation", one.architecture, one.variant)
        pace = results.pace(one.architecture, one.variant)
        time = None if pace is None else pace.ratio if one.adds else pace.ratio.inverse()
        with_it, without = (changed, base) if one.adds else (base, changed)
        ratio = paired_ratio(with_it, without)
        reason = next((run.reason for run in runs.values() if run.reason is not None), None)
        verdict = comparison(with_it, without, results.higher_is_better) if ratio else reason or NOT_KNOWN
        rows.append(
            [
                f"{one.method} ({one.architecture}{', two layers' if one.layers > 1 else ''})",
                _spread(with_it.values()),
                _spread(without.values()),
                NOT_KNOWN if ratio is None else ratio.told(3),
                verdict,
                NOT_KNOWN if time is None else time.told(),
                _kept(results, one.architecture, one.variant, one.base, one.adds),
            ]
        )
    if not rows:
        return ""
    steps = results.settings.get("ablation_steps")
    header = ("method", "with", "without", "with over without", "with it", "time, with over without", "memory")
    told = (
        f"Runs of {steps} steps. Memory: the activations that a step keeps for its way back, with over without; "
        "checkpointing computes the rest again on that way, a quarter at a time. A method may pay in longer or "
        "harder runs than these."
    )
    return f"### The training methods, each with and without\n\n{table(header, rows)}\n\n{told}"


def _kept(results: Results, architecture: str, variant: str, base: str, adds: bool) -> str:
    mine, other = results.pace(architecture, variant), results.pace(architecture, base)
    if mine is None or other is None or not mine.kept_bytes or not other.kept_bytes:
        return NOT_KNOWN
    ratio = mine.kept_bytes / other.kept_bytes
    return f"{ratio if adds else 1 / ratio:.2f}"


def _claims(results: Results) -> str:
    rows = [(one.claim, one.verdict, one.evidence) for one in findings(results)]
    return f"### The article's claims, on this task\n\n{table(('claim', 'verdict', 'evidence'), rows)}"


def _spread(values: Iterable[float]) -> str:
    found = spread(list(values))
    return NOT_KNOWN if found is None else found.told(3)


def _latency(row: Latency | None) -> str:
    if row is None or row.p50_ms is None:
        return NOT_KNOWN
    ratio = "" if row.ratio is None else f", {row.ratio.told()}"
    return f"{row.p50_ms:.3g}{'' if row.stable else ' ~'}{ratio}"


def _kilobytes(size: int | None) -> str:
    return NOT_KNOWN if size is None else f"{size / 1000:.1f}"
