"""`medmamba summarize`: made-up results of runs against the same numbers by hand."""

import csv
import dataclasses
import hashlib
import json

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, roc_auc_score

import medmamba_jax as mm
from medmamba_jax import cli
from medmamba_jax.assessment.comparison import compare_answers, compare_aucs
from medmamba_jax.assessment.config import ResultsConfig
from medmamba_jax.data.csv_table import write_csv_table
from medmamba_jax.evaluation import write_predictions
from medmamba_jax.metrics import Outputs
from medmamba_jax.runs import RunDescription
from medmamba_jax.runs.outputs import read_outputs
from medmamba_jax.runs.summaries import summarize, summary_text

CLASSES = ("=healthy", "ill", "very ill")
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 60)
NAMES = [f"{row}.png" for row in range(60)]
PATIENTS = [f"P{row // 2}" for row in range(60)]
FILES = [f"{row // 3}.dcm" for row in range(60)]


def probabilities(skill, seed, labels=LABELS):
    logits = skill * np.eye(3)[labels] + np.random.default_rng(seed).normal(size=(len(labels), 3))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.fixture
def write_run(config, tmp_path):
    """Returns a function that writes what a finished run leaves, and returns its folder."""

    def write_run(
        name,
        p,
        *,
        seed=0,
        fold="",
        rows=None,
        labels=LABELS,
        where="",
        facts=("patient", "content"),
        content="",
        images="a",
        augmented_on="",
        **train,
    ):
        columns = {
            "patient": PATIENTS,
            "file": FILES,
            "content": [f"{content}{row}" for row in range(60)],
        }
        rows = np.arange(len(NAMES)) if rows is None else rows
        settings = config(seed=seed, **train)
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, fold=fold))
        folder = tmp_path / name
        results = folder / (where or "results")
        results.mkdir(parents=True)
        RunDescription(
            config=settings.to_dict(),
            model=settings.model.architecture(3),
            preprocessing=settings.data.preprocessing(3),
            class_names=CLASSES,
            task="multiclass",
            best_metric="auc",
            dataset="clinic",
            images_sha256={"train": images, "val": "b", "test": "c"},
            synthetic=False,
            augmented_on=augmented_on,
        ).write(folder)
        header = ["path", *facts, "label", "predicted"]
        cells = [
            [
                *(NAMES[row], *(columns[fact][row] for fact in facts), CLASSES[labels[row]]),
                *(CLASSES[p[row].argmax()], *(f"{x:.9g}" for x in p[row])),
            ]
            for row in rows
        ]
        ends = (
            ("results.json", "predictions.csv") if where else ("test.json", "test_predictions.csv")
        )
        values = {"epoch": 3, "synthetic": False, "num_examples": len(cells)}
        (results / ends[0]).write_text(json.dumps(values))
        write_csv_table(results / ends[1], [*header, *(f"p_{x}" for x in CLASSES)], cells)
        return folder

    return write_run


def auc(p, rows=slice(None)):
    return roc_auc_score(LABELS[rows], p[rows], multi_class="ovr")


def test_seeds_have_each_value_mean_and_deviation(write_run, tmp_path):
    ps = [probabilities(1.5, seed) for seed in range(3)]
    folders = [write_run(f"x/seed_{seed}", p, seed=seed) for seed, p in enumerate(ps)]
    found = summarize([tmp_path / "x"], tmp_path / "out", settings=ResultsConfig(resamples=200))
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == found
    (model,) = found["models"]
    assert (model["name"], model["kind"], found["comparisons"]) == ("x", "seeds", [])
    assert (found["num_examples"], found["num_patients"]) == (60, 30)
    assert [run["folder"] for run in model["runs"]] == [str(folder) for folder in folders]
    for name, expected in {
        "accuracy": [accuracy_score(LABELS, p.argmax(1)) for p in ps],
        "auc": [auc(p) for p in ps],
    }.items():
        assert [run["metrics"][name] for run in model["runs"]] == pytest.approx(expected)
        entry = model["metrics"][name]
        assert entry["mean"] == entry["value"] == pytest.approx(np.mean(expected))
        assert entry["sd"] == pytest.approx(np.std(expected, ddof=1))
        assert [entry["min"], entry["max"]] == pytest.approx([min(expected), max(expected)])
        assert entry["low"] < entry["value"] < entry["high"]
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (row,) = [r for r in rows if (r["metric"], r["class"], r["run"]) == ("auc", "", "")]
    assert float(row["sd"]) == model["metrics"]["auc"]["sd"]
    assert {r["class"] for r in rows} == {"", "'=healthy", "ill", "very ill"}  # no formula
    printed = summary_text(found)
    assert "x (seeds, 3 runs)" in printed and "seed 2" in printed
    assert "test: 60 images of 30 patients" in printed


def test_folds_are_pooled_so_that_each_image_counts_once(write_run):
    p = probabilities(1.5, 0)
    parts = np.array_split(np.random.default_rng(1).permutation(60), 3)
    folders = [
        write_run(f"fold_{k + 1}", p, fold=f"{k + 1}/3", rows=part) for k, part in enumerate(parts)
    ]
    found = summarize(folders, settings=ResultsConfig(resamples=500))
    (model,) = found["models"]
    assert model["kind"] == "folds" and found["num_examples"] == 60
    assert [run["num_examples"] for run in model["runs"]] == [20, 20, 20]
    each, entry = [auc(p, part) for part in parts], model["metrics"]["auc"]
    assert entry["value"] == pytest.approx(auc(p))
    assert (entry["mean"], entry["sd"]) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    whole = summarize([write_run("whole", p)], settings=ResultsConfig(resamples=500))["models"][0][
        "metrics"
    ]["auc"]
    assert (entry["low"], entry["high"]) == pytest.approx((whole["low"], whole["high"]), abs=0.02)

    with pytest.raises(mm.UserError, match=r"of the 3 folds with seed 0, 2/3 is missing: train it"):
        summarize([folders[0], folders[2]])
    again = write_run("again", p, fold="2/3", rows=parts[1])
    with pytest.raises(mm.UserError, match="the same seed 0 and the same fold 2/3: leave one"):
        summarize([*folders, again])
    other = write_run("other", p, fold="2/3", rows=parts[0])
    with pytest.raises(mm.UserError, match=r"png is a test image of two folds, .*fold_1 and .*ot"):
        summarize([folders[0], other, folders[2]])


def test_runs_on_different_training_images_are_different_models(write_run):
    p = probabilities(1.5, 0)
    one = write_run("one", p, images="a" * 64)
    two = write_run("two", p, seed=1, images="b" * 64)
    found = summarize([one, two], settings=ResultsConfig(resamples=20))
    assert [model["name"] for model in found["models"]] == ["one", "two"]
    (pair,) = found["comparisons"]
    assert pair["settings"] == {"training images": ["a" * 12, "b" * 12]}
    assert f"what differs: training images '{'a' * 12}' and 'bbb" in summary_text(found)


def test_runs_that_augment_at_different_places_are_different_models(write_run):
    """The device augments resized images, the host images of their own size."""
    ps = [probabilities(1.5, seed) for seed in range(3)]
    places = ("host", "device", "device")
    runs = [
        write_run(f"{place}_{seed}", p, seed=seed, augmented_on=place)
        for seed, (p, place) in enumerate(zip(ps, places, strict=True))
    ]
    found = summarize(runs, settings=ResultsConfig(resamples=20))
    assert [len(model["runs"]) for model in found["models"]] == [1, 2]
    (pair,) = found["comparisons"]
    assert pair["settings"] == {"augmented on": ["host", "device"]}
    rows = np.array_split(np.arange(60), 2)
    folds = [
        write_run(f"fold_{k}", ps[0], fold=f"{k}/2", rows=part, augmented_on=place)
        for k, (part, place) in enumerate(zip(rows, places, strict=False), start=1)
    ]
    with pytest.raises(mm.UserError, match="seed 0 and images augmented on the host, 2/2 is miss"):
        summarize(folds)


def test_a_fold_has_the_same_training_images_with_each_seed(write_run):
    p = probabilities(1.5, 0)
    parts = np.array_split(np.arange(60), 2)
    folders = {
        (seed, k): write_run(f"{seed}_{k}", p, seed=seed, fold=f"{k}/2", rows=part, images=f"i{k}")
        for seed in (0, 1)
        for k, part in enumerate(parts, start=1)
    }
    (model,) = summarize([*folders.values()], settings=ResultsConfig(resamples=20))["models"]
    assert model["kind"] == "folds of several seeds"
    other = write_run("other", p, seed=1, fold="2/2", rows=parts[1], images="new")
    with pytest.raises(mm.UserError, match=r"0_2 and .*other were trained on different images of"):
        summarize([folders[0, 1], folders[0, 2], folders[1, 1], other])


def test_two_models_are_compared_by_delong_mcnemar_and_bootstrap(write_run, capsys):
    ps = [probabilities(2.0, 0), probabilities(1.0, 1)]
    shuffled = np.random.default_rng(2).permutation(60)
    one = write_run("one", ps[0])
    two = write_run("two", ps[1], rows=shuffled, lr=0.5)
    assert cli.main(["summarize", str(one), str(two), f"--output={one.parent / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert "what differs: train.lr 0.001 and 0.5" in printed and "McNemar" in printed
    (pair,) = json.loads((one.parent / "out" / "summary.json").read_text())["comparisons"]
    assert (pair["first"], pair["second"]) == ("one", "two")
    assert pair["settings"] == {"train.lr": [0.001, 0.5]}
    patients = np.array(PATIENTS)
    for k, name in enumerate(CLASSES):
        expected = compare_aucs(LABELS == k, ps[0][:, k], ps[1][:, k], patients)
        entry = pair["per_class"][name]["auc"]
        assert entry["method"] == "DeLong"
        assert (entry["low"], entry["high"], entry["p"]) == pytest.approx(
            (expected.low, expected.high, expected.p)
        )
    right = [p.argmax(1) == LABELS for p in ps]
    accuracy = pair["metrics"]["accuracy"]
    assert accuracy["p"] == pytest.approx(compare_answers(*right, patients).p)
    assert accuracy["only_first"] == (right[0] & ~right[1]).sum()
    assert accuracy["difference"] == pytest.approx(right[0].mean() - right[1].mean())
    # The accuracy is a mean, so that SciPy can resample the patients' differences itself.
    gain = (right[0].astype(float) - right[1]).reshape(30, 2).mean(1)
    interval = stats.bootstrap((gain,), np.mean, n_resamples=2000, rng=0).confidence_interval
    assert (accuracy["low"], accuracy["high"]) == pytest.approx(tuple(interval), abs=0.02)
    assert pair["metrics"]["auc"]["p"] is None  # a mean over classes has no such test


def test_seeds_of_two_models_are_compared_by_their_means(write_run):
    ps = {(lr, seed): probabilities(10 * lr, seed) for lr in (0.1, 0.2) for seed in (0, 1, 2)}
    folders = [write_run(f"lr{lr}_{seed}", p, lr=lr, seed=seed) for (lr, seed), p in ps.items()]
    (pair,) = summarize(folders, settings=ResultsConfig(resamples=100))["comparisons"]
    assert pair["seeds"] == [3, 3] and "p" in pair["metrics"]["auc"]
    values = [[auc(p) for (of, _), p in ps.items() if of == lr] for lr in (0.1, 0.2)]
    entry = pair["metrics"]["auc"]
    assert entry["difference"] == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    expected = stats.ttest_ind(*values, equal_var=False).confidence_interval(0.95)
    assert (entry["seeds_low"], entry["seeds_high"]) == pytest.approx(tuple(expected))
    assert entry["low"] < entry["difference"] < entry["high"]
    tests = [
        e["p"] for part in (pair["metrics"], *pair["per_class"].values()) for e in part.values()
    ]
    assert set(tests) == {None}


def test_evaluations_elsewhere_are_compared_by_name(write_run):
    ps = [probabilities(2.0, 0), probabilities(1.0, 1)]
    folders = [
        write_run(f"lr{lr}", p, lr=lr, where="evaluations/clinic", facts=())
        for lr, p in zip((0.1, 0.2), ps, strict=True)
    ]
    found = summarize(folders, evaluation="clinic", settings=ResultsConfig(resamples=100))
    assert found["images"] == "clinic" and found["num_patients"] is None
    assert found["models"][1]["metrics"]["auc"]["value"] == pytest.approx(auc(ps[1]))
    assert any("Patients are not known" in note for note in found["notes"])
    # Earlier versions wrote no content.
    assert any("matched by path only" in note for note in found["notes"])
    assert found["matched_by"] == "path"
    with pytest.raises(mm.UserError, match=r"has no evaluations/city/results.json: medmamba eval"):
        summarize(folders, evaluation="city")
    with pytest.raises(mm.UserError, match=r"has no results/test.json: train it to the end"):
        summarize(folders)


def test_models_of_folds_elsewhere_are_no_independent_seeds(write_run):
    ps = {(lr, k): probabilities(10 * lr, k) for lr in (0.1, 0.2) for k in (1, 2)}
    folders = [
        write_run(f"cv{lr}_{k}", p, lr=lr, fold=f"{k}/2", images=f"{k}", where="evaluations/clinic")
        for (lr, k), p in ps.items()
    ]
    found = summarize(folders, evaluation="clinic", settings=ResultsConfig(resamples=20))
    assert [model["kind"] for model in found["models"]] == ["folds", "folds"]
    values = [auc(p) for (lr, _), p in ps.items() if lr == 0.1]
    entry = found["models"][0]["metrics"]["auc"]
    assert (entry["mean"], entry["sd"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    (pair,) = found["comparisons"]
    assert pair["seeds"] == [1, 1] and pair["metrics"]["auc"]["p"] is None
    assert "seeds_low" not in pair["metrics"]["auc"]
    printed = summary_text(found)
    assert "seeds" not in printed and "all folds" not in printed and "(folds, 2 runs)" in printed
    assert "share training images, so that their s.d. is no standard error" in printed

    again = [
        write_run(
            f"again_{k}", p, lr=lr, fold=f"{k}/2", images=f"{k}", seed=1, where="evaluations/clinic"
        )
        for (lr, k), p in ps.items()
        if lr == 0.1
    ]
    found = summarize([*folders, *again], evaluation="clinic", settings=ResultsConfig(resamples=20))
    assert found["models"][0]["kind"] == "folds" and found["comparisons"][0]["seeds"] == [2, 1]
    assert "seeds_low" not in found["comparisons"][0]["metrics"]["auc"]


def test_other_images_or_labels_are_refused(write_run, tmp_path):
    p = probabilities(1, 0)
    one = write_run("one", p)
    fewer = write_run("fewer", p, rows=np.arange(1, 60), lr=0.5)
    with pytest.raises(mm.UserError, match=r"1 are only in the first, .* such as 0.png"):
        summarize([one, fewer])
    labels = LABELS.copy()
    labels[3] = (labels[3] + 1) % 3
    with pytest.raises(mm.UserError, match=r"1 images have other labels in odd than in one: 3.png"):
        summarize([one, write_run("odd", p, labels=labels, lr=0.5)])
    with pytest.raises(mm.UserError, match="is given twice"):
        summarize([one, one])
    (tmp_path / "empty").mkdir()
    with pytest.raises(mm.UserError, match="holds no run and no series"):
        summarize([tmp_path / "empty"])


def test_an_image_of_another_content_is_not_the_same_image(write_run):
    p = probabilities(1, 0)
    one, older = write_run("one", p), write_run("older", p, lr=0.5, facts=())
    two = write_run("two", p, lr=0.1, content="other")
    same = write_run("same", p, lr=0.2, rows=np.arange(60)[::-1])
    few = ResultsConfig(resamples=5)
    found = summarize([one, same], settings=few)
    assert found["matched_by"] == "path and content"
    assert not any("matched by path only" in note for note in found["notes"])
    assert summarize([one], settings=few)["matched_by"] is None
    for runs in ([one, two], [older, one, two]):
        with pytest.raises(mm.UserError, match=r"60 images of two .* of one, .*: 0.png; 1.png"):
            summarize(runs, settings=few)


def test_two_tables_must_have_the_same_patients_under_any_names(write_run):
    p, few = probabilities(1, 0), ResultsConfig(resamples=5)
    one, other = write_run("one", p), write_run("other", p, lr=0.5)
    table = other / "results" / "test_predictions.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    patient = rows[0].index("patient")
    for row in rows[1:]:
        row[patient] = f"hash of {row[patient]}"
    table.write_text("\n".join(map(",".join, rows)))
    assert summarize([one, other], settings=few)["num_patients"] == len(set(PATIENTS))
    rows[5][patient] = "nobody"
    table.write_text("\n".join(map(",".join, rows)))
    with pytest.raises(mm.UserError, match="other and one disagree on the patient of the same"):
        summarize([one, other], settings=few)


def test_frames_of_a_file_are_compared_together(write_run):
    ps = [probabilities(2.0, 0), probabilities(1.0, 1)]
    facts = ("file", "content")
    runs = [write_run(f"{lr}", p, lr=lr, facts=facts) for lr, p in zip((0.1, 0.2), ps, strict=True)]
    found = summarize(runs, settings=ResultsConfig(resamples=500))
    boot = found["bootstrap"]
    assert (boot["resampled"], boot["units"], found["num_patients"]) == ("files", 20, None)
    assert "every file counts as another patient" in " ".join(found["notes"])
    (pair,) = found["comparisons"]
    files = np.array(FILES)
    expected = compare_aucs(LABELS == 1, ps[0][:, 1], ps[1][:, 1], files)
    assert pair["per_class"]["ill"]["auc"]["p"] == pytest.approx(expected.p)
    right = [p.argmax(1) == LABELS for p in ps]
    accuracy = pair["metrics"]["accuracy"]
    assert accuracy["p"] == pytest.approx(compare_answers(*right, files).p)
    gain = (right[0].astype(float) - right[1]).reshape(20, 3).mean(1)
    interval = stats.bootstrap((gain,), np.mean, n_resamples=500, rng=0).confidence_interval
    assert (accuracy["low"], accuracy["high"]) == pytest.approx(tuple(interval), abs=0.03)


def test_a_real_run_is_summarised_as_it_was_evaluated(trained):
    workdir, results = trained
    (model,) = summarize([workdir], settings=ResultsConfig(resamples=50))["models"]
    for name, entry in model["metrics"].items():
        value = results["test"][name]
        assert entry["value"] == (value if value is None else pytest.approx(value, abs=1e-5))


def test_stored_outputs_are_what_was_written(tmp_path):
    rng = np.random.default_rng(5)
    marks = rng.integers(0, 2, (20, 2)).astype(np.float32)
    marks[3, 1] = np.nan
    for task, labels, names in (
        ("multiclass", rng.integers(0, 2, 20), ("=1+1", "+ b")),
        ("multilabel", marks, ("patient", "@x")),
    ):
        images = mm.LabelledImages(
            [bytes([row]) for row in range(20)], labels, names, groups=np.arange(20) // 2
        )
        outputs = Outputs(task, names, labels, 20 * rng.normal(size=(20, 2)).astype(np.float32))
        write_predictions(tmp_path / "p.csv", images, outputs)
        found = read_outputs(tmp_path / "p.csv", task, names)
        assert found.names == images.names
        assert found.facts.keys() == {"patient", "content"}
        assert found.facts["patient"].tolist() == images.groups.tolist()
        contents = [hashlib.sha256(bytes([row])).hexdigest()[:32] for row in range(20)]
        assert found.facts["content"].tolist() == contents
        np.testing.assert_array_equal(found.outputs.labels, labels)
        np.testing.assert_allclose(found.outputs.probabilities, outputs.probabilities, rtol=1e-8)
        np.testing.assert_array_equal(found.outputs.predicted, outputs.predicted)
    with pytest.raises(mm.UserError, match="the run's classes need label, predicted, p_c, p_d"):
        read_outputs(tmp_path / "p.csv", "multiclass", ("c", "d"))


def test_a_table_of_predictions_that_cannot_be_right_is_refused(write_run, capsys):
    runs = [write_run(f"run_{seed}", probabilities(1, seed), seed=seed) for seed in (0, 1)]
    table = runs[0] / "results" / "test_predictions.csv"
    whole = table.read_bytes()
    lines = whole.decode("utf-8-sig").splitlines(keepends=True)
    for changed, problem in (
        ("".join(lines[:2]), "has 1 images, and test.json is of 60"),
        ("".join([lines[0], lines[1].rsplit(",", 1)[0] + ",7.5\n", *lines[2:]]), "7.5"),
        ("".join([lines[0], lines[1].rsplit(",", 1)[0] + ",nan\n", *lines[2:]]), "nan"),
    ):
        table.write_text(changed, encoding="utf-8")
        with pytest.raises(mm.UserError, match="with medmamba evaluate") as error:
            summarize(runs)
        assert problem in str(error.value)
    table.write_bytes(whole)
    for content in ("", "{}", "[]", "null"):
        (runs[0] / "results" / "test.json").write_text(content)
        with pytest.raises(mm.UserError, match=r"test\.json is damaged"):
            summarize(runs)
