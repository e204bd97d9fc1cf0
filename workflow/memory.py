"""Measure what `workflow.estimate` predicts: the resident peak of a few training steps, on the CPU.

`python -m workflow.memory` trains each case in a process of its own, with random weights and synthetic batches, and
writes results/reference/memory/peaks.csv; `--table` only prints the table of docs/memory.md from that file. Cases that
the file has already are not measured again.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace

from models.entries import model as model_entry
from workflow import estimate, registry, sizes
from workflow.grid import BASE_RECIPE

PEAKS = registry.ROOT / "results" / "reference" / "memory" / "peaks.csv"
STEPS = 2  # the second has the optimiser's states
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}  # free() gives memory back
COLUMNS = ("model", "method", "batch", "length", "dtype", "checkpointing", "allocator", "parameters", "trained", "peak",
           "threads", "cpu", "python", "torch", "transformers", "commit")  # fmt: skip
_SHAPES = {"minilm-l6": (32, 128), "roberta-base": (8, 128), "smollm2-135m": (4, 256), "vit-b16": (8, 0)}
_METHODS = {"minilm-l6": ("lora", "bitfit", "houlsby", "ia3", "full"), "vit-b16": ("lora", "bitfit", "full"),
            "roberta-base": ("lora", "houlsby", "full"), "smollm2-135m": ("lora", "ia3", "full")}  # fmt: skip
CASES = [
    *((model, method, *_SHAPES[model], "float32", False) for model in _SHAPES for method in _METHODS[model]),
    ("minilm-l6", "lora", 32, 128, "float32", True),
    ("smollm2-135m", "lora", 4, 256, "float32", True),
    ("minilm-l6", "lora", 32, 128, "bfloat16", False),
]

HEAP_CASES = [(model, "lora", *_SHAPES[model], "float32", False) for model in _SHAPES]


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--case"]:
        print(json.dumps(_train(*json.loads(arguments[1]))))
        return
    if "--table" not in arguments:
        for allocator, extra in (("returned", RETURNED), ("glibc", {})):
            _measure(allocator, extra, CASES if allocator == "returned" else HEAP_CASES)
    print(table())


def _measure(allocator: str, extra: dict[str, str], cases: list[tuple]) -> None:
    import torch

    from workflow import provenance

    for case in cases:
        known = {_identity(row) for row in rows()} if PEAKS.exists() else set()
        if (*map(str, case), allocator) in known:
            continue
        command = [sys.executable, "-m", "workflow.memory", "--case", json.dumps(case)]
        environment = os.environ | extra | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(registry.ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=registry.ROOT)
        found = json.loads(done.stdout.splitlines()[-1])
        state = provenance.collect(torch.device("cpu"), threads=1)
        about = {name: state[name] for name in ("threads", "cpu", "python")} | {"commit": state["git"]["commit"]}
        about |= {name: state["packages"][name] for name in ("torch", "transformers")}
        named = dict(zip(COLUMNS, (*case, allocator), strict=False))
        _append(named | found | about)
        print(*case, allocator, found["peak"], file=sys.stderr, flush=True)


def _append(row: dict) -> None:
    PEAKS.parent.mkdir(parents=True, exist_ok=True)
    new = not PEAKS.exists()
    with PEAKS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def rows() -> list[dict[str, str]]:
    """The committed measurements; `peak` in bytes."""
    with PEAKS.open(newline="") as file:
        return list(csv.DictReader(file))


def _identity(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in COLUMNS[:7])


def predicted(row: dict[str, str]) -> estimate.Estimate:
    """What the formula says of a measured case, with the method as it is attached on the meta device."""
    from workflow import count

    entry = model_entry(row["model"])
    backbone, method = count.attached(row["method"], row["model"], {})
    setting = estimate.Setting(
        batch=int(row["batch"]),
        length=int(row["length"]),
        dtype=row["dtype"],
        generation=backbone.head is None,
        checkpointing=row["checkpointing"] == "True",
    )
    return estimate.estimate(sizes.of(entry), estimate.learned_by(method, backbone), setting)


def table() -> str:
    """Markdown: estimate beside measurement, in MB."""
    lines = ["| model | batch x length | type | method | allocator | estimate MB | measured MB | error |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows():
        size = f"{row['batch']} x {row['length']}" if row["length"] != "0" else f"{row['batch']} images"
        dtype = f"{row['dtype']}{', checkpointing' if row['checkpointing'] == 'True' else ''}"
        total, peak = predicted(row).total, int(row["peak"])
        cells = (row["model"], size, dtype, row["method"], row["allocator"], f"{total / 1e6:,.0f}")
        lines.append(f"| {' | '.join(cells)} | {peak / 1e6:,.0f} | {100 * (total / peak - 1):+.1f} % |")
    return "\n".join(lines)


def _train(model: str, method: str, batch: int, length: int, dtype: str, checkpointing: bool) -> dict[str, int]:
    """Peak (bytes) of a few steps in this process, and the numbers that they train."""
    import torch

    from methods.base import Phase, Step
    from models.load import load
    from workflow.meter import Meter
    from workflow.train import Training

    torch.set_num_threads(1)
    entry = replace(model_entry(model), source="random", revision="1")
    generation = entry.kind == "decoder"
    kind = "generation" if generation else "classification"
    backbone = load(entry, kind, dtype=getattr(torch, dtype))
    backbone.restorable = False
    attached = registry.load_method(registry.methods()[method]).create({})
    recipe = BASE_RECIPE | {"dtype": dtype, "batch_size": batch, "evaluations": 0}
    training = Training(backbone, attached, recipe, None, None, seed=0)
    attached.planned = attached.plan(backbone.shape)
    attached.attach(backbone, training)
    attached.initialise(backbone, training)
    if checkpointing:
        backbone.gradient_checkpointing()
    backbone.train(True)
    attached.parts.train(True)
    rows_, meter = synthetic(backbone, batch, length), Meter((torch.device("cpu"),))
    with meter.phase("train"):
        training.optimizer = training._build_optimizer()
        for index in range(STEPS):
            training._step(rows_, Step(index, STEPS, Phase()))
    trained = sum(parameter.numel() for parameter in attached.trained())
    return {"parameters": backbone.shape.parameters, "trained": trained, "peak": meter.memory["train_peak"]}


def synthetic(backbone, batch: int, length: int, answer: int = 16):
    """Random tokens or pixels without padding; a decoder learns all of its tokens, one with an encoder `answer`."""
    import torch

    from models.batch import Batch

    config = backbone.base.config
    if backbone.kind == "vision":
        inputs = {"pixel_values": torch.randn(batch, 3, config.image_size, config.image_size)}
        return Batch(inputs, torch.randint(0, 2, (batch,)), batch, batch, True)
    ids = torch.randint(3, config.vocab_size, (batch, length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = {"decoder": ids.clone(), "encoder_decoder": ids[:, :answer].clone()}
    return Batch(inputs, labels.get(backbone.kind, torch.randint(0, 2, (batch,))), batch * length, batch * length, True)


if __name__ == "__main__":
    main(sys.argv[1:])
