"""Nothing that a grid says reaches a shell as anything but a word."""

import string
import subprocess
import sys

import pytest

from tests.workflow import projects
from workflow import entry, registry
from workflow.grid import load

NASTY = (
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned ;",
    "' ; touch pwned ; '",
    '" && touch pwned && "',
    "| touch pwned",
    "> pwned",
    "a b\tc\nd",
    "{input} {config[grid]} {{x}} {open('pwned', 'w')}",
    "*?[a-z]~!#\\",
    "-rf",
)


class Snakemakes(string.Formatter):
    """Fills in braces as Snakemake does: fields are looked up by name, and an unknown one is an error."""

    def get_value(self, key, args, kwargs):
        raise NameError(key)


@pytest.mark.parametrize("word", NASTY)
def test_a_word_comes_through_snakemake_and_the_shell_as_it_is(tmp_path, word):
    line = Snakemakes().format(entry.command("printf", "%s", "--", word))
    done = subprocess.run(["/bin/sh", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.removeprefix("--") == word, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_a_strangers_grid_runs_nothing_of_its_words(tmp_path):
    """The whole way, with a folder, a grid, a folder of data and a folder of plugins that are named like commands."""
    nasty = "it's $(touch pwned) `touch pwned`; touch pwned; {input} {x}"
    project = tmp_path / nasty / "config"
    title, label = f'"{nasty} <b>"', f'"{nasty}"'
    path = projects.write(
        project,
        "$(touch pwned).yaml",
        f"""
        name: fine
        title: {title}
        tasks: {{glue: [sst2]}}
        models: [tiny-bert]
        methods:
          - {{method: head, label: {label}}}
          - {{method: new, label: {label}, source: {label}}}
        plugins: ["{nasty}"]
        data_root: "{nasty}"
        """,
    )
    projects.write(project, f"{nasty}/new.py", projects.HEAD.replace('"head"', '"new"'))
    work = tmp_path / "work"
    work.mkdir()
    for cell in load(path).cells:
        projects.store(cell, work)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(registry.ROOT / "Snakefile"), "--nolock"]
    command += ["--cores", "1", "--config", f"grid={path}", f"data_root=/nowhere/{nasty}", "--printshellcmds"]
    command += ["--", "fetch", "results/fine/tables/summary.md"]
    done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1500)
    log = (work / "results/fine/logs/fetch.log").read_text()
    assert done.returncode == 1 and f"/nowhere/{nasty}" in log
    assert f"{nasty} <b>" in (work / "results/fine/tables/summary.md").read_text().replace("\\", "")
    assert [found for found in tmp_path.rglob("pwned*")] == []
