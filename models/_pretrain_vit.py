"""Pretrain `atlas-vit` on procedural images: `python -m models._pretrain_vit`, or `snakemake atlas_vit`.

Writes config.json, model.safetensors and training.csv (step, loss, accuracy; means since the line before, on images
never seen before). On one thread, so that the same torch on the same kind of processor makes the same weights.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import ViTModel

from models._procedural import CLASSES, FAMILIES, Images
from models.entries import model as model_entry
from models.load import configuration

SEED = 0
STEPS = 1200
BATCH = 64
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
WARMUP = 0.05
COLOURED = (0.1, 0.6)  # shares of the steps between which images in any colours go from none to all
EVERY = 20  # steps between two lines of the curve


def pretrain(steps: int = STEPS, seed: int = SEED) -> tuple[ViTModel, list[tuple[int, float, float]]]:
    """The network after `steps`, and its curve: step, cross-entropy in nats, accuracy."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    images = Images(seed)
    network = ViTModel(configuration(model_entry("atlas-vit")), add_pooling_layer=False).train()
    head = nn.Linear(network.config.hidden_size, CLASSES * len(FAMILIES))
    parameters = [*network.parameters(), *head.parameters()]
    decayed = [p for p in parameters if p.dim() > 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    curve, losses, hits, started = [], [], [], time.monotonic()
    for step in range(1, steps + 1):
        pixels, labels = images.batch(BATCH, _varied(step / steps))
        logits = head(network(pixel_values=pixels).last_hidden_state.mean(1))
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        hits.append((logits.argmax(1) == labels).float().mean().item())
        if step % EVERY == 0 or step == steps:
            curve.append((step, sum(losses) / len(losses), sum(hits) / len(hits)))
            losses, hits = [], []
            spent = time.monotonic() - started
            print(f"step {step}/{steps} loss {curve[-1][1]:.3f} accuracy {curve[-1][2]:.3f} {spent:.0f} s", flush=True)
    return network.eval(), curve


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = WARMUP * steps
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _varied(done: float) -> float:
    """The share of images in any colours when this share of the steps is done."""
    first, last = COLOURED
    return min(max((done - first) / (last - first), 0.0), 1.0)


def write(network: ViTModel, curve: list[tuple[int, float, float]], target: Path) -> None:
    """The three files, each put in place only when all are complete."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as made:
        network.save_pretrained(made)
        with (Path(made) / "training.csv").open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("step", "loss", "accuracy"))
            rows.writerows((step, f"{loss:.4f}", f"{accuracy:.4f}") for step, loss, accuracy in curve)
        for name in ("config.json", "model.safetensors", "training.csv"):
            (Path(made) / name).chmod(0o644)
            os.replace(Path(made) / name, target / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, help="another folder than that of the entry")
    options = parser.parse_args()
    network, curve = pretrain(options.steps)
    write(network, curve, options.out or Path(__file__).parent / model_entry("atlas-vit").location)


if __name__ == "__main__":
    main()
