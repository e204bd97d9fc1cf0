"""The tables say what was measured, how sure it is, and why a figure is not there."""

import re

import pandas as pd
import pytest

from tests.workflow import studies
from tests.workflow.studies import cell, failed, grid, result, store
from workflow import registry, tables, typeset
from workflow.registry import MethodInfo


@pytest.fixture(autouse=True)
def made_up_tasks(monkeypatch):
    monkeypatch.setattr(registry, "suites", studies.suites)


def scores(root, *documents, **options):
    """Store results and return the built tables of the grid of their cells."""
    from workflow.cells import Cell

    store(root, *documents)
    return tables.build(grid(*(Cell.from_json(document["cell"]) for document in documents), **options), root)


def entry(table, label, column=0):
    return next(row for row in table.rows if row.label == label).entries[column]


def column(table, title, unit=None):
    return next(i for i, c in enumerate(table.columns) if c.title == title and unit in (None, c.unit))


def notes_of(table, found):
    """The footnotes that an entry's marks point to."""
    notes = dict((mark, text) for mark, text in table.notes if mark)
    return [notes[mark] for mark in found.marks]


class TestScores:
    def test_three_seeds_give_their_mean_and_a_t_interval(self, tmp_path):
        made = [result(cell(seed=seed), value) for seed, value in enumerate((0.80, 0.82, 0.84))]
        found = entry(scores(tmp_path, *made).accuracy, "lora")
        # t(0.975, 2) = 4.302653, standard deviation 2 points, 3 seeds
        assert (found.value, found.seeds) == (pytest.approx(82.0), 3)
        assert found.half == pytest.approx(4.302653 * 2 / 3**0.5, rel=1e-6)
        assert found.text == "82.0 ±5.0"
        assert found.marks == ()

    def test_one_seed_gives_the_sampling_error_and_a_dagger(self, tmp_path):
        built = scores(tmp_path, result(cell(), 0.9, stderr=0.01))
        found = entry(built.accuracy, "lora")
        assert found.half == pytest.approx(1.96)
        assert found.marks == ("†",)
        assert "one seed" in notes_of(built.accuracy, found)[0]

    def test_without_a_standard_error_there_is_no_interval(self, tmp_path):
        made = result(cell())
        del made["metrics"]["selected"]["accuracy"]["stderr"]
        built = scores(tmp_path, made)
        found = entry(built.accuracy, "lora")
        assert (found.text, found.half) == ("90.0", None)
        assert "no interval" in notes_of(built.accuracy, found)[0]

    def test_the_selection_rule_of_the_protocol_names_the_score(self, tmp_path):
        made = result(cell(), 0.9)
        made["metrics"] |= {"rule": "last", "last": {"accuracy": {"value": 0.7, "stderr": 0.01, "n": 500}}}
        assert entry(scores(tmp_path, made).accuracy, "lora").value == pytest.approx(70.0)

    def test_a_lost_seed_is_named(self, tmp_path):
        lost = failed(cell(seed=2), "oom", "CUDA out of memory")
        built = scores(tmp_path, result(cell(), 0.8), result(cell(seed=1), 0.9), lost)
        found = entry(built.accuracy, "lora")
        assert found.seeds == 2
        assert notes_of(built.accuracy, found) == ["without seed 2 oom: CUDA out of memory"]


class TestTies:
    def test_overlapping_intervals_are_ties_and_others_are_not(self, tmp_path):
        built = scores(
            tmp_path,
            result(cell("lora"), 0.90, stderr=0.01),
            result(cell("vera"), 0.88, stderr=0.01),
            result(cell("ia3"), 0.80, stderr=0.01),
        )
        assert [entry(built.accuracy, name).best for name in ("lora", "vera", "ia3")] == [True, True, False]

    def test_controls_do_not_compete(self, tmp_path):
        built = scores(tmp_path, result(cell("full"), 0.95), result(cell("lora"), 0.90))
        assert [entry(built.accuracy, name).best for name in ("full", "lora")] == [False, True]

    def test_stored_predictions_of_one_seed_are_compared_pairwise(self, tmp_path):
        first, second = cell("lora"), cell("vera")
        made = [result(first, 0.90, stderr=0.02), result(second, 0.86, stderr=0.02)]
        store(tmp_path, *made)
        # vera is right on a subset of what lora is right on: 20 pairs differ, all in one direction
        for one, right in ((first, 450), (second, 430)):
            answers = [1] * right + [0] * (500 - right)
            frame = pd.DataFrame({"id": range(500), "reference": 1, "prediction_selected": answers})
            frame.to_parquet((tmp_path / one.path).with_suffix(".predictions.parquet"))
        built = scores(tmp_path, *made)
        assert [entry(built.accuracy, name).best for name in ("lora", "vera")] == [True, False]

    def test_unreadable_predictions_leave_the_intervals_to_decide(self, tmp_path):
        made = [result(cell("lora"), 0.90, stderr=0.02), result(cell("vera"), 0.86, stderr=0.02)]
        store(tmp_path, *made)
        (tmp_path / cell("vera").path).with_suffix(".predictions.parquet").write_text("not parquet")
        assert entry(scores(tmp_path, *made).accuracy, "vera").best


class TestControls:
    def test_controls_come_first_in_a_section_of_their_own(self, tmp_path):
        names = ("lora", "full", "head", "random_labels", "untrained")
        table = scores(tmp_path, *(result(cell(name)) for name in names)).accuracy
        assert [row.label for row in table.rows] == ["untrained", "random_labels", "head", "full", "lora"]
        assert [row.section for row in table.rows] == ["controls"] * 4 + ["methods"]

    def test_a_method_below_a_control_is_marked(self, tmp_path):
        built = scores(tmp_path, result(cell("head"), 0.8), result(cell("lora"), 0.7), result(cell("vera"), 0.79))
        lora, vera = (entry(built.accuracy, name) for name in ("lora", "vera"))
        assert "↓" in lora.marks and "↓" in vera.marks
        note = dict(built.accuracy.notes)["↓"]
        assert note.startswith("below control")
        assert "lora on glue/sst2, minilm-l6, below head;" in note
        assert note.endswith("vera on glue/sst2, minilm-l6, below head (intervals overlap)")

    def test_full_fine_tuning_is_no_floor(self, tmp_path):
        built = scores(tmp_path, result(cell("full"), 0.95), result(cell("lora"), 0.7))
        assert "↓" not in entry(built.accuracy, "lora").marks


class TestAbsence:
    @pytest.mark.parametrize("status", ["oom", "diverged", "timeout", "unsupported", "error"])
    def test_a_failed_cell_shows_its_word_and_reason(self, tmp_path, status):
        built = scores(tmp_path, failed(cell(), status, "because of this"))
        for table in built.typeset():
            for found in table.rows[0].entries:
                assert found.text == found.status == status
                assert found.value is None
                assert notes_of(table, found) == [f"{status}: because of this"]

    def test_a_cell_that_has_not_run_is_missing(self, tmp_path):
        found = entry(tables.build(grid(cell()), tmp_path).accuracy, "lora")
        assert found.text == "missing"

    def test_a_corrupt_file_is_a_row_with_the_mend(self, tmp_path):
        path = tmp_path / cell().path
        path.parent.mkdir(parents=True)
        path.write_text('{"schema": 1, "key"')
        built = tables.build(grid(cell()), tmp_path)
        found = entry(built.accuracy, "lora")
        assert found.text == "corrupt"
        assert path.name in notes_of(built.accuracy, found)[0] and "mend:" in notes_of(built.accuracy, found)[0]

    def test_a_file_with_the_result_of_another_cell_is_corrupt(self, tmp_path):
        store(tmp_path, result(cell()))
        other = cell(settings={"rank": 2})
        (tmp_path / other.path).parent.mkdir(parents=True)
        (tmp_path / cell().path).rename(tmp_path / other.path)
        assert entry(tables.build(grid(other), tmp_path).accuracy, "lora").text == "corrupt"

    def test_seeds_that_failed_in_several_ways_show_the_worst_word_and_every_reason(self, tmp_path):
        built = scores(tmp_path, failed(cell(), "timeout", "an hour"), failed(cell(seed=1), "oom", "too big"))
        found = entry(built.accuracy, "lora")
        assert found.text == "oom"
        assert notes_of(built.accuracy, found) == ["timeout: an hour", "oom: too big"]

    def test_a_broken_plugin_is_a_row_with_its_error(self, tmp_path):
        info = MethodInfo(**{name: None for name in MethodInfo.__dataclass_fields__} | {"name": "b", "error": "line 3"})
        table = scores(tmp_path, result(cell()), broken=[info]).accuracy
        assert entry(table, "b").text == "broken"
        assert notes_of(table, entry(table, "b")) == ["broken: line 3"]

    def test_a_cell_outside_the_grid_is_not_called_missing(self, tmp_path):
        table = scores(tmp_path, result(cell()), result(cell("vera", task="mrpc"))).accuracy
        assert entry(table, "lora", 1).text == entry(table, "vera", 0).text == "n/a"
        assert ("", "n/a: the grid has no such cell.") in table.notes

    def test_a_method_without_cells_in_a_block_is_not_printed_there(self, tmp_path):
        table = scores(tmp_path, result(cell()), result(cell("vera", suite="vtab", task="dtd", model="vit"))).accuracy
        assert [[row.label for row in block.rows] for block in table.blocks()] == [["lora"], ["vera"]]
        assert "n/a" not in typeset.to_markdown(table)

    def test_absent_figures_are_dashes_with_a_footnote(self, tmp_path):
        without = result(cell(), memory={"device": "cpu", "train_peak": 2**20}, latency=None)
        other = result(cell("vera"), memory={"device": "cuda", "train_reserved": 2**20}, latency=None)
        built = scores(tmp_path, without, other)
        reserved = entry(built.memory, "lora", column(built.memory, "training reserved"))
        assert (reserved.text, reserved.value) == ("—", None)
        assert "does not give this figure" in notes_of(built.memory, reserved)[0]
        assert {found.text for found in built.latency.rows[0].entries} == {"—"}

    def test_what_the_grid_does_not_measure_says_so(self, tmp_path):
        built = scores(tmp_path, result(cell(), latency=None), measure=("accuracy",))
        assert notes_of(built.latency, entry(built.latency, "lora")) == ["— absent: the grid does not measure latency"]

    def test_no_failure_of_any_cell_raises(self, tmp_path):
        empty = grid()
        assert tables.build(empty, tmp_path).summary.rows == ()
        assert tables.write(tables.build(empty, tmp_path), tmp_path / "out")


class TestParameters:
    def test_trained_head_stored_and_added_stay_apart(self, tmp_path):
        table = scores(tmp_path, result(cell(), trained=2**18)).parameters
        row = {(c.title, c.unit): e for c, e in zip(table.columns, table.rows[0].entries, strict=True)}
        assert row["trained", "parameters"].text == "262,144"
        assert row["trained", "% of backbone"].value == pytest.approx(262.144)
        assert row["head", "parameters"].text == "770"
        assert row["stored", "MiB"].value == pytest.approx(1.0)
        assert row["added at inference", "parameters"].text == "0"

    def test_a_count_that_is_not_the_closed_form_is_marked(self, tmp_path):
        made = result(cell(), trained=1000)
        made["parameters"]["expected"]["trained"] = 1200
        table = scores(tmp_path, made).parameters
        assert entry(table, "lora", 1).marks == ("≠",)
        assert "trained: 1,000 found, 1,200 expected" in dict(table.notes)["≠"]

    def test_a_count_inside_its_expected_range_is_not(self, tmp_path):
        made = result(cell(), trained=1000)
        made["parameters"]["expected"]["trained"] = [500, 1500]
        assert entry(scores(tmp_path, made).parameters, "lora", 1).marks == ()

    def test_counts_that_move_are_all_given(self, tmp_path):
        made = result(cell())
        made["parameters"]["trained"] = {
            "attached": 1000,
            "after_optimizer": 600,
            "peak": 1000,
            "mean": 750.5,
            "final": 500,
        }
        table = scores(tmp_path, made).parameters
        text = " ".join(notes_of(table, entry(table, "lora", 1)))
        assert "1,000 / 750 / 500 (peak / mean / final)" in text
        assert "1,000 attached, 600 after the optimizer is built" in text

    def test_counts_of_a_failed_cell_are_shown(self, tmp_path):
        made = result(cell(), metrics=None, status="oom", reason="too big")
        assert entry(scores(tmp_path, made).parameters, "lora", 1).text == "1,000"


class TestCosts:
    def test_times_are_in_milliseconds_and_memory_in_mebibytes(self, tmp_path):
        built = scores(tmp_path, result(cell()))
        assert entry(built.time, "lora", column(built.time, "step median")).value == pytest.approx(25.0)
        assert entry(built.time, "lora", column(built.time, "step p95")).value == pytest.approx(50.0)
        assert entry(built.memory, "lora", column(built.memory, "training peak")).value == pytest.approx(256.0)
        assert entry(built.latency, "lora", column(built.latency, "attached, batch 1")).value == pytest.approx(2.0)

    def test_a_figure_that_no_cell_of_a_place_has_takes_no_column(self, tmp_path):
        titles = [column.title for column in scores(tmp_path, result(cell())).latency.columns]
        assert titles == [
            *("bare, batch 1", "attached, batch 1", "merged, batch 1"),
            *("bare, batch 32", "attached, batch 32"),
        ]

    def test_a_ratio_to_the_bare_backbone_has_its_quartiles(self, tmp_path):
        timed, ratio = {"median": 0.002}, {"median": 1.25, "p25": 1.2, "p75": 1.3, "n": 9}
        latency = {"token_batch_8": {"bare": timed, "attached": timed, "attached_over_bare": ratio}}
        built = scores(tmp_path, result(cell(), latency=latency))
        found = entry(built.latency, "lora", column(built.latency, "token attached, batch 8", "% of bare"))
        assert (found.text, found.value) == ("125 [120–130]", pytest.approx(125.0))

    def test_operations_and_energy(self, tmp_path):
        flops = {"train_step": 6 * 10**9, "utilisation": 0.25, "inference_bare": 10**9, "inference_added": 0}
        built = scores(tmp_path, result(cell(), flops=flops, energy={"source": "nvml", "train": 120.0}))
        shown = {
            column.title: entry(built.operations, "lora", i).text for i, column in enumerate(built.operations.columns)
        }
        assert shown == {
            "training step": "6.00",
            "of the matmul peak": "25.0",
            "inference bare": "1.00",
            "added at inference": "0",
            "training energy": "120",
        }
        assert any("energy by nvml" in text for _, text in built.operations.notes)

    def test_a_figure_from_one_run_is_marked_where_others_are_from_more(self, tmp_path):
        once = scores(tmp_path / "a", result(cell()), result(cell("vera"))).time
        assert ("", "Runs a figure: 1.") in once.notes and entry(once, "lora").marks == ()
        mixed = scores(tmp_path / "b", *(result(cell(seed=seed)) for seed in (0, 1)), result(cell("vera"))).time
        assert (entry(mixed, "lora").marks, entry(mixed, "vera").marks) == ((), ("‡",))
        assert ("", "Runs a figure: 2; 1 for vera on glue/sst2, minilm-l6.") in mixed.notes

    def test_seeds_are_put_together_by_median_of_time_and_largest_memory(self, tmp_path):
        made = [result(cell(seed=seed)) for seed in range(3)]
        for one, step, peak in zip(made, (0.010, 0.020, 0.090), (2**20, 3 * 2**20, 2**21), strict=True):
            one["time"] = {"step_median": step}
            one["memory"] = {"device": "cpu", "train_peak": peak}
        built = scores(tmp_path, *made)
        step = entry(built.time, "lora", column(built.time, "step median"))
        assert (step.text, step.value) == ("20.0 [10.0–90.0]", pytest.approx(20.0))
        peak = entry(built.memory, "lora", column(built.memory, "training peak"))
        assert (peak.text, peak.value) == ("3.00", pytest.approx(3.0))

    def test_times_of_two_machines_carry_a_warning(self, tmp_path):
        other = result(cell("vera"))
        other["provenance"] = other["provenance"] | {"host": "node2"}
        built = scores(tmp_path, result(cell()), other)
        assert any("compare times only within one" in text for _, text in built.time.notes)


class TestSummary:
    def test_the_mean_over_tasks_needs_every_task(self, tmp_path):
        built = scores(
            tmp_path,
            result(cell(), 0.9),
            result(cell(task="mrpc"), 0.7),
            result(cell("vera"), 0.9),
            failed(cell("vera", task="mrpc"), "diverged", "loss is nan"),
        )
        mean = column(built.summary, "mean of 2 of 5")
        assert entry(built.summary, "lora", mean).value == pytest.approx(80.0)
        assert entry(built.summary, "lora", mean).half == pytest.approx((1.96**2 * 2) ** 0.5 / 2)
        assert entry(built.summary, "vera", mean).text == "—"
        reason = notes_of(built.summary, entry(built.summary, "vera", mean))
        assert reason == ["— incomplete: no figure of mrpc (diverged)"]

    def test_it_fits_a_terminal_with_three_tasks(self, tmp_path):
        tasks = ("acceptability", "entailment", "similarity")
        made = [
            result(cell(name, task=task, suite="demo_glue"), trained=294_912)
            for task in tasks
            for name in ("full", "lora")
        ]
        text = tables.to_markdown_text(scores(tmp_path, *made).summary)
        table = [line for line in text.split("\n\n")[2].splitlines()]
        assert max(map(len, table)) <= 110
        assert len({line.rstrip()[-4:] for line in table if set(line) == {"-"}}) == 1


class TestMeans:
    def vtab(self, root, *lost):
        """LoRA on five tasks of two groups, scores 0.5, 0.6, …; the lost ones ran out of memory."""
        names = ("cifar", "dtd", "pets", "clevr", "dsprites")
        cells = [cell(suite="vtab", task=name, model="vit") for name in names]
        made = [result(one, 0.5 + 0.1 * i) for i, one in enumerate(cells)]
        made = [failed(one, "oom", "full") if one.task in lost else made[i] for i, one in enumerate(cells)]
        return scores(root, *made)

    def test_groups_their_mean_and_the_mean_over_tasks(self, tmp_path):
        table = self.vtab(tmp_path).accuracy
        found = {c.title: e.value for c, e in zip(table.columns, table.rows[0].entries, strict=True)}
        assert found["natural, mean of 3"] == pytest.approx(60)
        assert found["structured, mean of 2"] == pytest.approx(85)
        assert found["mean of 2 groups"] == pytest.approx(72.5)
        assert found["mean of 5 tasks"] == pytest.approx(70)

    def test_a_lost_task_blanks_its_group_and_everything_above(self, tmp_path):
        table = self.vtab(tmp_path, "dtd").accuracy
        found = {c.title: e for c, e in zip(table.columns, table.rows[0].entries, strict=True)}
        assert found["structured, mean of 2"].value == pytest.approx(85)
        for title in ("natural, mean of 3", "mean of 2 groups", "mean of 5 tasks"):
            assert notes_of(table, found[title]) == ["— incomplete: no figure of dtd (oom)"]

    def test_the_summary_of_a_suite_with_groups_has_only_the_means(self, tmp_path):
        titles = [c.title for c in self.vtab(tmp_path).summary.columns]
        assert "cifar" not in titles and "mean of 5 tasks" in titles

    def test_groups_of_one_task_each_are_no_groups(self, tmp_path):
        made = [result(cell(suite="vtab", task=name, model="vit")) for name in ("cifar", "clevr")]
        titles = [c.title for c in scores(tmp_path, *made).summary.columns]
        assert titles == ["trained", "trained", "cifar", "clevr", "mean of 2 of 5", "step", "memory", "stored"]

    def test_suites_and_models_are_not_mixed(self, tmp_path):
        made = [
            result(cell(suite=suite, task="sst2", model=model)) for suite in ("glue", "demo_glue") for model in "ab"
        ]
        built = scores(tmp_path, *made, result(cell(task="rte", model="a")))
        means = [c for c in built.accuracy.columns if c.title.startswith("mean")]
        assert [(c.group, c.title) for c in means] == [("glue, a", "mean of 2 of 5")]

    def test_wnli_does_not_count(self, tmp_path):
        table = scores(tmp_path, *(result(cell(task=name), 0.8) for name in ("sst2", "rte", "wnli"))).accuracy
        assert [c.title for c in table.columns] == ["sst2", "rte", "wnli", "mean of 2 of 5"]
        assert notes_of(table, table.columns[2]) == ["this task does not count in means over tasks"]

    def test_tasks_with_several_metrics_have_a_mean_without_their_unit(self, tmp_path):
        made = [result(cell(task="cola"), 0.5, metric="matthews"), result(cell(task="rte"), 0.7)]
        assert scores(tmp_path, *made).accuracy.columns[-1].unit == "×100"


class TestParts:
    def test_each_part_beside_the_headline(self, tmp_path):
        values = {"accuracy/matched": 0.8, "accuracy/mismatched": 0.7}
        table = scores(tmp_path, result(cell(task="mnli"), 0.8, others=values)).parts
        assert [c.title for c in table.columns] == ["headline: matched", "matched", "mismatched"]
        assert [e.value for e in table.rows[0].entries] == pytest.approx([80, 80, 70])
        note = "Test examples of glue/mnli, minilm-l6: matched 500, mismatched 500."
        assert note in [text for _, text in table.notes]

    def test_a_contaminated_part_is_marked(self, tmp_path):
        values = {f"accuracy/{part}": 0.5 for part in ("gsm8k", "svamp", "addsub")}
        table = scores(tmp_path, result(cell(suite="math", task="math10k"), 0.5, others=values)).parts
        assert table.columns[0].title == "headline: mean of 2 parts"
        assert [len(c.marks) for c in table.columns] == [0, 0, 0, 1]
        assert "occur in the training data" in notes_of(table, table.columns[3])[0]

    def test_the_best_of_a_part_is_bold_by_its_intervals(self, tmp_path):
        made = [
            result(cell(name, task="mnli"), 0.8, others={"accuracy/matched": 0.8, "accuracy/mismatched": other})
            for name, other in (("lora", 0.7), ("vera", 0.9))
        ]
        table = scores(tmp_path, *made).parts
        assert [entry(table, name, 2).best for name in ("lora", "vera")] == [False, True]

    def test_there_is_no_table_without_parts(self, tmp_path):
        built = scores(tmp_path, result(cell()))
        assert built.parts is None and built.answers is None


class TestAnswers:
    def built(self, root, **more):
        values = {"accuracy_flexible": 0.6, "accuracy_likelihood": 0.7, "unparsed": 0.25, "nll": 1.2345}
        made = [
            result(cell(suite="math", task="gsm8k", **more), 0.5, others=values, n=200),
            result(cell("vera", suite="math", task="gsm8k", **more), 0.5, others=values | {"nll": 2.5}, n=200),
        ]
        return scores(root, *made)

    def test_extractions_likelihood_and_size(self, tmp_path):
        table = self.built(tmp_path).answers
        assert [c.title for c in table.columns] == ["strict", "flexible", "likelihood", "unparsed", "nll", "test"]
        assert [e.value for e in table.rows[0].entries] == pytest.approx([50, 60, 70, 25, 1.2345, 200])
        assert entry(table, "lora", 4).text == "1.234 ±0.020"

    def test_of_likelihoods_and_unparsed_texts_less_is_better(self, tmp_path):
        table = self.built(tmp_path).answers
        assert [entry(table, name, 4).best for name in ("lora", "vera")] == [True, False]

    @pytest.mark.parametrize("value", [-0.5, 1e6])
    def test_a_likelihood_may_be_any_number(self, tmp_path, value):
        table = scores(tmp_path, result(cell(suite="math", task="gsm8k"), 0.5, others={"nll": value})).answers
        assert entry(table, "lora", 4).value == value

    def test_a_cut_test_set_is_marked(self, tmp_path):
        protocol = {"name": "p", "version": 1, "max_test": 200}
        built = self.built(tmp_path, protocol=protocol)
        for table in (built.accuracy, built.answers, built.summary):
            column = next(c for c in table.columns if c.title in ("gsm8k", "strict"))
            assert notes_of(table, column) == ["n = 200 test examples, cut by the protocol's max_test of 200"]

    def test_a_test_set_that_is_smaller_than_the_cut_is_not(self, tmp_path):
        protocol = {"name": "p", "version": 1, "max_test": 500}
        assert self.built(tmp_path, protocol=protocol).accuracy.columns[0].marks == ()


class TestCheckpoints:
    def last(self, of):
        made = result(of, 0.9)
        made["metrics"] |= {"rule": "last"}
        return made

    def test_one_note_where_all_scores_share_it(self, tmp_path):
        table = scores(tmp_path, self.last(cell()), self.last(cell("vera"))).accuracy
        assert "Checkpoint of the scores: the last step." in [text for _, text in table.notes]

    def test_columns_are_marked_where_they_differ(self, tmp_path):
        table = scores(tmp_path, self.last(cell()), result(cell(suite="math", task="gsm8k"))).accuracy
        assert [notes_of(table, c) for c in table.columns] == [
            ["checkpoint: the last step"],
            ["checkpoint: the evaluation that was best on validation data, by nll"],
        ]

    def test_a_row_that_differs_is_marked_unless_it_never_trained(self, tmp_path):
        untrained = self.last(cell("untrained"))
        untrained["training"] = {"steps": 0}
        made = [result(cell("lora")), result(cell("oft")), self.last(cell("vera")), untrained]
        table = scores(tmp_path, *made).accuracy
        assert "checkpoint: the last step" in notes_of(table, entry(table, "vera"))
        assert "checkpoint: the last step" not in notes_of(table, entry(table, "untrained"))


class TestLabels:
    def test_one_label_for_two_configurations_becomes_two_rows(self, tmp_path):
        made = [result(cell(settings={"rank": rank})) for rank in (4, 8)]
        labels = [row.label for row in scores(tmp_path, *made).accuracy.rows]
        assert len(set(labels)) == 2 and all(re.fullmatch(r"lora \[[0-9a-f]{8}\]", label) for label in labels)

    def test_divisions_are_kept_apart(self, tmp_path):
        made = [result(cell(division=name, settings={"d": name})) for name in ("author", "tuned")]
        labels = [row.label for row in scores(tmp_path, *made).accuracy.rows]
        assert labels == ["lora (author)", "lora (tuned)"]


@pytest.fixture
def mixed(tmp_path):
    """Tables of a demo grid with a little of everything, with labels and reasons that need escaping."""
    return scores(
        tmp_path,
        result(cell("head", suite="demo_glue"), 0.85),
        result(cell("lora", suite="demo_glue", label="LoRA r=4_a & 50 %"), 0.8),
        result(cell("vera", suite="demo_glue"), 0.9, latency=None),
        failed(cell("oft", suite="demo_glue"), "oom", r"C:\path {x} used 100% of $MEM_#1 ~^ [a|b] <c>"),
        title="A & B_c",
    )


class TestFiles:
    NAMES = ("summary", "accuracy", "parameters", "memory", "latency", "time", "operations")

    def test_every_table_is_written_in_four_formats(self, mixed, tmp_path):
        written = {path.name for path in tables.write(mixed, tmp_path / "out")}
        assert written == {f"{n}.{e}" for n in self.NAMES for e in ("csv", "parquet", "md", "tex")} | {
            "cells.csv",
            "cells.parquet",
        }
        assert {path.name for path in (tmp_path / "out").iterdir()} == written

    def test_the_same_results_give_the_same_bytes(self, mixed, tmp_path):
        tables.write(mixed, tmp_path / "one")
        again = tables.build(grid(*(outcome.cell for outcome in mixed.study.all()), title="A & B_c"), tmp_path)
        tables.write(again, tmp_path / "two")
        for path in (tmp_path / "one").iterdir():
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name

    def test_csv_and_parquet_hold_the_same_figures(self, mixed, tmp_path):
        tables.write(mixed, tmp_path)
        for name in self.NAMES:
            csv, parquet = pd.read_csv(tmp_path / f"{name}.csv"), pd.read_parquet(tmp_path / f"{name}.parquet")
            assert list(csv) == list(parquet)
            numbers = [c for c in csv if c.endswith("]")]
            pd.testing.assert_frame_equal(csv[numbers].astype(float), parquet[numbers].astype(float))

    def test_cells_has_one_row_a_cell(self, mixed, tmp_path):
        tables.write(mixed, tmp_path)
        frame = pd.read_parquet(tmp_path / "cells.parquet")
        assert len(frame) == 4
        assert frame.set_index("method").status["oft"] == "oom"
        assert frame.set_index("method")["memory.train_peak"]["vera"] == 256 * 2**20
        assert frame.set_index("method")["parameters.expected.trained.low"]["vera"] == 1000

    def test_every_column_has_a_unit(self, mixed):
        assert all(column.unit for table in mixed.typeset() for column in table.columns)

    def test_every_table_says_that_it_is_a_demo(self, mixed):
        for table in mixed.typeset():
            assert "(demo)" in typeset.to_markdown(table) and "(demo)" in typeset.to_latex(table)

    def test_markdown_rows_have_equal_numbers_of_fields(self, mixed):
        for table in mixed.typeset():
            for block in table.blocks():
                lines = typeset.markdown_block(block).splitlines()
                assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(block.columns) + 2}

    def test_latex_is_balanced_and_escaped(self, mixed):
        for table in mixed.typeset():
            text = typeset.to_latex(table)
            assert re.findall(r"\\begin\{(\w+)\}", text).count("tabular") == len(table.blocks())
            assert sorted(re.findall(r"\\begin\{(\w+)\}", text)) == sorted(re.findall(r"\\end\{(\w+)\}", text))
            bare = re.sub(r"\\[\\&%$#_{}]", "", text)
            assert bare.count("{") == bare.count("}")
            assert bare.count("$") % 2 == 0
            assert not re.search(r"[%#_^~|]", re.sub(r"\$[^$]*\$", "", bare))
            assert text.isascii()

    def test_latex_rows_have_equal_numbers_of_fields(self, mixed):
        block = mixed.accuracy.blocks()[0]
        lines = [line for line in typeset.latex_block(block).splitlines() if line.endswith(r"\\")]
        fields = {len(re.findall(r"(?<!\\)&", line)) for line in lines if "multicolumn{2}{l}" not in line}
        assert fields == {len(block.columns)}


def test_tables_with_the_same_contents_are_printed_once():
    columns = tuple(typeset.Column("head", "parameters", group) for group in ("a", "b", "c"))
    entries = tuple(typeset.Entry(text) for text in ("2", "2", "3"))
    table = typeset.Table("t", "T", columns, (typeset.TableRow("lora", "methods", entries),), ())
    assert [block.groups for block in table.blocks()] == [("a", "b"), ("c",)]


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (0.00123456, "0.00123"), (1.5, "1.50"), (123.4, "123"), (12345.6, "12,346")]
)
def test_three_significant_digits(value, text):
    assert typeset.significant(value) == text


def test_letters_go_on_after_z():
    assert [typeset.letter(index) for index in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]


class TestCostOnly:
    def made(self, tmp_path):
        costed = result(
            cell(suite="cost", task="generate", model="llama", recipe={"batch_size": 4, "dtype": "bfloat16"})
        )
        costed |= {"cost_only": True, "metrics": {}}
        del costed["metrics"]
        return scores(tmp_path, costed, result(cell(), 0.9))

    def test_a_place_that_is_only_costed_has_costs_and_no_score(self, tmp_path):
        built = self.made(tmp_path)
        groups = {table.name: {column.group for column in table.columns} for table in built.typeset()}
        assert groups["accuracy"] == {"glue, minilm-l6"}
        assert "cost/generate, llama (cost only)" in groups["memory"] and "cost, llama (cost only)" in groups["summary"]
        of_costs = [column.title for column in built.summary.columns if column.group == "cost, llama (cost only)"]
        assert of_costs == ["trained", "trained", "step", "memory", "stored"]

    def test_the_tables_say_what_the_batches_were(self, tmp_path):
        notes = [text for _, text in self.made(tmp_path).memory.notes]
        assert any(
            "Cost only: random weights, synthetic batches (cost/generate: 4 of 768 tokens, bfloat16)" in n
            for n in notes
        )

    def test_a_study_of_costs_alone_has_no_table_of_scores(self, tmp_path):
        costed = result(cell(suite="cost", task="generate", recipe={"batch_size": 4, "dtype": "float32"}))
        del costed["metrics"]
        built = scores(tmp_path, costed)
        assert built.accuracy is None and built.answers is None
        assert not any("interval" in text for _, text in built.summary.notes)
