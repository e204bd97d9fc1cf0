"""Figures show what the tables say: fronts, ties, curves, ranks, ladders and parts of costs."""

import itertools
import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from tests.workflow import studies
from tests.workflow.studies import cell, failed, grid, result, store
from workflow import figure_costs, figure_curves, figure_scores, figure_sizes, figure_tasks, figures, outcomes, registry
from workflow.outcomes import Row
from workflow.standing import Estimate, standings


@pytest.fixture(autouse=True)
def made_up_tasks(monkeypatch):
    monkeypatch.setattr(registry, "suites", studies.suites)


def loaded(root, *cells):
    study = outcomes.load(grid(*cells), root)
    return study, {place: standings(study, place) for place in study.scored}


def families(study):
    return {row: "control" if row.control else "lowrank" for row in study.rows}


class Marks(HTMLParser):
    """The elements of an SVG that have a method: class, method, and the tip inside."""

    def __init__(self, svg):
        super().__init__()
        self.found, self.ids, self.in_title = [], [], False
        self.feed(svg)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.in_title = tag == "title"
        if tag == "g" and "data-method" in attributes:
            self.found.append([attributes["class"], attributes["data-method"], ""])

    def handle_data(self, data):
        if self.in_title and self.found:
            self.found[-1][2] = data
            self.in_title = False


# --- drawings ---------------------------------------------------------------------------------------------------------


def test_a_drawing_takes_the_page_s_colours_and_keeps_labels_as_text():
    hostile = '$x_1$ <script> "quoted" 0.123456'

    def paint(figure, marks):
        axes = figure.add_subplot()
        (line,) = axes.plot([1, 2], [1, 2], color=figures.SERIES[1])
        marks.add(line, "line", f"tip of {hostile}", method=hostile)
        axes.set_xlabel(hostile)

    drawing = figures.drawn(paint, "a name / with, signs", "caption", "alt", size=(3, 2))
    found = Marks(drawing.svg)
    assert found.found == [["line", hostile, f"tip of {hostile}"]]
    assert "var(--c1)" in drawing.svg and "currentColor" in drawing.svg and figures.INK not in drawing.svg
    assert "<script" not in drawing.svg
    assert re.search(r'<text[^>]*>\$x_1\$ &lt;script&gt; "quoted" 0\.123456</text>', drawing.svg)
    assert drawing.name == "a-name-with-signs" and all(name.startswith("a-name-with-signs-") for name in found.ids)


@pytest.mark.parametrize(
    "value, text", [(0.02, "0.02"), (5, "5"), (2000, "2,000"), (20_000, "20 k"), (1.5e6, "1.5 M"), (7e9, "7 G")]
)
def test_ticks_are_plain_numbers(value, text):
    assert figures.short(value) == text


@pytest.mark.parametrize("limits, shown", [((5, 5), (4.5, 5.5)), ((0, 20), (0, 20))])
def test_an_axis_of_equal_scores_is_no_cliff(limits, shown):
    axes = SimpleNamespace(get_ylim=lambda: limits, set_ylim=lambda *wider: found.append(wider))
    found = [limits]
    figures.widen(axes, 1)
    assert found[-1] == shown


# --- scores against costs ---------------------------------------------------------------------------------------------


def points(*figures_of):
    return [
        figure_scores.Point(Row(name, "full" if name == "full" else "lora"), cost, Estimate(score, 1.0, 1), False, size)
        for name, cost, score, size in figures_of
    ]


def test_the_front_is_what_no_other_beats_at_the_same_cost_or_less():
    found = points(("a", 10, 80, 1), ("b", 10, 82, 1), ("c", 20, 81, 1), ("d", 30, 85, 1), ("full", 5, 99, 1))
    assert [point.row.label for point in figure_scores.front(found)] == ["b", "d"]


def test_markers_grow_with_memory_only_where_all_have_it():
    both = points(("a", 1, 1, 100.0), ("b", 1, 1, 300.0), ("c", 1, 1, 200.0))
    area = figure_scores.areas(both)
    low, high = figure_scores.AREAS
    assert [area(point) for point in both] == [low, high, (low + high) / 2]
    lacking = points(("a", 1, 1, 100.0), ("b", 1, 1, None))
    assert len({figure_scores.areas(lacking)(point) for point in lacking}) == 1


def named(rows):
    """The axes, and the box of each name that stands in them, of a figure with these points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure, marks = Figure(figsize=(6.6, 3.9), dpi=72), figures.Marks()
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlim=(1, 100), ylim=(0, 100))
    crowded = points(*rows)
    figure_scores.paint_labels(figure, axes, crowded, {}, marks, {point.row: "adapter" for point in crowded})
    return axes, [text.get_window_extent(figure.canvas.get_renderer()) for text in axes.texts]


def test_no_name_stands_on_the_axis():
    axes, boxes = named([("a_long_name_at_the_left", 3, 50, 1), ("beside_it", 7, 50.5, 1), ("far", 90, 99, 1)])
    assert len(boxes) == 3 and all(box.x0 >= axes.bbox.x0 for box in boxes)


def test_no_name_is_cut_off_at_the_right():
    axes, boxes = named([("a_long_name_at_the_right", 95, 50, 1), ("far", 3, 99, 1)])
    assert len(boxes) == 2 and all(box.x1 <= axes.figure.bbox.x1 for box in boxes)


def test_of_many_names_in_one_place_those_stand_that_find_room():
    _, boxes = named([(f"method_{number}", 10, 50 + number / 10, 1) for number in range(15)])
    assert 3 <= len(boxes) < 15
    assert not any(box.overlaps(other) for box, other in itertools.combinations(boxes, 2))


def test_means_over_tasks_come_first_and_a_cost_must_be_there_for_every_task(tmp_path):
    cells = [cell(name, task=task) for name in ("lora", "vera") for task in ("sst2", "rte")]
    made = [result(one, 0.9 if one.method == "lora" else 0.5, latency=None) for one in cells]
    del made[0]["time"]["step_median"]
    store(tmp_path, *made)
    study, ranked = loaded(tmp_path, *cells)
    first, *others = figure_scores.arenas(study, ranked)
    assert first.title == "glue, minilm-l6: mean of 2 of 5" and len(first.places) == 2 and len(others) == 2
    step = next(cost for cost in figure_scores.COSTS if cost.view == "step time")
    rows = {row.label: row for row in study.rows}
    assert step.at(study, rows["lora"], first.places) is None
    assert step.at(study, rows["vera"], first.places) == pytest.approx(25.0)
    drawing = figure_scores.score_against_cost(study, first, step, families(study))
    assert [method for kind, method, _ in Marks(drawing.svg).found if kind == "mark"] == ["vera"]
    parameters = figure_scores.score_against_cost(study, first, figure_scores.COSTS[0], families(study))
    tips = {method: tip for kind, method, tip in Marks(parameters.svg).found if kind == "mark"}
    assert tips["lora"] == "lora: 90.0 ± 1.4, 1,000 trained parameters, 256 MiB of memory"


def test_the_first_figure_is_that_of_the_suite_with_the_most_methods(tmp_path):
    cells = [cell("lora", task=task) for task in ("sst2", "rte")]
    cells += [cell(name, task="sst2", model="bert-base") for name in ("lora", "vera", "head")]
    store(tmp_path, *(result(one, 0.9) for one in cells))
    study, ranked = loaded(tmp_path, *cells)
    assert [arena.title for arena in figure_scores.arenas(study, ranked)] == [
        "glue/sst2, bert-base",
        "glue, minilm-l6: mean of 2 of 5",
        "glue/sst2, minilm-l6",
        "glue/rte, minilm-l6",
    ]


def test_a_method_that_trains_nothing_and_one_that_failed_are_not_drawn(tmp_path):
    cells = [cell("lora"), cell("vera"), cell("oft")]
    store(tmp_path, result(cells[0]), result(cells[1], trained=0), failed(cells[2], "oom", "no memory"))
    study, ranked = loaded(tmp_path, *cells)
    gallery = figure_scores.scores_against_costs(study, ranked, families(study))
    assert gallery.views == ("parameters", "memory", "step time", "latency")
    assert "vera" not in gallery.drawings[0].alt and "vera" in gallery.drawings[1].alt
    assert "oft" not in "".join(drawing.alt for drawing in gallery.drawings)


# --- tasks and ranks --------------------------------------------------------------------------------------------------


def test_a_map_of_tasks_marks_ties_and_says_why_a_score_is_not_there(tmp_path):
    cells = [cell(name, task=task) for name in ("head", "lora", "vera") for task in ("sst2", "rte")]
    made = [result(one, {"head": 0.5, "lora": 0.9, "vera": 0.7}[one.method], 0.001) for one in cells]
    made[-1] = failed(cells[-1], "diverged", "loss is nan")
    store(tmp_path, *made)
    study, ranked = loaded(tmp_path, *cells)
    (drawing,) = figure_tasks.heat_maps(study, ranked).drawings
    tips = [tip for _, method, tip in Marks(drawing.svg).found if method == "lora"]
    assert tips == [f"lora on {task}: 90.0 ± 0.2, best or tied with it" for task in ("sst2", "rte")]
    assert "diverged" in drawing.svg
    shares = figure_tasks.positions(ranked[study.places[0]])
    assert {row.label: share for row, share in shares.items()} == pytest.approx({"head": 0, "lora": 1, "vera": 0.5})


def test_ranks_need_tasks_and_say_how_many_there_are(tmp_path):
    names = ("lora", "vera", "oft")
    tasks = ("cifar", "dtd", "pets", "clevr", "dsprites")
    cells = [cell(name, task=task, suite="vtab") for name in (*names, "boft") for task in tasks]
    store(tmp_path, *(result(one, 0.9 - 0.1 * names.index(one.method)) for one in cells if one.method in names))
    (drawing,) = figure_tasks.rank_plots(*loaded(tmp_path, *cells)).drawings
    assert "lora 1.00; vera 2.00; oft 3.00" in drawing.alt
    assert "mean ranks over 5 tasks. Friedman p = 0.0067; critical difference 1.48" in drawing.caption
    assert drawing.caption.endswith("not ranked: boft")
    few = figure_tasks.rank_plots(*loaded(tmp_path, *(one for one in cells if one.task in tasks[:4])))
    assert not few.drawings and "4 tasks with scores, 3 methods with a score on all of them" in few.why


# --- curves, sizes, costs ---------------------------------------------------------------------------------------------


def test_curves_are_thinned_and_broken_points_left_out():
    points = [(step, 1.0 / step) for step in range(1, 1001)] + [(1001, math.nan), (1002, None)]
    thin = figure_curves.thinned(points)
    assert len(thin) <= figure_curves.MOST_POINTS and thin[-1] == (1000, 0.001)
    assert figure_curves.thinned([]) == ()


def test_each_cell_has_its_curves(tmp_path):
    cells = [cell("lora", seed=seed) for seed in (0, 1)]
    store(tmp_path, *map(result, cells))
    study, _ = loaded(tmp_path, *cells)
    (drawing,) = figure_curves.learning_curves(study, families(study)).drawings
    tips = [tip for _, _, tip in Marks(drawing.svg).found]
    assert tips == [f"lora, seed {seed}: {end} at step 30" for end in ("0.2", "90") for seed in (0, 1)]


def test_the_gap_to_full_fine_tuning_by_size(tmp_path):
    cells = [cell(name, model=model) for name in ("full", "lora") for model in ("small", "large")]
    scores = {("full", "small"): 0.8, ("lora", "small"): 0.7, ("full", "large"): 0.9, ("lora", "large"): 0.91}
    made = [result(one, scores[one.method, one.model]) for one in cells]
    for document in made:
        document["parameters"]["backbone"] = 1_000_000 if document["cell"]["model"] == "small" else 9_000_000
    store(tmp_path, *made)
    study, ranked = loaded(tmp_path, *cells)
    found = figure_sizes.gaps(study, list(study.places), ranked)
    gaps = {row.label: [(gap.model, round(gap.value, 6), gap.half) for gap in values] for row, values in found.items()}
    half = pytest.approx(math.hypot(1.96, 1.96))
    assert gaps == {"lora": [("small", -10.0, half), ("large", 1.0, half)]}
    (drawing,) = figure_sizes.size_ladders(study, ranked, families(study)).drawings
    assert "lora: -10.0 on small, +1.0 on large" in drawing.alt and "9 M" in drawing.svg


def test_the_parts_of_a_cell_s_time_add_up(tmp_path):
    of = cell("lora")
    document = result(of)
    document["time"] = {"load": 1.0, "train": 5.0, "validation": 1.0, "test": 2.0, "total": 10.0, "step_median": 0.1}
    store(tmp_path, document)
    study, _ = loaded(tmp_path, of)
    time = figure_costs.BREAKDOWNS[0].of(study.at(study.rows[0], study.places[0]))
    assert time == pytest.approx({"load": 1.0, "train": 5.0, "evaluate": 3.0, "other": 1.0})
    drawing, *memory = figure_costs.cost_breakdowns(study, families(study)).drawings
    assert re.search(r"lora 10\.0 s: load 1\.00, train 5\.00, evaluate 3\.00, other 1\.00", drawing.alt)
    assert memory == []
