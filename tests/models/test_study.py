from __future__ import annotations

import itertools
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

from deploykit import loading
from deploykit.artifact import ModelRef
from models import _charlm
from models._initialization import gate_blocks
from models._methods import parameters
from models._study import ablation, conduct, plan, results, runs, text
from models._study.pace import paces
from models._study.picture import picture
from models._study.plan import Job, Methods, Plan
from models._study.results import GRU, LSTM, RNN
from models._study.statistics import Interval
from models._study.tasks import Shape, StudyTask, study_task
from models._study.traffic import make_up
from models.study import main
from tests.models.studies import TWO

Command = Callable[..., Result]
TINY = Plan(
    budget=2000,
    steps=4,
    batch=8,
    window=6,
    seeds=2,
    rates=(3e-3, 1e-2),
    rate_steps=2,
    windows=(3,),
    window_steps=2,
    ablation_steps=2,
    pace_rounds=2,
    bench_seconds=0.02,
    bench_rounds=2,
    deployed=1,
    same_hidden=False,
)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    make_up(tmp_path / "series.csv")
    return tmp_path / "series.csv"


@pytest.fixture
def traffic(series: Path) -> StudyTask:
    return study_task("traffic", series)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Command]:
    """The command in an empty folder, on the smallest plan; torch's threads are put back afterwards."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(plan.QUICK, "traffic", TINY)
    yield lambda *args: CliRunner().invoke(main, [str(arg) for arg in args])
    torch.set_num_threads(threads)


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without deployment and latency, which have a test of their own."""
    monkeypatch.setitem(plan.QUICK, "traffic", replace(TINY, deployed=0))
    monkeypatch.setattr(conduct, "latencies", lambda *_: iter(()))


@pytest.mark.slow
def test_a_study_from_end_to_end(command: Command, tmp_path: Path) -> None:
    done = command("traffic", "--quick", "--architectures", "gru,lstm", "-o", "out")
    assert done.exit_code == 0, done.output
    assert "made-up series" in done.output
    found = results.read(tmp_path / "out/results.json")
    assert found.architectures == (GRU, LSTM)
    assert {name: set(found.metrics("family", name)) for name in found.architectures} == {GRU: {0, 1}, LSTM: {0, 1}}
    assert all(0 < metric < 500 for name in found.architectures for metric in found.metrics("family", name).values())
    for name in found.architectures:
        deployed = found.of("family", name)[0].deployed
        assert deployed is not None
        assert deployed.reason is None
        assert deployed.float_metric == pytest.approx(found.metrics("family", name)[0], rel=1e-4)
        assert deployed.int8_metric == pytest.approx(deployed.float_metric, rel=0.05)
        for cell in (("torch", "float32", ""), ("ort", "float32", ""), ("ort", "int8", "portable")):
            row = found.latency(name, *cell)
            assert row is not None
            assert row.reason is None
            assert row.ratio is not None
            assert name != GRU or row.ratio.median == 1
    assert {one.variant for one in found.records if one.kind == "ablation"} >= {"base", "no clipping", "no forget bias"}
    assert found.settings["synthetic"] is True
    said = (tmp_path / "out/study.md").read_text()
    assert "made-up series, not real traffic" in said
    assert str(tmp_path) not in said
    assert str(tmp_path) not in (tmp_path / "out/results.json").read_text()
    assert ET.parse(tmp_path / "out/traffic.svg").getroot().tag.endswith("svg")


def test_an_interrupted_study_goes_on(
    command: Command, untimed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("traffic", "--quick", "--architectures", "gru,lstm", "--no-ablation", "-o", "out")
    train = runs.run
    trained: list[results.Key] = []

    def interrupted(*given: object) -> runs.Trained:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(given[2].key)  # type: ignore[attr-defined]
        return train(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(conduct, "run", interrupted)
    assert command(*args).exit_code != 0
    path = tmp_path / "out/results.json"
    before = json.loads(path.read_text())
    assert len(before["records"]) == 3
    assert not list(tmp_path.rglob("*.part"))
    again = command(*args)
    assert again.exit_code == 2
    assert "--resume" in again.output

    first = list(trained)
    trained.clear()

    def counted(*given: object) -> runs.Trained:
        trained.append(given[2].key)  # type: ignore[attr-defined]
        return train(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(conduct, "run", counted)
    assert command(*args, "--resume").exit_code == 0
    after = json.loads(path.read_text())
    assert after["records"][:3] == before["records"]
    assert after["paces"] == before["paces"]
    assert not set(first) & set(trained)
    keys = [one.key for one in results.read(path).records]
    assert keys == [*first, *trained]
    assert len(set(keys)) == len(keys) == 4 + 4 + 4  # rates, family, windows

    other = command(*args, "--resume", "--seeds", "3")
    assert other.exit_code == 2
    assert "seeds" in other.output


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (("traffic",), 2, "--data"),
        (("names", "--quick"), 2, "--data"),
        (("traffic", "--quick", "--architectures", "gur"), 2, "did you mean 'gru'?"),
        (("traffic", "--quick", "--architectures", "lstm"), 2, "add gru"),
        (("charlm", "--quick", "--architectures", "bigru"), 2, "looks ahead"),
        (("traffic", "--quick", "--architectures", "gru", "--budget", "20"), 2, "larger budget"),
        (("report", "nowhere", "-o", "out"), 1, "no results"),
    ],
)
def test_a_failure_is_one_sentence(
    command: Command, untimed: None, args: tuple[str, ...], code: int, sentence: str
) -> None:
    done = command(*args)
    assert done.exit_code == code, done.output
    assert sentence in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("name", [GRU, LSTM, RNN, "bigru"])
def test_the_hidden_size_is_the_largest_within_the_budget(traffic: StudyTask, name: str) -> None:
    hidden, count = plan.fit_hidden(traffic, name, 5000)
    assert count == parameters(traffic.module(name, Shape(hidden))) <= 5000
    assert parameters(traffic.module(name, Shape(hidden + plan.MULTIPLE))) > 5000


def test_the_gru_has_three_quarters_of_the_lstms_parameters() -> None:
    counts = plan.encoder_counts([GRU, LSTM])
    assert 4 * counts[GRU] == 3 * counts[LSTM]


def test_one_seed_is_one_result(traffic: StudyTask, tmp_path: Path) -> None:
    def metric(seed: int) -> float | None:
        job = Job("family", GRU, seed, "", 6, Shape(8), 3)
        return runs.run(traffic, TINY, job, 3e-3, 0, tmp_path).record.metric

    torch.set_num_threads(1)
    assert metric(0) == metric(0) != metric(1)


def test_a_run_that_diverges_is_a_record_that_says_so(traffic: StudyTask, tmp_path: Path) -> None:
    job = Job("family", GRU, 0, "", 6, Shape(8), 3, Methods(clipping=False))
    done = runs.run(traffic, TINY, job, 1e30, 0, tmp_path)
    assert done.weights is None
    assert done.record.metric is None
    assert "not finite" in (done.record.reason or "")


def test_what_an_ablation_leaves_out_is_left_out(traffic: StudyTask) -> None:
    def recurrent(name: str, methods: Methods) -> torch.nn.RNNBase:
        module = runs.build(traffic, Job("ablation", name, 0, "", 6, Shape(8), 1, methods))
        runs.initializer(methods)(module)
        return next(layer for layer in module.modules() if isinstance(layer, torch.nn.RNNBase))

    def distance(layer: torch.nn.RNNBase) -> float:
        block = gate_blocks(layer, dict(layer.named_parameters())["weight_hh_l0"])[0]
        return float((block @ block.T - torch.eye(8)).abs().max().detach())

    assert distance(recurrent(GRU, Methods())) < 1e-5 < 0.1 < distance(recurrent(GRU, Methods(orthogonal=False)))
    for there, bias in ((True, 1.0), (False, 0.0)):
        layer = recurrent(LSTM, Methods(forget_bias=there))
        found = dict(layer.named_parameters())
        assert torch.all(gate_blocks(layer, found["bias_ih_l0"] + found["bias_hh_l0"])[1] == bias)
    job = Job("ablation", GRU, 0, "", 6, Shape(8), 1, Methods(clipping=False, layer_rates=False))
    how = runs.recipe(TINY, job, 1e-3)
    assert how.clip == float("inf")
    assert not how.lr_scale


def test_each_ablation_changes_one_thing_and_has_a_base(traffic: StudyTask) -> None:
    planned = ablation.planned(traffic, TINY, {GRU: 8, LSTM: 8}, 8)
    assert {job.variant for job in planned.jobs} == {
        "base", "two layers", "no orthogonal", "no forget bias", "no clipping", "one rate", "dropout", "amp"
    }  # fmt: skip
    for job, base in planned.bases.items():
        assert base in planned.bases
        assert (base.seed, base.architecture, base.shape.hidden, base.steps) == (
            job.seed, job.architecture, job.shape.hidden, job.steps
        )  # fmt: skip
        changed = [name for name, value in vars(job.methods).items() if value != getattr(Methods(), name)]
        assert len(changed) == (job is not base)


def test_checkpointing_keeps_less() -> None:
    task = study_task("charlm", None)
    base = Job("ablation", GRU, 0, "base", 16, Shape(16), 1)
    job = replace(base, variant="checkpointing", methods=Methods(checkpointing=True))
    found = {one.variant: one for one in paces(task, TINY, [base, job], {base: base, job: base}, ticking(1, 1))}
    assert found["checkpointing"].kept_bytes < found["base"].kept_bytes


def test_the_pace_is_paired_by_round(traffic: StudyTask) -> None:
    gru, lstm = (Job("family", name, 0, "", 6, Shape(8), 1) for name in (GRU, LSTM))
    # The machine becomes slower all the time, and equally for both.
    found = paces(traffic, replace(TINY, pace_rounds=9), [gru, lstm], {gru: gru, lstm: gru}, ticking(100, 3))
    one, other = found
    assert one.ratio == Interval(1.0, 1.0, 1.0)
    assert other.ratio.median == pytest.approx(1.0, abs=0.15)
    assert one.seconds_per_1000_targets > 0


def ticking(first: int, more: int) -> Callable[[], int]:
    """A clock whose every interval is longer than the one before."""
    ticks = itertools.accumulate(itertools.count(first * 1000, more * 1000))
    return lambda: next(ticks)


def test_hours_lower_everybodys_steps_alike() -> None:
    half = TINY.scaled(0.5)
    assert (half.steps, half.rate_steps, half.window_steps, half.seeds) == (2, 1, 1, 2)


def test_few_hours_make_fewer_steps_and_say_so(command: Command, untimed: None, tmp_path: Path) -> None:
    args = ("--architectures", "gru", "--no-ablation", "--hours", "0.000001", "-o", "out")
    done = command("traffic", "--quick", *args)
    assert done.exit_code == 0, done.output
    assert "would not fit" in done.output
    assert results.read(tmp_path / "out/results.json").share < 1
    assert "of the planned steps" in (tmp_path / "out/study.md").read_text()


def test_a_factory_file_is_a_model_as_any_users(traffic: StudyTask, series: Path, tmp_path: Path) -> None:
    from models._study.deploy import write_model

    job = Job("family", GRU, 0, "", 6, Shape(8), 1)
    weights = runs.build(traffic, job).state_dict()
    ref = write_model("traffic", job, weights, series, tmp_path)
    spec = loading.load(ModelRef(ref.ref, weights=ref.weights))
    assert all(torch.equal(value, weights[name]) for name, value in spec.module.state_dict().items())
    assert spec.metric is not None
    assert spec.metric.name == "mae"


def test_charlm_judges_all_architectures_on_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    task = study_task("charlm", None)
    monkeypatch.setattr(type(task), "test_bytes", 64)
    metric = task.spec(task.module(GRU, Shape(8)), 16).metric
    assert metric is not None
    uniform = {"logits": torch.zeros(4, 16, _charlm.VOCABULARY).numpy()}
    assert metric.evaluate(lambda feeds: uniform) == pytest.approx(8.0)
    assert not task.allows("bigru")


def test_the_tables_numbers_are_the_results() -> None:
    said = text.section(TWO)
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in said.splitlines()}
    quality = next(line for line in said.splitlines() if line.startswith(f"| {RNN} "))
    assert quality.split(" | ")[2:6] == ["990", "0.003", "24.500 [24.000, 25.000]", "1.195 [1.190, 1.200]: worse"]
    assert cells["gru"][-4:] == ["–", "1, 1.00 [1.00, 1.00]", "–", "–"]
    assert "19.000" in said
    assert "no difference seen" in next(line for line in said.splitlines() if line.startswith(f"| {LSTM} "))
    assert "No architecture is clearly the best" in said
    assert f"{LSTM} | 4.0 | 1.5 | 98%" in said
    assert "0.1000 [0.1000, 0.1000]" in said  # what int8 costs
    assert "persistence 32.000" in said


def test_a_rate_at_the_edge_is_said() -> None:
    tried = [replace(record, kind="rate", rate=rate) for rate in (1e-3, 3e-3, 1e-2) for record in TWO.records]
    family = [replace(one, rate=1e-2) if one.architecture == LSTM else one for one in TWO.records]
    said = text.section(replace(TWO, records=(*tried, *family)))
    assert f"beyond which a better one may lie: {LSTM}." in said
    assert "At the edge" not in text.section(TWO)


def test_validation_chooses_the_rate(traffic: StudyTask, tmp_path: Path) -> None:
    asked = conduct.Asked((GRU,), None, True, 1, False)
    study = conduct.Study(traffic, TINY, asked, tmp_path, lambda _: None)
    job = Job("family", GRU, 0, "", 6, Shape(8), 1)
    assert study._rate(job) == TINY.rates[0]
    tried = (("0.003", 0.003, 5.0), ("0.01", 0.01, 4.0), ("0.03", 0.03, None))
    study.results = replace(
        study.results,
        records=tuple(
            results.Record("rate", GRU, 2, variant, 6, 8, 1, 1, rate, validation=validation, metric=None)
            for variant, rate, validation in tried
        ),
    )
    assert study._rate(job) == 0.01


def test_the_pictures_numbers_are_the_results() -> None:
    root = ET.fromstring(picture(TWO))
    space = {"svg": "http://www.w3.org/2000/svg"}
    told = root.find("svg:desc", space)
    assert told is not None
    assert f"gru 20.5, {LSTM} 20.2" in (told.text or "").replace(f"{RNN} 24.5, ", "")
    assert f"{RNN} 0.55" in (told.text or "")
    names = [element.text for element in root.iterfind("svg:text", space)]
    assert {RNN, GRU, LSTM} <= set(names)
    circles = [element for element in root.iterfind("svg:circle", space) if "seed s0" in element.get("class", "")]
    assert len(circles) == 9  # each run of each architecture, in float32
    places = [float(element.get("cx", "")) for element in circles]
    values = [24.0, 24.5, 25.0, 20.0, 20.5, 21.0, 19.0, 20.2, 21.5]
    order = sorted(range(9), key=lambda index: values[index])
    assert sorted(range(9), key=lambda index: places[index]) == order


def test_a_study_at_several_budgets_has_a_table_of_sizes(tmp_path: Path) -> None:
    small = replace(TWO, settings={**TWO.settings, "budget": 100}, records=TWO.records[: 2 * 3])
    for name, one in (("small", small), ("own", TWO)):
        results.save(one, tmp_path / name / "results.json")
    done = CliRunner().invoke(
        main, ["report", *(str(tmp_path / name) for name in ("small", "own")), "-o", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    said = (tmp_path / "study.md").read_text()
    assert said.count("## Traffic forecasting") == 1  # one task, whatever the number of studies
    assert f"Budget {TWO.settings['budget']:,} parameters" in said
    table = said[said.index("### Number of parameters") :].split("\n\n")[1].splitlines()
    assert table[0] == "| architecture | 100 | 1,000 | largest over smallest |"
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {name}" for name in small.architectures]
    assert "1.000 [1.000, 1.000]: no difference seen" in table[2]
    assert "Number of parameters" not in text.document([TWO])


def test_far_ratios_have_a_logarithmic_scale() -> None:
    far = replace(TWO, paces=(*TWO.paces[:-1], replace(TWO.paces[-1], ratio=Interval(50.0, 40.0, 60.0))))

    def ticks(found: results.Results) -> list[str]:
        root = ET.fromstring(picture(found))
        return [one.text or "" for one in root.iterfind("{*}text") if one.get("class") == "tick"]

    assert "10" in ticks(far)
    assert "10" not in ticks(TWO)


def test_a_report_of_several_tasks_is_one_document(tmp_path: Path) -> None:
    for task in ("traffic", "names"):
        results.save(replace(TWO, task=task), tmp_path / task / "results.json")
    done = CliRunner().invoke(
        main, ["report", str(tmp_path / "traffic"), str(tmp_path / "names"), "-o", str(tmp_path / "docs")]
    )
    assert done.exit_code == 0, done.output
    said = (tmp_path / "docs/study.md").read_text()
    assert said.index("## Traffic forecasting") < said.index("## Names by language")
    assert (tmp_path / "docs/names.svg").is_file()
    assert "| The GRU has 95 % of the LSTM's quality. | cannot be said here | cannot be said here |" in said


def test_help_tells_of_every_option_and_imports_no_torch() -> None:
    script = (
        "import sys; from models.study import main; main(['traffic', '--help'], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--data" in done.stdout
    for task in main.commands.values():
        for option in task.params:
            assert isinstance(option, click.Argument) or getattr(option, "help", None), option.name


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    results.save(TWO, tmp_path / "results.json")
    assert results.read(tmp_path / "results.json").records == TWO.records
