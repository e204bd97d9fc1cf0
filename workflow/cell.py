"""Run one cell: load, attach, train, evaluate, measure, and write its result. A failure is a result too."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.entries import model as model_entry
from workflow import provenance, registry, results
from workflow.cells import Cell
from workflow.errors import AtlasError, machine_failed
from workflow.files import replaced
from workflow.grid import Grid
from workflow.tries import Tries
from workflow.turn import turn

PROGRESS_SECONDS = 10.0
_NO_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "alloc_failed")


class Unusable(Exception):
    """The method does not support this backbone or task; the text is the reason."""


class Broken(Exception):
    """The plugin cannot be imported."""


@dataclass
class Run:
    """What is known so far of a running cell; becomes its result."""

    cell: Cell
    tries: Tries
    figures: dict[str, Any] = field(default_factory=dict)
    time: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, name: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.time[name] = self.time.get(name, 0.0) + time.perf_counter() - start


def once(grid: Grid, cell: Cell, data_root: Path | None = None, threads: int = 1, kept: Any = None) -> str:
    """Run a cell unless it has a sound result, as `main` does; returns the status.

    Of several processes that want the same cell at once, one runs it and the others wait for its result.
    """
    with turn(cell):
        status = results.state(cell)
        if status in results.STATUSES:
            say(cell, f"has a result: {status}")
        else:
            status = main(grid, cell, data_root=data_root, threads=threads, kept=kept)
    shutil.rmtree(cell.state_dir, ignore_errors=True)
    return status


def main(
    grid: Grid, cell: Cell, out: Path | None = None, data_root: Path | None = None, threads: int = 1, kept: Any = None
) -> str:
    """Run a cell of a grid and write its result; returns the status. kept: `workflow.kept.Kept` of a job with several.

    Raises AtlasError only where no later cell could do better: missing data, missing weights, a disk that is full.
    """
    out = cell.path if out is None else Path(out)
    started, began = provenance.now(), time.perf_counter()
    import torch

    from workflow.train import Interrupted

    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    root = _root(out, cell)
    try:
        with _left_at_sigterm():
            run, status, reason = _tried(grid, cell, device, root, data_root or grid.data_root, out, kept)
    except Interrupted as stop:
        say(cell, str(stop))
        sys.exit(128 + signal.SIGTERM)
    except OSError as problem:
        raise machine_failed(problem) from problem
    run.time["total"] = time.perf_counter() - began
    result = {
        "schema": 1,
        "key": cell.key,
        "cell": cell.to_json(),
        "status": status,
        "reason": reason,
        **run.figures,
        "time": run.time,
        "provenance": {
            "started": started,
            "finished": provenance.now(),
            **provenance.collect(device, threads),
            **run.figures.pop("sources", {}),
        },
    }
    result.pop("sources", None)
    results.write(out, result)
    shutil.rmtree(root / cell.state_dir, ignore_errors=True)
    say(cell, _summary(status, reason, run, grid, root))
    return status


def _root(out: Path, cell: Cell) -> Path:
    """The folder that holds results/: where the output path ends with the cell's own path."""
    own = cell.path.parts
    return Path(*out.parts[: -len(own)]) if out.parts[-len(own) :] == own else Path()


def say(cell: Cell, text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # who started the run is gone; the result is for whoever comes next
        print(f"{cell.name}  {text}", file=sys.stderr, flush=True)


def _summary(status: str, reason: str | None, run: Run, grid: Grid, root: Path) -> str:
    text = status if reason is None else f"{status}: {reason}"
    if status == "ok" and "metrics" in run.figures:
        metrics = run.figures["metrics"]
        best = metrics[metrics["rule"]][metrics["primary"]]
        text = f"ok  {metrics['primary']} {best['value']:.3f}"
    elif status == "ok":
        text = f"ok  {run.time['step_median']:.3f} s a step" if "step_median" in run.time else "ok"
    return f"{text}  ({run.time['total']:.0f} s){_grid_progress(grid, root)}"


def _grid_progress(grid: Grid, root: Path) -> str:
    """Cells done and the time left at the pace of this run, where the run said when it began."""
    if "ATLAS_RUN" not in os.environ:
        return ""
    began, before = map(float, os.environ["ATLAS_RUN"].split())
    done, total = sum((root / cell.path).exists() for cell in grid.cells), len(grid.cells)
    text = f"  {done} of {total} cells done"
    passed = time.time() - began  # by the clock of the day, which jobs on other machines have too; it may be set back
    if before < done < total and passed > 0:
        text += f", about {_clock(passed / (done - before) * (total - done))} left"
    return text


@contextlib.contextmanager
def _left_at_sigterm():
    """Let SIGTERM end the process as an exception does, with whatever there is to tidy up. Training has its own way."""

    def leave(number, frame):
        sys.exit(128 + number)

    try:
        previous = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _tried(
    grid: Grid, cell: Cell, device, root: Path, data_root: Path | None, out: Path, kept: Any
) -> tuple[Run, str, str | None]:
    """Run a cell, and once more with half the micro-batch if memory did not suffice for its training."""
    tries = Tries.of(root / cell.state_dir)
    run, status, reason = Run(cell, tries), "oom", None
    while rows := tries.micro_batch(cell.recipe):
        if tries.number > 1:
            say(cell, f"memory did not suffice ({tries.ends[-1]}): once more, {rows} examples at a time")
        run = Run(cell, tries)
        with tries.start():
            status, reason = _guarded(run, grid, device, root, data_root, out, kept)
        if status != "oom" or "training" not in run.figures or "metrics" in run.figures:
            break
        tries.out_of_memory(f"{reason} ({rows} examples at a time)")
        reason = None
        _free(device)
    if status == "oom":
        reason = "; ".join(dict.fromkeys([*tries.ends, *([reason] if reason else [])]))
    return run, status, reason


def _free(device) -> None:
    """Give back what a try that ended held."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _guarded(
    run: Run, grid: Grid, device, root: Path, data_root: Path | None, out: Path, kept: Any
) -> tuple[str, str | None]:
    """Run and turn what a method or model does wrong into a status with a reason."""
    from models.backbone import Unsupported
    from workflow import start
    from workflow.train import Diverged, TimeLimit

    try:
        _run(run, grid, device, root, data_root, out, kept)
    except (Unusable, Unsupported) as problem:
        return "unsupported", str(problem)
    except (Broken, start.NoStart) as problem:
        return "error", " ".join(str(problem).split())
    except Diverged as problem:
        return "diverged", str(problem)
    except TimeLimit as problem:
        return "timeout", str(problem)
    except AtlasError:
        raise
    except Exception as problem:
        if _out_of_memory(problem):
            return "oom", _first_line(problem)
        if isinstance(problem, OSError):
            raise
        traceback.print_exc()
        return "error", f"{type(problem).__name__}: {_first_line(problem)}"
    return "ok", None


def _out_of_memory(problem: Exception) -> bool:
    """Whether this is one of the ways in which Python, torch, its libraries and the system say so."""
    import torch

    if isinstance(problem, OSError):
        return problem.errno == errno.ENOMEM
    said = str(problem).lower()
    return isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or any(words in said for words in _NO_MEMORY)


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:500]


def _run(run: Run, grid: Grid, device, root: Path, data_root: Path | None, out: Path, kept: Any) -> None:

    from models import load as loading
    from workflow import measure, start
    from workflow.evaluate import Scorer
    from workflow.meter import Meter, counter
    from workflow.train import Training

    cell = run.cell
    recipe = cell.recipe | ({"micro_batch_size": run.tries.micro_batch(cell.recipe)} if run.tries.number > 1 else {})
    suite = registry.suites()[cell.suite]
    info, entry = suite.facts(cell.task, cell.protocol), model_entry(cell.model)
    if info.cost_only:
        entry, run.figures["cost_only"] = entry.with_random_weights(), True
    method = _method(cell, grid)
    devices = _devices(device, cell, entry, info, grid)
    meter = Meter(devices, counter(devices) if "energy" in grid.measure else None)
    run.figures["memory"] = meter.memory

    with run.timed("data"):
        data = _data(suite, cell, data_root, kept)
    with run.timed("load"), meter.phase("load"):
        _check_modality(entry, info)
        backbone, loaded = _network(cell, entry, info, devices, kept)
        backbone.restorable = False
    run.figures["sources"] = {
        "data": {"fingerprint": data.fingerprint, "source": data.source},
        "model": {"fingerprint": loading.fingerprint(entry), "source": entry.identity},
    }
    if reason := method.supports(backbone.shape, info):
        if kept is not None:
            kept.give_back(loaded, backbone, method)
        raise Unusable(reason)
    with run.timed("data"):
        encoded = {
            name: _encode(info, getattr(data, name), backbone, recipe, "completion") for name in ("validation", "test")
        }
    scorer = Scorer(suite, info, cell.protocol, backbone, method)
    training = Training(
        backbone,
        method,
        recipe,
        encoded["validation"],
        scorer.select,
        cell.seed,
        checkpoint=run.tries.checkpoint,
        checkpoint_seconds=float(os.environ.get("ATLAS_CHECKPOINT_SECONDS", 120)),
        deadline=_deadline(),
        progress=_progress(cell),
        meter=meter,
    )
    with run.timed("data"):
        train = method.training_data(data.train, training)
        encoded["train"] = _encode(info, train, backbone, recipe, info.learn).learnable()
        if not len(encoded["train"]):
            raise Unusable(
                f"every training example is cut before its answer: raise max_length ({recipe['max_length']})"
            )
        training.splits["train"] = encoded["train"]
    run.figures["data"] = {name: len(part) for name, part in encoded.items()}
    run.figures["data"]["cut"] = {name: part.cut for name, part in encoded.items() if part.cut}
    with meter.phase("attach"):
        _attach(run, method, backbone, training)
        start.load(grid, cell, root, method)
    run.figures["parameters"] = counts = _counts(method, backbone)
    if recipe["gradient_checkpointing"]:
        backbone.gradient_checkpointing()
    if recipe.get("compile"):
        backbone.compile()

    try:
        with meter.phase("train"):
            training.run()
    finally:
        _note_training(run, training, counts, scorer.selection)
        _note_energy(run, meter)
    method.prepare_inference()
    if not info.cost_only:
        with run.timed("test"), meter.phase("inference"):
            last, selected = _predict(scorer, training, data.test, encoded["test"], suite.reported(cell.protocol))
        run.figures["metrics"] = {
            "primary": info.primary,
            "rule": "last" if training.best is None else suite.reported(cell.protocol),
            "select": scorer.selection,
            "selected": scorer.scores(data.test, selected),
            "last": scorer.scores(data.test, last),
            "selected_step": max(0, training.log.best_step),
        }
    with run.timed("save"):
        _note_stored(counts, method, backbone, measure)
        start.save(cell, suite, out, method)
        if not info.cost_only:
            shown = last if run.figures["metrics"]["rule"] == "last" else selected
            _save_predictions(out, data.test, shown, selected, last)
    with run.timed("measure"):
        _measure(run, grid, info, encoded, training)
    _note_energy(run, meter)
    if kept is not None and not (recipe["gradient_checkpointing"] or recipe.get("compile")):
        kept.give_back(loaded, backbone, method)


def _data(suite, cell: Cell, data_root: Path | None, kept: Any):
    def load():
        return suite.load(cell.task, cell.protocol, data_root)

    return load() if kept is None else kept.data((cell.suite, cell.task, str(cell.protocol), data_root), load)


def _network(cell: Cell, entry, info, devices: tuple, kept: Any):
    """The backbone with a new head, and what tells it from networks loaded otherwise."""
    import torch

    from models import load as loading

    recipe, seed, labels = cell.recipe, _named_seed(cell.seed, "head"), len(info.labels)
    options = {"quantize": recipe["quantize"]} if "quantize" in recipe else {}

    def load():
        dtype = getattr(torch, recipe["dtype"])
        return loading.load(entry, info.kind, labels, devices=devices, dtype=dtype, seed=seed, **options)

    drawn = seed if entry.source == "random" else None  # the weights too
    loaded = (entry, info.kind, labels, devices, recipe["dtype"], drawn, *options.values())
    if kept is None or len(devices) > 1:
        return load(), loaded
    backbone, again = kept.network(loaded, load)
    if again and backbone.head is not None:
        backbone.head = loading.new_head(entry, backbone.model.config, info.kind, labels, seed).to(devices[0])
    return backbone, loaded


def _predict(scorer, training, split, encoded, reported: str):
    """Predictions of the last weights and of those that validation data chose; the reported ones stay in place."""
    last = scorer.predict(split, encoded)
    if training.best is None or training.log.best_step == training.log.steps:
        return last, last
    ended = training.weights("cpu") if reported == "last" else None
    training.load_weights(training.best)
    training.method.prepare_inference()
    selected = scorer.predict(split, encoded)
    if ended is not None:
        training.load_weights(ended)
        training.method.prepare_inference()
    return last, selected


def _devices(device, cell: Cell, entry, info, grid: Grid) -> tuple:
    """The device; or as many of the GPUs that this job sees as the network needs, if one is too small for it."""
    import torch

    seen = torch.cuda.device_count() if device.type == "cuda" else 1
    if seen < 2:
        return (device,)
    from workflow import resources

    methods = grid.methods
    room = torch.cuda.get_device_properties(0).total_memory // 10**6
    wanted = resources.estimated(cell, entry, methods[cell.method], info, methods, room)["gpu"]
    return tuple(torch.device("cuda", index) for index in range(min(wanted, seen)))


def _check_modality(entry, info) -> None:
    """A model reads texts or images, not both."""
    reads = "image" if entry.kind == "vision" else "text"
    if reads != info.modality:
        raise Unusable(f"{entry.name} reads {reads}s, and {info.suite}/{info.name} gives {info.modality}s")
    if info.kind == "generation" and entry.kind not in ("decoder", "encoder_decoder"):
        raise Unusable(f"{entry.name} cannot generate: it is of kind {entry.kind}")


def _method(cell: Cell, grid: Grid):
    try:
        plugin = registry.load_method(grid.methods[cell.method])
    except AtlasError as problem:
        raise Broken(str(problem)) from problem
    return plugin.create(cell.settings)


def _named_seed(seed: int, name: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")


def _encode(info, split, backbone, recipe: dict, learn: str):
    from workflow import encode

    return encode.encode(info, split, backbone, recipe["max_length"], learn)


def _attach(run: Run, method, backbone, training) -> None:
    with run.timed("calibrate"):
        method.planned = method.plan(backbone.shape)
        method.calibrate(backbone, training)
    with run.timed("attach"):
        method.attach(backbone, training)
        method.initialise(backbone, training)


def _counts(method, backbone) -> dict[str, Any]:
    expected = method.expected_parameters(backbone.shape).resolved(method.mergeable)
    attached = sum(p.numel() for p in method.trained())
    return {
        "backbone": backbone.shape.parameters,
        "head": sum(p.numel() for p in backbone.head.parameters()) if backbone.head is not None else 0,
        "trained": {"attached": attached},
        "expected": {name: _range(getattr(expected, name)) for name in ("trained", "stored", "added")},
        "added_at_inference": sum(p.numel() for p in method.kept()),
    }


def _range(value):
    return list(value) if isinstance(value, tuple) else value


def _note_training(run: Run, training, counts: dict, selection: str) -> None:
    from workflow.measure import step_times

    log = training.log
    own = {"validation": log.seconds["validation"]} if "validation" in log.seconds else {}
    charged = {name: seconds for name, seconds in log.seconds.items() if name not in own}
    run.time |= step_times(log.step_seconds) | own | ({"method": charged} if charged else {})
    seconds = sum(log.step_seconds)
    run.time["train"] = seconds
    if seconds:
        run.time |= {"examples_per_s": log.examples / seconds, "tokens_per_s": log.tokens / seconds}
    sign = -1 if selection == "nll" else 1  # what selects is larger when better; the curve shows the metric itself
    curve = [[step, sign * value] for step, value in log.validation]
    run.figures["curves"] = {"train_loss": log.train_loss, "validation": curve}
    size = training.recipe["batch_size"]
    run.figures["training"] = {
        "steps": log.steps,
        "epochs": log.examples / len(training.splits["train"]),
        "examples": log.examples,
        "tokens": log.tokens,
        "padding_fraction": 1 - log.tokens / log.padded if log.padded else 0.0,
        "resumed": log.resumed,
        "effective_batch_size": size,
        "micro_batch_size": run.tries.micro_batch(run.cell.recipe),
        "tries": run.tries.number,
    }
    trained = _over_time(log.trainable, log.steps) if log.trainable else {"peak": 0, "mean": 0.0, "final": 0}
    counts["trained"] |= {"after_optimizer": log.after_optimizer, **trained}


def _over_time(logged: list[list[int]], steps: int) -> dict[str, float]:
    """Peak, mean over steps and final number of trained parameters from [step, count] changes."""
    ends = [step for step, _ in logged[1:]] + [max(steps, logged[-1][0] + 1)]
    spans = [(end - step, count) for (step, count), end in zip(logged, ends, strict=True)]
    total = sum(span for span, _ in spans)
    mean = sum(span * count for span, count in spans) / total if total else logged[-1][1]
    peak = max(count for span, count in spans if span) if total else logged[-1][1]
    return {"peak": peak, "mean": mean, "final": logged[-1][1]}


def _note_stored(counts: dict, method, backbone, measure) -> None:
    state = method.state_dict()
    counts["stored"] = sum(t.numel() for t in state.values())
    counts["stored_bytes"] = measure.stored_bytes(state)
    if backbone.head is not None:
        counts["head_bytes"] = measure.stored_bytes(backbone.head.state_dict())


def _save_predictions(out: Path, test, shown, selected, last) -> None:
    """One row a test example. Texts, answers, losses and scores are those of the checkpoint shown in tables."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "id": pa.array(test.ids),
        "reference": pa.array(selected.reference),
        "prediction_selected": pa.array(selected.predicted),
        "prediction_last": pa.array(last.predicted),
    }
    if test.parts is not None:
        columns["part"] = pa.array(test.parts)
    columns |= {f"answer_{rule}": pa.array(answers) for rule, answers in shown.answers.items()}
    if shown.texts is not None:
        columns["text"] = pa.array(shown.texts)
    if shown.chosen is not None:
        columns["chosen"] = pa.array(shown.chosen)
    if shown.losses is not None:
        columns["nats"] = pa.array(shown.losses[:, 0].astype(np.float32))
        columns["tokens"] = pa.array(shown.losses[:, 1].astype(np.int32))
    if shown.scores is not None:
        for k in range(shown.scores.shape[1]):
            columns[f"score_{k}"] = pa.array(shown.scores[:, k].astype(np.float32))
    with replaced(out.with_name(f"{out.stem}.predictions.parquet")) as path:
        pq.write_table(pa.table(columns), path, compression="zstd")


def _note_energy(run: Run, meter) -> None:
    if meter.energy:
        run.figures["energy"] = {"source": meter.counter.name, **meter.energy}


def _measure(run: Run, grid: Grid, info, encoded: dict[str, Any], training) -> None:
    """What the trained method costs at inference, and one training step looked at closely."""
    from workflow import latency, measure

    method, backbone = training.method, training.backbone
    one, many = latency.batches(encoded["test"], latency.SIZES[info.kind], backbone.device).values()
    if info.cost_only:
        with training.meter.phase("inference"):
            measure.forward(backbone, method, many)
    if method.mergeable:
        run.figures["merge"] = measure.merge_error(backbone, method, many)
    if "latency" in grid.measure:
        run.figures["latency"] = latency.figures(backbone, method, encoded["test"], info.kind)
    if {"flops", "memory"} & set(grid.measure):
        _look_closely(run, grid, encoded["train"], one, training)


def _look_closely(run: Run, grid: Grid, train, one, training) -> None:
    """Operations and bytes of a training step on a batch of middle length, and operations of inference."""
    from workflow import latency, probe

    method, backbone = training.method, training.backbone
    rows = training.recipe["micro_batch_size"] or training.recipe["batch_size"]
    (batch,) = latency.batches(train, (min(rows, len(train)),), training.device).values()
    size = {"batch": len(batch), "tokens": batch.padded}
    flops = None
    if training.optimizer is not None:
        flops, parts = probe.training_step(training, batch)
        run.figures["memory"]["parts"] = parts | size
    if "flops" not in grid.measure:
        return
    found = {f"inference_{name}": count for name, count in probe.inference_flops(backbone, method, one).items()}
    if flops:
        peak = probe.matmul_peak(training.device, training.dtype)
        found |= {"train_step": flops, **size, "matmul_peak": peak}
        if seconds := sum(training.log.step_seconds):
            found["utilisation"] = flops / batch.padded * training.log.padded / seconds / peak
    run.figures["flops"] = found


def _deadline() -> float | None:
    """The cell's own time limit, from ATLAS_TIME_LIMIT (seconds)."""
    limit = os.environ.get("ATLAS_TIME_LIMIT")
    return time.monotonic() + float(limit) if limit else None


def _progress(cell: Cell):
    """A line now and then: step, loss, time left."""
    began = last = time.monotonic()
    first = None

    def show(step: int, total: int, loss: float) -> None:
        nonlocal last, first
        now = time.monotonic()
        first = step if first is None else first
        if now - last < PROGRESS_SECONDS:
            return
        last = now
        rate = (step - first) / (now - began) if step > first else 0.0
        left = f"  {_clock((total - step) / rate)} left" if rate else ""
        say(cell, f"step {step}/{total}  loss {loss:.3f}{left}")

    return show


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
