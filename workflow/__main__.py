"""The command line: `python -m workflow VERB`. Each verb imports what it needs, so that listing stays quick."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from workflow.errors import NO_ROOM, AtlasError, machine_failed, suggest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 0, or 2 after an error that the user can mend."""
    options = parser().parse_args(arguments)
    try:
        status = options.run(options) or 0
        sys.stdout.flush()
        return status
    except AtlasError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader (head, less) has gone: nothing is left to say, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as problem:
        if problem.errno not in NO_ROOM:
            raise
        print(f"error: {machine_failed(problem)}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m workflow", description=__doc__)
    verbs = top.add_subparsers(metavar="VERB", required=True)

    def verb(run, name: str, help: str, grid: bool = False, as_json: bool = False) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help, description=help)
        added.set_defaults(run=run)
        if grid:
            added.add_argument("--grid", metavar="FILE", type=Path, default=Path("config/demo.yaml"), help="grid file")
        if as_json:
            added.add_argument("--json", action="store_true", help="print JSON")
        return added

    listing = verb(list_, "list", "list methods, tasks, models, or the cells of a grid", grid=True, as_json=True)
    listing.add_argument("what", choices=["methods", "tasks", "models", "cells"])
    listing.add_argument("--import", dest="imports", action="store_true", help="import every method to see if it works")

    described = verb(describe, "describe", "show a method, the map of a model, or a method's count on a model")
    described.add_argument("method", nargs="?", help="its metadata, paper and settings")
    described.add_argument("--model", help="its sizes and sites; with a method: what that trains on it")

    checked = verb(check, "check", "run the conformance tests on method files, and keep the verdicts for reports")
    checked.add_argument("files", type=Path, nargs="+", metavar="FILE")
    checked.add_argument("--verbose", action="store_true", help="show the figures of every network")

    counted = verb(count, "count", "count a method's parameters on a model, without weights", as_json=True)
    counted.add_argument("--method", required=True)
    counted.add_argument("--model", required=True)
    counted.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, in YAML")

    estimated = verb(estimate, "estimate", "estimate the peak memory of training a method on a model", as_json=True)
    estimated.add_argument("--method", required=True)
    estimated.add_argument("--model", required=True)
    estimated.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, in YAML")
    estimated.add_argument("--batch-size", type=int, default=32, help="examples a forward pass")
    estimated.add_argument("--length", type=int, default=128, help="tokens an example; images have their own")
    estimated.add_argument("--scored", type=int, help="tokens of an example that a decoder learns; default: all")
    estimated.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    estimated.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw")
    estimated.add_argument("--gradient-checkpointing", action="store_true")
    estimated.add_argument("--quantize", choices=["int8", "bnb-int8", "nf4"], help="code of frozen weights in blocks")
    estimated.add_argument("--device", choices=["cuda", "cpu"], default="cuda")

    paced = verb(pace, "pace", "time training steps of methods and of another one in turn, and compare their memory")
    paced.add_argument("methods", nargs="+", help="names, or `all`")
    paced.add_argument("--model", required=True, help="built with random weights")
    paced.add_argument("--against", default="lora", help="the method to compare with")
    paced.add_argument("--batch-size", type=int, default=16, help="examples")
    paced.add_argument("--length", type=int, default=128, help="tokens an example; images have their own")
    paced.add_argument("--steps", type=int, default=7, help="steps that are timed")
    paced.add_argument("--threads", type=int, default=1)
    paced.add_argument("--out", type=Path, help="CSV file to add to; methods that it has are not measured again")

    celled = verb(cell, "cell", "run cells of a grid and write their results", grid=True)
    celled.add_argument("--key", nargs="+", required=True, metavar="KEY/SEED", help="as `list cells` prints them")
    celled.add_argument("--data-root", type=Path, help="folder of local data, instead of the grid's")
    celled.add_argument("--threads", type=int, default=1)

    packed = verb(pack, "pack", "run the cells of a pack, loading data and network once", grid=True)
    packed.add_argument("name", help="as the workflow names it; the file is results/<grid>/packs/NAME.json")
    packed.add_argument("--data-root", type=Path, help="folder of local data, instead of the grid's")
    packed.add_argument("--threads", type=int, default=1)

    fetched = verb(fetch, "fetch", "download the weights and data sets that the cells of a grid will read", grid=True)
    fetched.add_argument("--data-root", type=Path, help="folder of local data, instead of the grid's")

    tabled = verb(tables, "tables", "write the tables of a grid and print its summary", grid=True)
    tabled.add_argument("--print", action="store_true", help="only print: the files stay as they are")
    reported = verb(report, "report", "write the HTML report of a grid and print its path", grid=True)
    reported.add_argument("--data-root", type=Path, help="folder of local data, instead of the grid's, for samples")
    verb(status, "status", "count the cells of a grid by state and say why each one is not ok", grid=True, as_json=True)

    retried = verb(retry, "retry", "delete results by status, so that the next run makes them again", grid=True)
    retried.add_argument("--status", metavar="LIST", help="for example oom,timeout; default: the grid's `retry`")

    laddered = verb(models, "models", "print the table of all models, or write it into its page")
    laddered.add_argument("--write", action="store_true", help="write the table in docs/models.md")

    paged = verb(protocols, "protocols", "print the page of all suites and protocols, or record what they are")
    paged.add_argument("--write", action="store_true", help="write docs/protocols.md")
    paged.add_argument("--lock", action="store_true", help="record every protocol as it is now, for the tests")
    paged.add_argument("--same-numbers", action="store_true", help="with --lock: the changes move no number")
    return top


def list_(options: argparse.Namespace) -> None:
    from workflow import listing, text

    if options.what == "cells":
        rows = listing.cells(_grid(options))
    elif options.what == "methods":
        rows = listing.methods(options.imports)
    elif options.what == "models":
        rows = listing.models(exact=options.json)
    else:
        rows = listing.tasks()
    print(json.dumps(rows, indent=1) if options.json else text.table(rows))


def describe(options: argparse.Namespace) -> None:
    from workflow import listing, text

    if options.method is None:
        if options.model is None:
            raise AtlasError("nothing to describe", mend="give a method, or --model and a model, or both")
        from models.entries import model
        from workflow import model_map

        print(model_map.describe(model(_model(options.model))))
        return
    info = _method(options.method)
    print(listing.description(info))
    if options.model:
        from workflow import count

        print(f"\non {_model(options.model)}\n{text.figures(count.count(info.name, options.model, {}))}")


def check(options: argparse.Namespace) -> int:
    for file in options.files:
        if not file.is_file():
            mend = "give the path of a method file, methods/<family>/<name>.py"
            raise AtlasError("no such file", file=file, mend=mend)
    from workflow import conformance, verdicts

    found = []
    for file in options.files:
        found.append(conformance.check(file, options.verbose))
        print(f"verdict: {verdicts.write(found[-1])}")
    return int(not all(verdict.conforms for verdict in found))


def count(options: argparse.Namespace) -> None:
    from workflow import count, settings, text

    info = _method(options.method)
    given = dict(_setting(text) for text in options.set)
    settings.check(info, given, file=None, key="--set")
    counted = count.count(info.name, _model(options.model), given)
    print(json.dumps(counted, indent=1) if options.json else text.figures(counted))


def estimate(options: argparse.Namespace) -> None:
    from workflow import count, registry, settings, sizes, text
    from workflow.estimate import GIB, Setting, estimate, learned_by

    info, model = _method(options.method), _model(options.model)
    given = dict(_setting(text) for text in options.set)
    settings.check(info, given, file=None, key="--set")
    backbone, method = count.attached(info.name, model, given)
    setting = Setting(
        batch=options.batch_size,
        length=options.length,
        scored=options.scored,
        dtype=options.dtype,
        optimizer=options.optimizer,
        generation=backbone.head is None,
        checkpointing=options.gradient_checkpointing,
        quantize=options.quantize,
        device=options.device,
    )
    found = estimate(sizes.of(registry.models()[model]), learned_by(method, backbone), setting)
    cards = {f"{size} GB": found.gpus(size) for size in (24, 40, 80)}
    if options.json:
        print(json.dumps({"bytes": found.lines, "gpus": cards}, indent=1))
        return
    print(text.figures({"GiB": {name: f"{value / GIB:8.2f}" for name, value in found.lines.items()}, "GPUs": cards}))


def pace(options: argparse.Namespace) -> None:
    from workflow import registry, text

    names = list(registry.methods()) if options.methods == ["all"] else [_method(name).name for name in options.methods]
    _method(options.against), _model(options.model)
    import torch

    from workflow import pace

    torch.set_num_threads(options.threads)
    asked = (options.model, options.against, options.batch_size, options.length)
    found = pace.rows(options.out) if options.out and options.out.exists() else []
    for name in names:
        if not pace.known(found, name, *asked):
            found.append(pace.pace(name, *asked, options.steps))
            if options.out:
                pace.write(options.out, found[-1])
            print(f"{name}: {found[-1].get('ratio', found[-1]['status'])}", file=sys.stderr, flush=True)
    print(text.table(pace.table([row for row in found if row["model"] == options.model and row["method"] in names])))


def _setting(text: str) -> tuple[str, object]:
    from workflow import documents

    name, equals, value = text.partition("=")
    if not equals:
        mend = "write --set name=value, for example --set rank=4"
        raise AtlasError(f"'{text}' is no setting", key="--set", mend=mend)
    return name, documents.parse_value(value)


def cell(options: argparse.Namespace) -> None:
    _switch_hub_off()
    grid = _grid(options)
    chosen = [grid.cell(key) for key in options.key]
    from workflow import cell

    for each in chosen:
        cell.once(grid, each, data_root=options.data_root, threads=options.threads)


def pack(options: argparse.Namespace) -> None:
    _switch_hub_off()
    from workflow import pack

    pack.run(_grid(options), options.name, data_root=options.data_root, threads=options.threads)


def _switch_hub_off() -> None:
    """Cells and reports read weights and data from this machine only, unless ATLAS_ONLINE is set.

    The clients of the hub read these variables when they are imported, so this comes before anything else.
    """
    if not os.environ.get("ATLAS_ONLINE"):
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")


def fetch(options: argparse.Namespace) -> None:
    from workflow import fetch

    failed = fetch.main(_grid(options), options.data_root)
    if failed:
        mend = "see the lines that begin with `failed`"
        raise AtlasError(f"{failed} could not be fetched", file=options.grid, mend=mend)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without looking for cycles of garbage: what a verb builds lives as long as it, and looking takes a sixth of the
    time of large tables."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@_uncollected()
def tables(options: argparse.Namespace) -> None:
    from workflow import entry, pack, tables

    grid = _grid(options)
    entry.settle(pack.awaited(grid, pack.packs(grid)))
    built = tables.build(grid)
    print(tables.to_markdown_text(built.summary))
    if not options.print:
        folder = Path("results", grid.name, "tables")
        tables.write(built, folder)
        print(f"tables: {folder}")


@_uncollected()
def report(options: argparse.Namespace) -> None:
    _switch_hub_off()
    from workflow import entry, report

    grid = _grid(options)
    if options.data_root:
        grid = replace(grid, data_root=options.data_root)
    entry.settle(Path("results", grid.name, "tables").glob("*"))
    print(f"report: {report.build(grid)}")


@_uncollected()
def status(options: argparse.Namespace) -> None:
    from workflow import index, listing, text

    grid = _grid(options)
    found = index.read(grid.cells)
    counts = dict(Counter(found.statuses).most_common())
    if grid.broken:
        counts["broken"] = len(grid.broken)
    rows = listing.not_ok(grid, found.statuses, found.reasons)
    if options.json:
        print(json.dumps({"grid": grid.name, "cells": len(grid.cells), "counts": counts, "not_ok": rows}, indent=1))
        return
    print(f"{grid.name}: {len(grid.cells)} cells: {', '.join(f'{number} {state}' for state, number in counts.items())}")
    if rows:
        print(text.table(listing.folded(rows)))


def retry(options: argparse.Namespace) -> None:
    from workflow import index, results

    grid = _grid(options)
    known = [state for state in (*results.STATUSES, "corrupt") if state != "ok"]
    wanted = options.status.split(",") if options.status else grid.retry
    for state in wanted:
        if state not in known:
            raise AtlasError(f"'{state}' cannot be retried", key="--status", mend=suggest(state, known))
    states = dict(zip((cell.path for cell in grid.cells), index.read(grid.cells).statuses, strict=True))

    def outdated(cell) -> bool:
        """Also one that failed for want of the cell it continues from, which is made again."""
        start = grid.start(cell)
        return states[cell.path] in wanted or (states[cell.path] == "error" and start and states[start.path] in wanted)

    dropped = [cell for cell in grid.cells if outdated(cell)]
    for cell in dropped:
        print(cell.path)
        cell.path.unlink()
    print(f"deleted {len(dropped)} results with status {' or '.join(wanted)}; run the grid to make them again")


def models(options: argparse.Namespace) -> None:
    from workflow import ladder

    print(ladder.write() if options.write else ladder.table())


def protocols(options: argparse.Namespace) -> None:
    from workflow import protocols

    if options.same_numbers and not options.lock:
        raise AtlasError("--same-numbers says something of --lock", key="--same-numbers", mend="give both")
    if options.lock:
        print("\n".join(protocols.lock(options.same_numbers)) or "the lock is up to date")
    elif options.write:
        print(protocols.write())
    else:
        print(protocols.page(), end="")


def _grid(options: argparse.Namespace):
    from workflow import entry, grid

    return grid.load(entry.find(str(options.grid)))


def _method(name: str):
    from workflow import registry

    known = registry.methods()
    if name not in known:
        raise AtlasError(f"unknown method '{name}'", mend=suggest(name, known))
    if known[name].error:
        message = f"method '{name}' is broken: {known[name].error}"
        raise AtlasError(message, file=known[name].path, mend="mend the plugin file")
    return known[name]


def _model(name: str) -> str:
    from workflow import registry

    known = registry.models()
    if name not in known:
        raise AtlasError(f"unknown model '{name}'", mend=suggest(name, known))
    return name


if __name__ == "__main__":
    sys.exit(main())
