"""Nothing that is read can bring code with it: no pickles, no remote code, no YAML objects, no shells."""

import ast
import subprocess
import sys

import pytest

from tests.workflow import projects
from workflow import documents, registry
from workflow.errors import AtlasError

FOLDERS = ("workflow", "methods", "models", "tasks")
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
ALLOWED = {
    ("workflow/toy.py", "import of pickle"),  # copies a network in memory; no bytes of it come from a file
    ("workflow/documents.py", "yaml.load"),  # with a safe loader, which a test below holds to its word
    ("workflow/conformance.py", "exec"),
}


def called(node):
    """`a.b` of a call of a.b, else the bare name."""
    function = node.func
    if isinstance(function, ast.Attribute):
        owner = function.value.id if isinstance(function.value, ast.Name) else "?"
        return f"{owner}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else "?"


def literal(call, name):
    """The literal value of a keyword of a call; None where it is not given, `...` where it is no literal."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value.value if isinstance(keyword.value, ast.Constant) else ...
    return None


def dangers(text):
    """Everything in a source text that could turn data into code."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"import of {name}" for name in modules if name.split(".")[0] in PICKLES)
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        if name == "torch.load" and literal(node, "weights_only") is not True:
            yield "torch.load without weights_only=True"
        if name.endswith(".read_pickle") or name in ("torch.jit.load", "torch.hub.load", "hub.load", "jit.load"):
            yield name
        if literal(node, "allow_pickle") not in (None, False):
            yield "allow_pickle"
        if literal(node, "trust_remote_code") not in (None, False):
            yield "trust_remote_code"
        if literal(node, "use_safetensors") not in (None, True):
            yield "use_safetensors=False"
        if name in ("yaml.load", "yaml.load_all") or name.startswith(("yaml.unsafe", "yaml.full")):
            yield name
        if name in ("eval", "exec", "os.system", "os.popen") or literal(node, "shell") not in (None, False):
            yield name


SOURCES = sorted(path for folder in FOLDERS for path in (registry.ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_source_turns_data_into_code(folder):
    found = {
        (path.relative_to(registry.ROOT).as_posix(), danger)
        for path in SOURCES
        if path.is_relative_to(registry.ROOT / folder)
        for danger in dangers(path.read_text())
    }
    assert found <= ALLOWED


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=trust)",
        "model.from_pretrained(name, use_safetensors=False)",
        "pd.read_pickle(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_the_search_finds_what_it_is_for(text):
    assert len(list(dangers(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        '!!python/object/apply:os.system ["touch pwned"]',
        'tasks: !!python/object/apply:subprocess.check_output [["touch", "pwned"]]',
        "tasks: !!python/name:os.system",
        "tasks: !!python/module:os",
    ],
)
def test_a_grid_cannot_make_objects(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AtlasError, match="not valid YAML"):
        documents.read_yaml(projects.write(tmp_path, "grid.yaml", text))
    assert isinstance(documents.parse_value(text), str)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]


@pytest.mark.parametrize("text", ["\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else ['x'])}]"
                                            for i in range(40)), "a: &a [*a]"])  # fmt: skip
def test_aliases_that_stand_for_billions_are_refused(tmp_path, text):
    with pytest.raises(AtlasError, match="aliases"):
        documents.read_yaml(projects.write(tmp_path, "grid.yaml", text))


def test_aliases_and_merges_of_a_usual_size_are_read(tmp_path):
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 2}\nc: [*a, *a]\n"
    found = documents.read_yaml(projects.write(tmp_path, "grid.yaml", text))
    assert found["b"] == {"x": 2, "y": [1, 2]} and found["c"] == [found["a"]] * 2


def test_yaml_nested_without_end_is_one_clear_error(tmp_path):
    with pytest.raises(AtlasError, match="not valid YAML"):
        documents.read_yaml(projects.write(tmp_path, "grid.yaml", "[" * 100_000))


def test_a_sweep_over_billions_is_refused_before_it_is_made(tmp_path):
    root = projects.make(tmp_path)
    values = {"grid": list(range(1, 1001))}
    with pytest.raises(AtlasError, match="1,000,000,000 configurations"):
        entry = {"method": "lora", "settings": {"rank": values, "alpha": values}, "recipe": {"max_steps": values}}
        projects.grid(root, projects.GRID, methods=[entry])


def test_listing_what_there_is_runs_no_plugin(tmp_path):
    """The metadata of a plugin is read from its source: what it would do when it is imported does not happen."""
    projects.write(tmp_path, "mine/new.py", projects.HEAD.replace('"head"', '"new"') + '\nopen("pwned", "w")\n')
    projects.write(tmp_path, "grid.yaml", projects.GRID.replace("small: [one]", "glue: [sst2]") + "plugins: [mine]\n")
    command = [sys.executable, "-m", "workflow", "status", "--grid", "grid.yaml"]
    environment = {"PYTHONPATH": str(registry.ROOT), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "pwned").exists()
