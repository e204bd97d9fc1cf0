"""Numbers that must not move by themselves.

When a change moves them on purpose, bump BUILDING_BLOCKS or TRAINING_LOOP in workflow/versions.py (every cell then gets a
new key) and write the new numbers here under the new versions.
"""

import pytest

from workflow import cell as cells
from workflow import grid as grids
from workflow import results
from workflow.versions import BUILDING_BLOCKS, TRAINING_LOOP

GRID = """
tasks: {demo_glue: [acceptability]}
models: [tiny-bert]
methods: [full, lora, houlsby, ia3, bitfit]
recipe: {max_steps: 40, batch_size: 16, evaluations: 1, lr: 1.0e-2, weight_decay: 0.1}
measure: [accuracy]
"""
# training loss at steps 20 and 40, by (BUILDING_BLOCKS, TRAINING_LOOP)
GOLDEN = {
    (1, 1): {
        "full": [0.706457, 0.703438],
        "lora": [0.697893, 0.696088],
        "houlsby": [0.696194, 0.699482],
        "ia3": [0.698079, 0.695878],
        "bitfit": [0.699083, 0.704311],
    }
}


def test_training_losses_are_those_of_these_versions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_text(GRID)
    grid = grids.load(tmp_path / "grid.yaml")
    losses = {}
    for cell in grid.cells:
        assert cells.main(grid, cell) == "ok"
        losses[cell.method] = [value for _, value in results.read(cell.path)["curves"]["train_loss"]]
    golden = GOLDEN.get((BUILDING_BLOCKS, TRAINING_LOOP))
    assert golden is not None, f"write the numbers of these versions: {losses}"
    assert {name: pytest.approx(values, abs=1e-4) for name, values in golden.items()} == losses
