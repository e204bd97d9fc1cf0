"""Step times and memory of a method beside another one's."""

import pytest

from workflow import __main__, pace, registry


def measured(method="lora", model="tiny-bert", **more):
    return pace.pace(method, model, "lora", batch=2, length=8, steps=2, **more)


def started(method, model="tiny-bert", like=None):
    return pace._started(method, model, 2, 8, like)[0]


def test_a_method_beside_itself_takes_the_same_memory():
    row = measured()
    assert (row["status"], row["memory_ratio"]) == ("ok", 1.0)
    assert row["memory"] == row["against_memory"] > 0
    assert row["trained"] == sum(p.numel() for p in started("lora").method.trained())
    assert set(pace.COLUMNS) == set(row)


def test_the_first_round_is_dropped_and_neither_method_always_goes_first(monkeypatch):
    order, seconds = [], {"head": 1.0, "lora": 4.0}

    def step(training, data, step):
        order.append(training.method.name)
        return 100.0 if step.index == 0 else seconds[training.method.name]

    monkeypatch.setattr(pace, "_step", step)
    row = pace.pace("head", "tiny-bert", "lora", batch=2, length=8, steps=2)
    assert order == ["lora", "head", "head", "lora", "lora", "head"]
    assert (row["step_s"], row["against_step_s"], row["ratio"]) == (1.0, 4.0, 0.25)


def test_the_other_method_gets_the_sites_and_the_dropout_of_the_first():
    dora = started("dora")
    lora = started("lora", like=dora.method.settings)
    assert lora.method.planned.sites == dora.method.planned.sites != started("lora").method.planned.sites
    assert lora.method.settings.dropout == dora.method.settings.dropout > 0
    assert lora.method.settings.rank == registry.methods()["lora"].settings["rank"].default


def test_sites_that_are_no_linear_maps_are_not_taken_over():
    norms = started("ln_tuning").method
    assert started("lora", like=norms.settings).method.planned.sites == started("lora").method.planned.sites
    assert measured("ln_tuning")["status"] == "ok"


def test_a_number_of_layers_is_not_taken_over():
    assert measured("llama_adapter")["status"] == "ok"


def test_more_parameters_take_more_bytes():
    """AdamW keeps a gradient and two moments for each: 12 bytes. Pretrained weights themselves are not counted."""
    lora, full = measured(), measured("full")
    assert full["memory"] - lora["memory"] > 12 * (full["trained"] - lora["trained"])


def test_what_a_network_cannot_host_is_a_row_with_its_reason(monkeypatch):
    row = measured("vb_lora", model="tiny-bert")
    assert row["status"].startswith("unsupported: vector_length 256 does not divide")
    assert "vector_length" in pace.table([row, measured()])[0]["beside"]


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-vit"])
def test_each_kind_of_network(model):
    assert measured("ia3", model)["status"] == "ok"


def test_what_the_file_has_is_not_measured_again(tmp_path, monkeypatch, capsys):
    out = tmp_path / "pace.csv"
    arguments = ["pace", "ia3", "--model", "tiny-bert", "--batch-size", "2", "--length", "8", "--steps", "1"]
    assert __main__.main([*arguments, "--out", str(out)]) == 0
    monkeypatch.setattr(pace, "pace", lambda *a: pytest.fail("measured again"))
    assert __main__.main([*arguments, "--out", str(out)]) == 0
    (row,) = pace.rows(out)
    assert (row["method"], row["model"], row["batch"]) == ("ia3", "tiny-bert", "2")
    assert "lora: step x" in capsys.readouterr().out


def test_a_misspelt_method_is_one_clear_error(capsys):
    assert __main__.main(["pace", "lroa", "--model", "tiny-bert"]) == 2
    assert "lora" in capsys.readouterr().err
