"""A grid file becomes cells; what is wrong in it is one clear error."""

import time
from dataclasses import replace

import pytest

from tests.workflow import projects
from workflow import listing
from workflow.cells import Cell
from workflow.errors import AtlasError
from workflow.grid import BASE_RECIPE, load
from workflow.registry import ROOT


@pytest.fixture
def root(tmp_path):
    return projects.make(tmp_path)


def grid(root, methods="[head, lora]", more="", tasks="{small: [one]}", models="[tiny-bert]"):
    return projects.grid(root, f"tasks: {tasks}\nmodels: {models}\nmethods: {methods}\n{more}")


def only(root, *args, **options):
    cells = grid(root, *args, **options).cells
    assert len(cells) == 1
    return cells[0]


def test_cells_are_the_cross_of_tasks_models_methods_and_seeds(root):
    cells = grid(root, tasks="{small: all}", models="[tiny-bert, tiny-llama]", more="seeds: [0, 1]").cells
    found = [(cell.task, cell.model, cell.method, cell.seed) for cell in cells]
    assert len(set(found)) == len(found) == 16
    assert found[:3] == [
        ("one", "tiny-bert", "head", 0),
        ("one", "tiny-bert", "head", 1),
        ("one", "tiny-bert", "lora", 0),
    ]
    assert len({cell.path for cell in cells}) == 16


def test_models_may_be_given_by_suite(root):
    two = "{small: [one], other: [three]}"
    (root / "tasks/other.py").write_text(
        (root / "tasks/small.py").read_text().replace("small", "other").replace('"one"', '"three"')
    )
    cells = grid(root, "[lora]", tasks=two, models="{small: [tiny-bert], other: [tiny-llama]}").cells
    assert [(cell.suite, cell.model) for cell in cells] == [("small", "tiny-bert"), ("other", "tiny-llama")]
    some = "[lora, {method: head, models: [tiny-llama]}]"
    cells = grid(root, some, tasks=two, models="{small: [tiny-bert], other: [tiny-llama]}").cells
    assert [(cell.model, cell.method) for cell in cells] == [
        ("tiny-bert", "lora"),
        ("tiny-llama", "lora"),
        ("tiny-llama", "head"),
    ]
    with pytest.raises(AtlasError, match="no models for suite 'other'"):
        grid(root, "[lora]", tasks=two, models="{small: [tiny-bert]}")


def test_models_may_be_given_by_task(root):
    models = "{small/two: [tiny-llama], small: [tiny-bert]}"
    cells = grid(root, "[lora]", tasks="{small: all}", models=models).cells
    assert [(cell.task, cell.model) for cell in cells] == [("one", "tiny-bert"), ("two", "tiny-llama")]
    with pytest.raises(AtlasError, match="unknown suite of this grid: 'small/tow'"):
        grid(root, "[lora]", models="{small/tow: [tiny-bert]}")


def test_all_methods(root):
    assert {cell.method for cell in grid(root, "all").cells} == {"head", "lora", "lora_plus"}


def test_a_cell_knows_its_path_and_comes_back_from_json(root):
    cell = only(root, "[lora]", "seeds: [3]")
    assert str(cell.path) == f"results/cells/small/one/tiny-bert/lora-{cell.config_key}/seed3.json"
    assert cell.name == f"one/tiny-bert/lora-{cell.config_key}/seed3"
    assert (len(cell.config_key), len(cell.key)) == (8, 16)
    again = Cell.from_json(cell.to_json())
    assert (again, again.key) == (cell, cell.key)


def test_short_middle_and_long_forms_of_a_method_are_one_cell(root):
    entries = "[lora, lora: {rank: 8}, {method: lora, label: other, settings: {alpha: 16}}]"
    assert only(root, entries).settings == {"sites": ["attn.q", "attn.v"], "layers": None, "rank": 8, "alpha": 16.0}


def test_a_grid_of_values_is_one_entry_each(root):
    entry = "[{method: lora, settings: {rank: {grid: [4, 8]}}, recipe: {lr: {grid: [1e-3, 2e-3]}}}]"
    cells = grid(root, entry).cells
    assert [(cell.settings["rank"], cell.recipe["lr"]) for cell in cells] == [
        (4, 1e-3),
        (4, 2e-3),
        (8, 1e-3),
        (8, 2e-3),
    ]
    assert cells[1].label == "lora rank=4 lr=0.002"


def test_a_label_is_kept_and_made_longer_only_by_what_is_swept(root):
    entry = "[{method: lora, label: LoRA, settings: {alpha: 4, rank: {grid: [4, 8]}}}, head]"
    assert [cell.label for cell in grid(root, entry).cells] == ["LoRA rank=4", "LoRA rank=8", "head"]


def test_an_entry_may_have_tasks_models_seeds_and_division_of_its_own(root):
    entry = "[{method: lora, tasks: [small/two], models: [tiny-llama], seeds: [5], division: tuned}]"
    cell = only(root, entry)
    assert (cell.task, cell.model, cell.seed, cell.division) == ("two", "tiny-llama", 5, "tuned")


def test_the_recipe_is_resolved_from_the_general_to_the_particular(root):
    assert only(root, "[head]").recipe == BASE_RECIPE | {"epochs": 2.0, "batch_size": 16}
    assert only(root, "[lora]").recipe["lr"] == 5e-4
    assert only(root, "[lora]", "recipe: {lr: 1e-4}").recipe["lr"] == 1e-4
    entry = "[{method: lora, recipe: {lr: 2e-4}}]"
    assert only(root, entry, "recipe: {lr: 1e-4}").recipe["lr"] == 2e-4
    rules = "overrides: [{match: {method: lora}, recipe: {lr: 3}}, {match: {task: one}, recipe: {lr: 4}}]"
    assert only(root, entry, rules).recipe["lr"] == 4.0


def test_weights_have_the_type_that_the_model_comes_in_unless_the_recipe_says_another(root):
    file = root / "models/tiny.yaml"
    file.write_text(file.read_text().replace("  tiny-llama:\n", "  tiny-llama:\n    dtype: bfloat16\n"))
    types = {cell.model: cell.recipe["dtype"] for cell in grid(root, "[lora]", models="[tiny-bert, tiny-llama]").cells}
    assert types == {"tiny-bert": "float32", "tiny-llama": "bfloat16"}
    assert only(root, "[lora]", "recipe: {dtype: float32}", models="[tiny-llama]").recipe["dtype"] == "float32"


def test_an_option_of_the_model_is_in_the_recipe_only_where_it_is_used(root):
    plain, quantised = only(root, "[lora]"), only(root, "[lora]", "recipe: {quantize: nf4, compile: true}")
    assert not {"quantize", "compile"} & plain.recipe.keys()
    assert (quantised.recipe["quantize"], quantised.recipe["compile"]) == ("nf4", True)
    assert only(root, "[lora]", "recipe: {quantize: null, compile: false}").key == plain.key != quantised.key


def test_a_cell_that_is_only_costed_is_known_by_the_sizes_of_its_network(root):
    suite = root / "tasks/small.py"
    suite.write_text(suite.read_text().replace("*facts)", "*facts, cost_only=True)"))
    models = root / "models/tiny.yaml"
    models.write_text(models.read_text().replace("source: random", "source: hub\nlocation: some/where"))
    assert only(root, "[lora]").model_revision == "random:hidden_size=32,num_hidden_layers=2,vocab_size=97@1"


def test_a_model_without_weights_cannot_be_scored(root):
    models = root / "models/tiny.yaml"
    models.write_text(models.read_text().replace("source: random", "source: none"))
    with pytest.raises(AtlasError, match="'tiny-bert' has sizes and no weights"):
        grid(root)


def test_overrides_touch_only_what_they_match(root):
    rule = "overrides: [{match: {task: two, method: [lora]}, settings: {rank: 2}, recipe: {epochs: 9}}]"
    cells = grid(root, "[head, lora]", rule, tasks="{small: all}").cells
    changed = [(cell.task, cell.method) for cell in cells if cell.recipe["epochs"] == 9]
    assert changed == [("two", "lora")]
    assert [cell.settings["rank"] for cell in cells if cell.method == "lora"] == [8, 2]


@pytest.mark.parametrize(
    "more",
    [
        "recipe: {epochs: 3}",
        "protocol: {small: {size: 50}}",
        "overrides: [{match: {method: lora}, settings: {rank: 9}}]",
        "recipe: {lr: 0.1}",
    ],
)
def test_whatever_could_move_a_number_changes_the_key(root, more):
    assert only(root, "[lora]").config_key != only(root, "[lora]", more).config_key


@pytest.mark.parametrize("more", ["title: T", "name: other", "division: tuned", "measure: [accuracy]", "data_root: /d"])
def test_whatever_could_not_leaves_it(root, more):
    assert only(root, "[lora]").key == only(root, "[lora]", more).key


def test_the_seed_is_in_the_key_and_not_in_the_config_key(root):
    first, second = grid(root, "[lora]", "seeds: [0, 1]").cells
    assert first.config_key == second.config_key
    assert first.key != second.key


def test_a_cell_has_the_sources_of_its_entry_and_of_the_rules_that_match(root):
    rules = """
overrides:
  - {match: {task: two}, recipe: {lr: 0.5}, source: table 2}
  - {match: {method: lora}, recipe: {epochs: 4}, source: the paper}
  - {match: {method: head}, recipe: {epochs: 5}}
"""
    cells = grid(root, "[{method: lora, source: the paper}, head]", rules, tasks="{small: all}").cells
    sources = {(cell.task, cell.method): cell.source for cell in cells}
    assert sources == {
        ("one", "lora"): "the paper",
        ("two", "lora"): "the paper; table 2",
        ("one", "head"): None,
        ("two", "head"): "table 2",
    }


def test_a_source_is_kept_and_listed_and_no_part_of_the_key(root):
    plain = grid(root, "[{method: lora, label: L}]")
    said = grid(root, "[{method: lora, label: L, source: table 9}]")
    (before,), (cell,) = plain.cells, said.cells
    assert (cell.key, cell.path) == (before.key, before.path)
    assert "source" not in before.to_json() and cell.to_json()["source"] == "table 9"
    assert Cell.from_json(cell.to_json()) == cell and Cell.from_json(before.to_json()) == before
    assert [row["source"] for row in listing.cells(said)] == ["table 9"]
    assert all("source" not in row for row in listing.cells(plain))


def test_a_key_stays_what_it_was_when_a_field_is_added():
    identity = {"suite": "glue", "task": "rte", "model": "m", "method": "lora", "label": "l", "division": "author"}
    parts = {"settings": {"rank": 8}, "recipe": {"lr": 1e-3}, "protocol": {"name": "p"}, "model_revision": "r"}
    cell = Cell(**identity, **parts, seed=0, plugin="0", building_blocks=1, training_loop=1)
    assert (cell.config_key, cell.key) == ("cc45ebfa", "06a2ae5f7f41efd6")
    assert not {"start", "source"} & cell.to_json().keys()


STARTED = """
tasks: {{glue: [{tasks}]}}
models: [tiny-bert]
methods: [{{method: lora, settings: {{rank: {{grid: [2, 4]}}}}}}]
seeds: [0, 1]
protocol: {{glue: {{name: {protocol}}}}}
overrides:
  - {{match: {{task: mnli}}, recipe: {{epochs: 30}}}}
  - {{match: {{task: rte}}, recipe: {{epochs: 80}}, settings: {{alpha: 4}}}}
"""


def started(root, tasks="rte, cola", protocol="mnli-start"):
    """A grid of the project's own GLUE."""
    return load(projects.write(root, "started.yaml", STARTED.format(tasks=tasks, protocol=protocol)))


def test_a_grid_has_the_cells_that_its_cells_continue_from(root):
    assert {cell.task for cell in started(root, protocol="select-on-train-slice").cells} == {"rte", "cola"}
    found = started(root)
    assert [cell.task for cell in found.cells].count("mnli") == 4
    for cell in found.cells:
        assert (cell.start is not None) == (cell.task == "rte")
        if cell.start:
            start = found.cell(cell.start_key)
            assert (start.suite, start.task, start.start) == (cell.suite, "mnli", None)
            for same in ("method", "settings", "model", "seed", "protocol", "plugin", "label"):
                assert getattr(start, same) == getattr(cell, same)
            assert (start.recipe["epochs"], cell.recipe["epochs"]) == (30.0, 80.0)


def test_a_start_that_the_grid_names_anyway_is_one_cell(root):
    found = started(root, "mrpc, mnli, stsb")
    shared = {cell.start_key for cell in found.cells if cell.start}
    assert shared == {cell.grid_key for cell in found.cells if cell.task == "mnli"} and len(shared) == 4


def test_the_start_is_in_the_key_and_comes_back_from_json(root):
    cell = next(cell for cell in started(root).cells if cell.start)
    assert Cell.from_json(cell.to_json()) == cell and cell.to_json()["start"] == cell.start
    assert replace(cell, start=None).config_key != cell.config_key
    assert replace(cell, seed=9).start_key == f"{cell.start}/9"


def test_versions_of_building_blocks_and_loop_are_in_the_key(root, monkeypatch):
    before = only(root, "[lora]").key
    for name in ("BUILDING_BLOCKS", "TRAINING_LOOP"):
        with monkeypatch.context() as patch:
            patch.setattr(f"workflow.versions.{name}", 99)
            assert only(root, "[lora]").key != before


def test_a_new_plugin_adds_only_its_cells_and_an_edit_changes_only_its_own(root):
    entries = "[head, lora, lora_plus]"
    before = set(grid(root, entries).cells)
    projects.write(root, "methods/mine/new.py", projects.HEAD.replace('"head"', '"new"'))
    added = set(grid(root, "[head, lora, lora_plus, new]").cells) - before
    assert {cell.method for cell in added} == {"new"}
    projects.write(root, "methods/control/head.py", projects.HEAD + "    x = 1\n")
    assert {cell.method for cell in set(grid(root, entries).cells) - before} == {"head"}
    projects.write(root, "methods/control/head.py", "# a remark\n" + projects.HEAD)
    assert set(grid(root, entries).cells) == before


def test_cells_of_a_broken_plugin_are_left_out_and_named(root):
    projects.write(root, "methods/control/head.py", projects.HEAD.replace("class Head(", "class Head(("))
    found = grid(root)
    assert [cell.method for cell in found.cells] == ["lora"]
    assert [info.name for info in found.broken] == ["head"]


def test_plugins_may_lie_outside_the_project(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    projects.write(folder, "new.py", projects.HEAD.replace('"head"', '"new"'))
    assert only(root, "[new]", f"plugins: [{folder}]").method == "new"


WRAPPER = """
from dataclasses import dataclass
from methods.base import Method
class W(Method):
    name = "wrapper"
    @dataclass(frozen=True)
    class Settings:
        base: str = "lora"
        base_settings: dict | None = None
"""


def test_a_wrapper_depends_on_the_method_it_wraps(root):
    projects.write(root, "methods/control/wrapper.py", WRAPPER)
    before = only(root, "[wrapper]")
    assert before.settings["base_settings"]["rank"] == 8
    projects.write(root, "methods/lowrank/lora.py", projects.LORA + "    x = 1\n")
    assert only(root, "[wrapper]").config_key != before.config_key
    with pytest.raises(AtlasError, match="has no setting 'rnak'"):
        grid(root, "[wrapper: {base: lora, base_settings: {rnak: 2}}]")


def test_yaml_numbers_with_an_exponent_are_numbers(root):
    assert only(root, "[lora]", "recipe: {lr: 3e-4}").recipe["lr"] == 3e-4


def test_yes_and_no_are_words(root):
    assert only(root, "[{method: lora, label: no}]").label == "no"


@pytest.mark.parametrize(
    ("options", "key", "message", "mend"),
    [
        ({"methods": "[lroa]"}, "methods[0]", "unknown method 'lroa'", "did you mean 'lora'?"),
        ({"methods": "[lora: {rnak: 8}]"}, "methods[0].lora.rnak", "no setting 'rnak'", "did you mean 'rank'?"),
        ({"methods": "[lora: {rank: high}]"}, "methods[0].lora.rank", "'high' does not fit", "give int"),
        ({"methods": "[lora: {rank: 8.5}]"}, "methods[0].lora.rank", "8.5 does not fit", "give int"),
        ({"methods": "[{method: lora, lable: x}]"}, "methods[0].lable", "unknown key", "did you mean 'label'?"),
        (
            {"methods": "[{method: lora, recipe: {lrr: 1}}]"},
            "methods[0].recipe.lrr",
            "unknown key",
            "did you mean 'lr'?",
        ),
        ({"methods": "[{lora: 1, head: 2}]"}, "methods[0]", "no method entry", "write `- lora`"),
        ({"models": "[tiny-brt]"}, "models[0]", "unknown model", "did you mean 'tiny-bert'?"),
        ({"tasks": "{smal: all}"}, "tasks.smal", "unknown suite", "did you mean 'small'?"),
        ({"tasks": "{small: [on]}"}, "tasks.small[0]", "task of suite 'small': 'on'", "did you mean 'one'?"),
        ({"tasks": "{small: one}"}, "tasks.small", "'one' does not fit", "give 'all' or a list of names"),
        ({"more": "sedes: [0]"}, "sedes", "unknown key 'sedes'", "did you mean 'seeds'?"),
        ({"more": "seeds: [-1]"}, "seeds[0]", "-1 does not fit", "at least 0"),
        ({"more": "recipe: {lr: 0}"}, "recipe.lr", "0 does not fit", "more than 0"),
        ({"more": "recipe: {schedule: cosin}"}, "recipe.schedule", "'cosin'", "did you mean 'cosine'?"),
        ({"more": "recipe: {batch_size: big}"}, "recipe.batch_size", "'big'", "give a whole number"),
        ({"more": "protocol: {small: {sise: 3}}"}, "protocol.small.sise", "no option 'sise'", "did you mean 'size'?"),
        (
            {"more": "overrides: [{match: {task: on}}]"},
            "overrides[0].match.task",
            "unknown task",
            "did you mean 'one'?",
        ),
        ({"more": "plugins: [gone]"}, "plugins[0]", "no folder 'gone'", "give a folder"),
    ],
)
def test_an_error_names_the_file_the_key_and_the_mend(root, options, key, message, mend):
    with pytest.raises(AtlasError) as error:
        grid(root, **options)
    assert (error.value.file, error.value.key) == (root / "config/grid.yaml", key)
    assert message in error.value.message
    assert mend in error.value.mend


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: {small: all}\nseeds: [0]\nseeds: [1]\n", "the key 'seeds' is given twice"),
        ("tasks: [\n", "not valid YAML"),
        ("- a\n", "holds no mapping"),
        ("tasks: {small: all}\nmodels: [tiny-bert]\n", "the key 'methods' is missing"),
    ],
)
def test_a_file_that_is_no_grid_is_one_clear_error(root, text, message):
    with pytest.raises(AtlasError, match=message) as error:
        projects.grid(root, text)
    assert str(root / "config/grid.yaml") in str(error.value.file)


def test_a_file_that_is_not_there_is_one_clear_error(root):
    with pytest.raises(AtlasError, match="No such file"):
        load(root / "config/gone.yaml", root=root)


def test_overrides_replace_top_level_keys(root):
    found = projects.grid(root, data_root="/data", seeds=[7])
    assert (str(found.data_root), found.cells[0].seed) == ("/data", 7)


def test_a_cell_is_found_by_its_key(root):
    found = grid(root)
    cell = found.cells[1]
    assert found.cell(f"{cell.config_key}/0") is cell
    with pytest.raises(AtlasError, match="has no cell '00000000/0'"):
        found.cell("00000000/0")


def test_a_key_that_two_cells_have_by_chance_loses_neither(root, monkeypatch):
    expected = [(cell.task, cell.label, cell.seed) for cell in started(root).cells]
    monkeypatch.setattr(Cell, "config_key", property(lambda cell: f"0000000{cell.settings['rank']}"))
    found = started(root)
    assert [(cell.task, cell.label, cell.seed) for cell in found.cells] == expected
    assert len({cell.path for cell in found.cells}) == len(expected) > len({cell.grid_key for cell in found.cells})
    assert all(found.start(cell).task == "mnli" for cell in found.cells if cell.start)
    for cell in found.cells:
        assert found.cell(f"{cell.configuration}/{cell.seed}") is cell
    with pytest.raises(AtlasError, match="(?s)the key of .* cells.*write glue/mnli/"):
        found.cell("00000002/0")
    with pytest.raises(AtlasError, match="has no cell 'other/00000002/0'"):
        found.cell("other/00000002/0")


def test_two_configurations_that_would_share_a_result_are_refused(root, monkeypatch):
    only(root, "[{method: lora, settings: {rank: 2}}]")
    monkeypatch.setattr(Cell, "config_key", "0a1b2c3d")
    with pytest.raises(AtlasError, match="rank=2 and .*rank=4 have the key 0a1b2c3d by chance"):
        grid(root, methods="[{method: lora, settings: {rank: {grid: [2, 4]}}}]")


def test_ten_thousand_cells_expand_in_about_a_second(root):
    entry = f"[{{method: lora, settings: {{rank: {{grid: {list(range(1, 1001))}}}}}}}]"
    started = time.process_time()
    found = grid(root, entry, "seeds: [0, 1, 2, 3, 4]", tasks="{small: all}")
    assert len(found.cells) == 10_000
    assert time.process_time() - started < 2


@pytest.mark.parametrize("path", sorted((ROOT / "config").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_grid_of_the_project_has_cells_and_nothing_in_it_is_broken(path):
    found = load(path)
    assert found.cells and not found.broken


def test_the_grid_of_loras_paper_is_its_table_9():
    """(task, batch, epochs, learning rate) of Hu et al. (2021) for RoBERTa base."""
    cells = load(ROOT / "config/paper/lora_glue_roberta_base.yaml").cells
    assert {(c.task, c.recipe["batch_size"], c.recipe["epochs"], c.recipe["lr"]) for c in cells} == {
        ("mnli", 16, 30, 5e-4),
        ("sst2", 16, 60, 5e-4),
        ("mrpc", 16, 30, 4e-4),
        ("cola", 32, 80, 4e-4),
        ("qnli", 32, 25, 4e-4),
        ("qqp", 16, 25, 5e-4),
        ("rte", 32, 80, 5e-4),
        ("stsb", 16, 40, 4e-4),
    }
    assert len(cells) == 8 * 5 and {c.task for c in cells if c.start} == {"rte", "mrpc", "stsb"}
    for cell in cells:
        given = (cell.settings["rank"], cell.settings["alpha"], cell.settings["sites"], cell.recipe["max_length"])
        assert given == (8, 8.0, ["attn.q", "attn.v"], 512)
