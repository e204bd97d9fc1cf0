"""docs/protocols.md and the lock of the protocols: both up to date, and the lock notices what could move a number."""

import importlib
import sys
import textwrap

import pytest

from tests.workflow import projects
from workflow import protocols
from workflow.__main__ import main
from workflow.errors import AtlasError
from workflow.registry import BrokenSuite

SUITE = '''
"""Made up."""

from dataclasses import replace

from tasks._colour_words import prompts
from tasks.base import Option, Protocol, Suite, TaskInfo, label_ids

TEXT = "Colours, as they are seen."
BOTH = ("f1", "accuracy")
KIND = "classification"
TASKS = [
    TaskInfo("colours", "one", KIND, "text", ("word",), ("red", "blue"), BOTH[1:], "accuracy", 32, "One", 0.5),
    TaskInfo("colours", "two", KIND, "image", (), tuple("abcdefgh"), BOTH, "accuracy", 32, "Two"),
]


class Colours(Suite):
    name, title, version = "colours", "Colours", 1
    tasks = {task.name: task for task in TASKS}
    protocols = (
        Protocol("plain", 1, {"size": Option(100, int, minimum=1)}, text=TEXT),
        Protocol("last", 3, {}, report="last"),
    )

    def recipe(self, task):
        """How it is trained."""
        return {"epochs": 2} if task == "one" else {}

    def facts(self, task, protocol):
        info = self.info(task)
        return replace(info, metrics=("f1",)) if protocol["name"] == "last" else info

    def load(self, task, protocol, data_root):
        return prompts.wrap(task)  # nothing else


suite = Colours()
'''
HELPER = "def wrap(word):\n    return f'What is {word}?'\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """tasks/colours.py and its helpers in a folder of their own; gives a function that edits a file and reads anew."""
    projects.write(tmp_path, "tasks/_colour_words/prompts.py", HELPER)
    projects.write(tmp_path, "tasks/_colour_words/__init__.py", "")
    projects.write(tmp_path, "tasks/_colour_words/names.txt", "red")
    projects.write(tmp_path, "tasks/colours.py", SUITE)
    import tasks

    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "tasks")])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def read(old="", new="", file="colours.py"):
        path = tmp_path / "tasks" / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        for name in [name for name in sys.modules if name.startswith(("tasks.colours", "tasks._colour_words"))]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return {"colours": importlib.import_module("tasks.colours").suite}

    return read


@pytest.fixture
def path(tmp_path):
    return tmp_path / "protocols.lock.json"


def changed(path, suites):
    """The protocols that have changed under their version."""
    return [p.split(":")[0] for p in protocols.check(path, suites) if "has changed and its version" in p]


HARMLESS = [
    ("# nothing else", "# a remark", "colours.py"),
    ('"""How it is trained."""', '"""Other words."""', "colours.py"),
    ("as they are seen", "as one sees them", "colours.py"),
    ("text=TEXT", 'text="Colours."', "colours.py"),
    ("def wrap", "# a remark\ndef wrap", "_colour_words/prompts.py"),
]
HARMFUL = [
    ("Option(100", "Option(200", "colours.py", ["plain", "last"]),
    ("prompts.wrap(task)", "prompts.wrap(task.upper())", "colours.py", ["plain", "last"]),
    ("What is", "Which is", "_colour_words/prompts.py", ["plain", "last"]),
    ("red", "green", "_colour_words/names.txt", ["plain", "last"]),
    ('{"epochs": 2}', '{"epochs": 3}', "colours.py", ["plain", "last"]),
]


class TestTheLock:
    @pytest.mark.parametrize(("old", "new", "file"), HARMLESS)
    def test_comments_docstrings_and_the_text_of_a_protocol_do_not_count(self, project, path, old, new, file):
        protocols.lock(path=path, suites=project())
        assert protocols.check(path, project(old, new, file)) == []

    @pytest.mark.parametrize(("old", "new", "file", "names"), HARMFUL)
    def test_whatever_could_move_a_number_does(self, project, path, old, new, file, names):
        protocols.lock(path=path, suites=project())
        suites = project(old, new, file)
        assert changed(path, suites) == [f"colours/{name}" for name in names]

    def test_defaults_of_the_contract_and_functions_of_base_count_too(self, project, path, monkeypatch):
        protocols.lock(path=path, suites=project())
        monkeypatch.setattr(protocols, "_base_functions", lambda names: [f"{sorted(names & {'label_ids'})} mended"])
        assert len(changed(path, project())) == 2

    def test_the_message_says_what_to_do(self, project, path):
        protocols.lock(path=path, suites=project())
        message = protocols.check(path, project("Option(100", "Option(200"))[0]
        assert "bump the version of protocol 'plain' in tasks/colours.py" in message
        assert "`python -m workflow protocols --lock --same-numbers`" in message

    def test_a_bumped_version_is_recorded_without_further_ado(self, project, path):
        protocols.lock(path=path, suites=project())
        suites = project('title, version = "colours", "Colours", 1', 'title, version = "colours", "Colours", 2')
        assert changed(path, suites) == [] and len(protocols.check(path, suites)) == 2
        assert protocols.lock(path=path, suites=suites) == ["colours/plain", "colours/last"]
        assert protocols.check(path, suites) == []

    def test_one_bumped_protocol_leaves_the_other_to_be_declared_the_same(self, project, path):
        protocols.lock(path=path, suites=project())
        project("Option(100", "Option(200")
        suites = project('"plain", 1', '"plain", 2')
        assert changed(path, suites) == ["colours/last"]

    def test_a_change_under_the_old_version_is_refused_unless_it_is_declared_harmless(self, project, path):
        protocols.lock(path=path, suites=project())
        before, suites = path.read_text(), project("Option(100", "Option(200")
        with pytest.raises(AtlasError) as error:
            protocols.lock(path=path, suites=suites)
        assert "colours/plain, colours/last" in str(error.value) and "--same-numbers" in error.value.mend
        assert path.read_text() == before
        protocols.lock(same_numbers=True, path=path, suites=suites)
        assert protocols.check(path, suites) == []

    def test_a_version_that_went_back_is_a_change_without_one(self, project, path):
        protocols.lock(path=path, suites=project())
        suites = project('"last", 3', '"last", 2')
        assert "colours/last" in changed(path, suites)

    def test_new_and_removed_protocols_must_be_recorded(self, project, path):
        assert [p.split(";")[0] for p in protocols.check(path, project())] == [
            "colours/plain: it is not recorded",
            "colours/last: it is not recorded",
        ]
        protocols.lock(path=path, suites=project())
        assert all("it is recorded and gone" in p for p in protocols.check(path, {}))
        protocols.lock(path=path, suites={})
        assert protocols.check(path, {}) == []

    def test_a_promise_without_a_lock_is_refused(self, capsys):
        assert main(["protocols", "--same-numbers"]) == 2 and "give both" in capsys.readouterr().err

    def test_is_up_to_date(self):
        assert "\n".join(protocols.check()) == ""


class TestThePage:
    def test_is_up_to_date(self):
        assert protocols.PAGE.read_text() == protocols.page(), "run `python -m workflow protocols --write`"

    def test_has_what_a_reader_needs_of_a_suite(self, project):
        page = protocols.page(project())
        expected = """
            ## Colours (`colours`, version 1)

            All tasks: length 32 tokens.

            | task | title | kind | fields | labels | metrics | chance |
            | --- | --- | --- | --- | --- | --- | --- |
            | `one` | One | classification | word | red, blue | **accuracy** | 0.5 |
            | `two` | Two | classification (image) |  | 8 classes | f1, **accuracy** |  |

            Recipe defaults:

            - one: `epochs: 2`
            - two: none

            ### `colours`: protocol `plain`, version 1

            Colours, as they are seen.

            The tables show the checkpoint selected on validation data (`report: selected`).

            | option | default | values |
            | --- | --- | --- |
            | `size` | `100` | int at least 1 |

            ### `colours`: protocol `last`, version 3

            The tables show the checkpoint at the end of training (`report: last`).

            Facts that differ from the table of tasks:

            - all tasks: `metrics`: f1
        """
        assert textwrap.dedent(expected).strip() in page

    def test_a_broken_suite_is_named(self, tmp_path):
        with pytest.raises(AtlasError, match="suite 'odd' is broken: SyntaxError"):
            protocols.page({"odd": BrokenSuite("odd", tmp_path, "SyntaxError: no")})
