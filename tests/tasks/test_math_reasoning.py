"""LLM-Adapters' math: files in either layout, prompts, what counts in the mean, and the published extraction."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from tasks.math_reasoning import TESTS, suite
from workflow.errors import AtlasError

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:"
)


def rows(name, size):
    return [
        {
            "instruction": f"{name}: what is {row} and 1?",
            "input": "",
            "output": f"\nA: {row} + 1 = {row + 1}. The answer is {row + 1}.",
            "answer": "C" if name == "aqua" else f"{row + 1}.0",
        }
        for row in range(size)
    ]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "math/math_10k/train.parquet", rows("train", 100))
    for part in TESTS:
        write(tmp_path / f"math/{part}/test.json", rows(part, 10))
    return tmp_path


def load(root, task="math_10k", **options):
    options = {"validation": 20, "check_sizes": False} | options
    return suite.load(task, suite.protocol(task, options), root)


def test_prompt_and_completion_are_those_of_alpaca(root):
    data = load(root)
    row = int(data.train.ids[0].split("/")[1])
    assert data.train.inputs[0] == (ALPACA.format(f"train: what is {row} and 1?"),)
    assert data.train.labels[0] == f"\nA: {row} + 1 = {row + 1}. The answer is {row + 1}."
    assert data.test.inputs[0] == (ALPACA.format("gsm8k: what is 0 and 1?"),)


def test_an_input_has_its_own_place_in_the_prompt(root):
    write(root / "math/svamp/test.json", [rows("svamp", 1)[0] | {"input": "Zero is 0."}])
    (prompt,) = load(root, parts=["svamp"]).test.inputs[0]
    assert "paired with an input" in prompt and "\n\n### Input:\nZero is 0.\n\n### Response:" in prompt


def test_the_published_indentation_can_be_had(root):
    data = load(root, indented=True)
    header, *lines = [line for line in data.test.inputs[0][0].split("\n") if line]
    assert header.startswith("Below is") and all(line.startswith(16 * " ") for line in lines)
    assert data.train.labels[0].startswith("\n" + 16 * " " + "A:")


def test_validation_is_taken_out_of_train(root):
    data = load(root)
    assert (len(data.train), len(data.validation)) == (80, 20)
    assert not set(data.train.ids) & set(data.validation.ids)


def test_test_has_all_parts_with_their_answers(root):
    test = load(root).test
    assert list(dict.fromkeys(test.parts)) == list(TESTS) and len(test) == 10 * len(TESTS)
    assert list(test.answers[test.parts == "svamp"]) == [str(row + 1) for row in range(10)]
    assert set(test.answers[test.parts == "aqua"]) == {"C"}


def test_subsets_are_drawn_in_each_part(root):
    test = load(root, max_test=3).test
    assert {part: int((test.parts == part).sum()) for part in TESTS} == dict.fromkeys(TESTS, 3)
    assert len(load(root, max_train=7).train) == 7


def test_sets_that_were_trained_on_do_not_count():
    facts = {task: suite.facts(task, suite.protocol(task)) for task in suite.tasks}
    assert facts["math_10k"].contaminated == ("addsub", "multiarith", "singleeq")
    assert facts["math_7k"].contaminated == facts["math_14k"].contaminated == ()
    some = suite.facts("math_10k", suite.protocol("math_10k", {"parts": ["singleeq", "gsm8k"]}))
    assert (some.parts, some.contaminated) == (("gsm8k", "singleeq"), ("singleeq",))


def test_a_mean_over_nothing_is_refused():
    with pytest.raises(AtlasError, match="math_10k was trained on addsub"):
        suite.protocol("math_10k", {"parts": ["addsub"]})
    assert suite.protocol("math_7k", {"parts": ["addsub"]})["parts"] == ["addsub"]


def test_an_unknown_part_is_an_error():
    with pytest.raises(AtlasError, match="there is no test set 'swamp'"):
        suite.protocol("math_10k", {"parts": ["swamp"]})


@pytest.mark.parametrize(
    ("part", "text", "strict", "flexible"),
    [
        ("gsm8k", "\nA: 3 + 4 = 7. The answer is 7.", "7", "7"),
        ("gsm8k", "\nA: The answer is 1,234 dollars for 2 days.", "2", "1234"),
        ("mawps", "\nA: 11 / 6 = 1.8333333. The answer is 1.8333333.", "1.833", "1.833"),
        ("svamp", "\nA: nobody knows.", "", ""),
        ("aqua", "\nRationale: 2 + 2 = 4. The answer is (C).", "C", "C"),
        ("aqua", "\nA: 2 + 2 = 4. The answer is (C).", "A", "C"),  # the published rule takes the first capital
        ("aqua", "\nBoth are right. the answer is option D", "B", "D"),
        ("aqua", "\n4 men, the answer is a number: E", "E", "E"),
        ("aqua", "\nit is 4.", "", ""),
    ],
)
def test_extraction(part, text, strict, flexible):
    assert suite.extract(part, suite.protocol("math_10k"), text) == {"strict": strict, "flexible": flexible}


def test_a_clone_of_the_repository_will_do(root):
    whole = load(root)
    for path in list((root / "math").rglob("*.json")):
        write(root / f"math/dataset/{TESTS[path.parent.name].folder}/test.json", json.loads(path.read_text()))
        path.unlink()
    (root / "math/math_10k/train.parquet").unlink()
    write(root / "math/ft-training_set/math_10k.json", rows("train", 100))
    assert load(root).fingerprint == whole.fingerprint


def test_what_is_missing_is_named_with_its_origin(root):
    for arguments, problem in (((None,), "local files only"), ((root, "math_7k"), "no training set 'math_7k'")):
        with pytest.raises(AtlasError, match=problem) as error:
            load(*arguments)
        assert "AGI-Edgerunners/LLM-Adapters" in str(error.value)
    (root / "math/svamp/test.json").unlink()
    with pytest.raises(AtlasError, match="no test set 'svamp'"):
        load(root)
    assert set(load(root, parts=["gsm8k"]).test.parts) == {"gsm8k"}


def test_a_file_that_is_cut_short_is_refused_unless_it_is_meant(root):
    with pytest.raises(AtlasError, match="10 rows; 1,319 are published"):
        load(root, check_sizes=True)


@pytest.mark.parametrize(("part", "answer"), [("aqua", "F"), ("gsm8k", "many")])
def test_an_answer_of_another_kind_is_an_error(root, part, answer):
    write(root / f"math/{part}/test.json", [rows(part, 1)[0] | {"answer": answer}])
    with pytest.raises(AtlasError, match=f"row 0 has the answer '{answer}'"):
        load(root)


def test_validation_must_leave_something_to_train_on(root):
    with pytest.raises(AtlasError, match="100 rows are too few"):
        load(root, validation=100)
