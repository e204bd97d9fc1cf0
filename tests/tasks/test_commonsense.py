"""Commonsense: which files are read, what is learned, and which answer a response gives; real files if there."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tasks._commonsense import items
from tasks.commonsense import SOURCES, suite
from workflow.errors import AtlasError

REAL = Path(__file__).parents[2].parent / "shared" / "data"
FREE = {"check_sizes": False}
OPTION_WORDS = {"boolq": None, "piqa": "Solution", "hellaswag": "Ending", "winogrande": "Option"}


def instruction(task, number, count):
    """An instruction in the layout of the published files."""
    word = OPTION_WORDS.get(task, "Answer")
    if word is None:
        return f"Please answer the following question with true or false, question: is it {number}?\n\n" + (
            "Answer format: true/false"
        )
    options = " ".join(f"{word}{i}: thing {i} of {number}" for i in range(1, count + 1))
    allowed = "/".join(f"{word.lower()}{i}" for i in range(1, count + 1))
    return (
        f"Please choose the correct answer to the question: what is {number}?\n\n{options}\n\nAnswer format: {allowed}"
    )


def rows(task, size, start=0, counts=(2,)):
    """Items whose answers come in turn."""
    made = []
    for number in range(start, start + size):
        text = instruction(task, number, counts[number % len(counts)])
        allowed = text.rpartition(": ")[2].split("/")
        answer = allowed[number % len(allowed)]
        made.append({"instruction": text, "input": "", "output": f"the correct answer is {answer}", "answer": answer})
    return made


def write(root, place, made):
    path = root / "commonsense" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(made), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made), path)


def load(root, task="boolq", **options):
    return suite.load(task, suite.protocol(task, FREE | options), root)


@pytest.fixture
def root(tmp_path):
    """Files of three tasks, ARC-Easy's with three to five options."""
    for task, counts in (("boolq", (2,)), ("arc_easy", (4, 3, 5)), ("winogrande", (2,))):
        write(tmp_path, f"{task}/train.parquet", rows(task, 300, 0, counts))
        write(tmp_path, f"{task}/test.parquet", rows(task, 60, 1000, counts))
    return tmp_path


# ---- the prompt and what is learned


def test_the_prompt_is_the_alpaca_header_around_the_instruction_as_it_is(root):
    data = load(root)
    text = instruction("boolq", 1000, 2)
    assert data.test.inputs[0] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{text}\n\n### Response:",
    )
    assert data.test.labels[0] == "\nthe correct answer is true"


def test_training_and_test_prompts_differ_in_nothing_but_the_instruction(root):
    data = load(root)
    shells = {
        text.replace(instruction("boolq", number, 2), "")
        for split in (data.train, data.validation, data.test)
        for (text,), number in zip(split.inputs, [int(row.split("/")[1]) for row in split.ids], strict=True)
        for number in (number, number + 1000)
        if instruction("boolq", number, 2) in text
    }
    assert len(shells) == 1


def test_choices_are_those_of_each_item(root):
    test = load(root, "arc_easy").test
    assert [len(choices) for choices in test.choices[:6]] == [3, 5, 4, 3, 5, 4]
    assert test.choices[0] == tuple(f"\nthe correct answer is answer{i}" for i in (1, 2, 3))
    for label, choices, answer in zip(test.labels, test.choices, test.answers, strict=True):
        assert label in choices
        assert label.endswith(answer)


# ---- splits


def test_validation_is_120_rows_of_train_with_the_shares_of_the_answers(root):
    data = load(root)
    assert (len(data.train), len(data.validation), len(data.test)) == (180, 120, 60)
    assert not set(data.train.inputs) & set(data.validation.inputs)
    assert (data.validation.answers == "true").sum() == 60


def test_train_repeats_no_prompt_of_validation(root):
    made = rows("boolq", 300)
    write(root, "boolq/train.parquet", made + made[:150])
    data = load(root)
    assert not set(data.train.inputs) & set(data.validation.inputs)


def test_draws_do_not_depend_on_the_order_of_the_file(root):
    before = load(root, max_train=50, max_test=20)
    write(root, "boolq/train.parquet", rows("boolq", 300)[::-1])
    after = load(root, max_train=50, max_test=20)
    assert set(before.train.inputs) == set(after.train.inputs)
    assert set(before.validation.inputs) == set(after.validation.inputs)
    assert (len(after.train), len(after.test)) == (50, 20)


def test_too_few_rows_for_validation_are_an_error(root):
    with pytest.raises(AtlasError, match="300 rows, of which 300") as problem:
        load(root, validation=300)
    assert problem.value.key == "protocol.commonsense.validation"


# ---- one model for all


def test_a_joint_model_is_tested_on_the_parts(root):
    data = load(root, "joint", mixture="available", parts=["winogrande", "boolq"])
    assert len(data.train) + len(data.validation) == 900
    assert data.test.parts.tolist() == ["boolq"] * 60 + ["winogrande"] * 60
    assert len(set(data.test.ids)) == 120


def test_rows_of_a_test_file_are_drawn_for_each_part(root):
    data = load(root, "joint", mixture="available", parts=["boolq", "arc_easy"], max_test=10)
    assert data.test.parts.tolist() == ["boolq"] * 10 + ["arc_easy"] * 10


def test_without_parts_all_eight_are_wanted(root):
    with pytest.raises(AtlasError, match="no test file of piqa, siqa, hellaswag, arc_challenge, obqa") as problem:
        load(root, "joint", mixture="available")
    assert "parts: ['boolq', 'winogrande', 'arc_easy']" in problem.value.mend
    assert "AGI-Edgerunners/LLM-Adapters" in problem.value.mend


@pytest.mark.parametrize(
    "place",
    ["joint/15k.parquet", "joint/commonsense_15k.json", "ft-training_set/commonsense_15k.json"],
)
def test_a_mixture_is_read_from_any_of_its_places(root, place):
    write(root, place, rows("boolq", 100) + rows("arc_easy", 100, 0, (4,)))
    data = load(root, "joint", mixture="15k", parts=["boolq"])
    assert (len(data.train), len(data.validation)) == (80, 120)


def test_a_missing_mixture_is_an_error_that_says_where_it_is_from(root):
    with pytest.raises(AtlasError, match="no mixture '170k'") as problem:
        load(root, "joint", parts=["boolq"])
    assert "ft-training_set/" in problem.value.mend


def test_a_clone_of_the_repository_will_do(tmp_path):
    write(tmp_path, "dataset/ARC-Easy/train.json", rows("arc_easy", 200, 0, (4,)))
    write(tmp_path, "dataset/ARC-Easy/test.json", rows("arc_easy", 20, 500, (4,)))
    assert len(load(tmp_path, "arc_easy").test) == 20


# ---- faults


def test_a_task_without_training_file_is_an_error(root):
    write(root, "piqa/test.parquet", rows("piqa", 20))
    with pytest.raises(AtlasError, match="commonsense/piqa has no 'train' file") as problem:
        load(root, "piqa")
    assert str(problem.value.file).endswith("commonsense/piqa/train.parquet")


def test_without_data_root_nothing_is_read():
    with pytest.raises(AtlasError, match="local files only"):
        load(None)


@pytest.mark.parametrize(
    "change",
    [{"input": "x"}, {"output": "true"}, {"answer": "maybe"}, {"instruction": "What is it?"}],
    ids=lambda change: next(iter(change)),
)
def test_rows_that_are_no_items_are_an_error(root, change):
    made = rows("boolq", 10)
    made[3] |= change
    write(root, "boolq/test.parquet", made)
    with pytest.raises(AtlasError, match="row 3 is no item"):
        load(root)


def test_a_file_without_the_columns_is_an_error(root):
    write(root, "boolq/test.parquet", [{"question": "is it?"}])
    with pytest.raises(AtlasError, match="no column instruction, input, output, answer"):
        load(root)


def test_a_file_cut_short_is_an_error_unless_it_is_meant(root):
    with pytest.raises(AtlasError, match=r"the test file of boolq has 60 rows; 3,270 are published"):
        load(root, check_sizes=True)


@pytest.mark.parametrize(("options", "message"), [({"mixture": "17k"}, "no mixture"), ({"parts": ["arc"]}, "no part")])
def test_unknown_names_in_options_are_errors(options, message):
    with pytest.raises(AtlasError, match=message):
        suite.protocol("joint", options)


# ---- protocols


def test_options_of_joint_training_do_not_change_a_task_that_is_trained_alone():
    assert suite.protocol("boolq", {"mixture": "15k", "parts": ["piqa"]}) == suite.protocol("boolq")


def test_parts_have_one_order():
    assert suite.protocol("joint", {"parts": ["obqa", "boolq"]})["parts"] == ["boolq", "obqa"]


def test_protocols_change_loss_and_metrics():
    found = {name: suite.facts("boolq", suite.protocol("boolq", {"name": name})) for name in suite_protocols()}
    assert {name: (info.primary, info.learn) for name, info in found.items()} == {
        "generate": ("accuracy", "completion"),
        "likelihood": ("accuracy_likelihood", "completion"),
        "legacy-prompt-loss": ("accuracy", "all"),
    }
    assert found["likelihood"].metrics == ("accuracy_likelihood", "nll")


def suite_protocols():
    return [protocol.name for protocol in suite.protocols]


def test_the_number_of_the_tables_is_that_of_the_last_step():
    assert {suite.reported(suite.protocol("boolq", {"name": name})) for name in suite_protocols()} == {"last"}


def test_the_headline_is_the_mean_over_the_parts():
    info = suite.facts("joint", suite.protocol("joint"))
    assert (info.parts, info.headline, info.contaminated) == (tuple(SOURCES), "mean", ())
    assert info.chance == pytest.approx((0.622 + 0.5 + 1 / 3 + 0.25 + 0.5 + 0.25 + 0.25 + 0.25) / 8)
    some = suite.facts("joint", suite.protocol("joint", {"parts": ["piqa", "obqa"]}))
    assert (some.parts, some.chance) == (("piqa", "obqa"), 0.375)


def test_the_recipe_is_the_published_one():
    assert suite.recipe("joint") == {
        "lr": 3e-4,
        "batch_size": 16,
        "epochs": 3.0,
        "schedule": "linear",
        "warmup": 100,
        "max_length": 256,
    }


# ---- extraction

EXTRACTED = [  # task, response, strict, flexible
    ("boolq", "\nthe correct answer is true", "true", "true"),
    ("boolq", "True", "", "true"),
    ("boolq", " the correct answer is true.", "true", "true"),
    ("boolq", "FALSE, although some say true", "true", "false"),
    ("boolq", "untrue", "true", "true"),
    ("boolq", "yes", "", ""),
    ("boolq", "answer1", "", ""),
    ("boolq", "", "", ""),
    ("piqa", "solution12", "solution1", "solution1"),
    ("piqa", "Solution2", "", "solution2"),
    ("piqa", "solution3", "", ""),
    ("siqa", "answer4 because", "answer4", "answer4"),
    ("siqa", "answer6", "", ""),
    ("arc_easy", "not answer2 but answer3", "answer2", "answer2"),
    ("arc_easy", "Answer 3", "", ""),
    ("arc_challenge", "the correct answer is answer5", "answer5", "answer5"),
    ("obqa", "ending1", "", ""),
    ("hellaswag", "ending4", "ending4", "ending4"),
    ("hellaswag", "ending5", "", ""),
    ("winogrande", "_option2_", "option2", "option2"),
    ("winogrande", "\n\n", "", ""),
]


@pytest.mark.parametrize(("task", "response", "strict", "flexible"), EXTRACTED)
def test_answers_in_responses(task, response, strict, flexible):
    found = suite.extract(task, suite.protocol(task), response)
    assert found == {"strict": strict, "flexible": flexible}


PROMPT = "### Instruction:\nWhat?\n\nAnswer1: a cat. Answer2: a cat and a Dog Answer3: 2 + 2\n\n" + (
    "Answer format: answer1/answer2/answer3\n\n### Response:"
)


@pytest.mark.parametrize(
    ("response", "flexible"),
    [
        ("\nIt is a cat", "answer1"),
        ("a  CAT and\na dog", "answer2"),
        ("2 + 2 is a cat", "answer3"),
        ("a category", ""),
        ("a dog", ""),
        ("a cat, so answer3", "answer3"),
    ],
)
def test_the_text_of_an_option_counts_for_the_flexible_rule_only(response, flexible):
    found = suite.extract("siqa", suite.protocol("siqa"), response, PROMPT)
    assert found["flexible"] == flexible
    assert found["strict"] in ("", flexible)


def test_options_of_an_instruction():
    assert items.options(PROMPT) == {"answer1": "a cat.", "answer2": "a cat and a dog", "answer3": "2 + 2"}
    assert items.options(instruction("boolq", 1, 2)) == {}


# ---- the published files


def real(task, split):
    path = REAL / "commonsense" / task / f"{split}.parquet"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return pyarrow.parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("task", SOURCES)
def test_published_test_files_have_the_published_rows(task):
    made = real(task, "test")
    assert len(made) == SOURCES[task].test_rows
    assert {answer for row in made for answer in items.allowed(row["instruction"])} <= set(SOURCES[task].words)


@pytest.mark.parametrize("task", SOURCES)
def test_published_options_are_found(task):
    for row in real(task, "test"):
        allowed = items.allowed(row["instruction"])
        assert tuple(items.options(row["instruction"])) == (() if task == "boolq" else allowed)


@pytest.mark.parametrize(
    ("task", "size"), [("boolq", 9427), ("arc_easy", 2251), ("arc_challenge", 1119), ("obqa", 4957)]
)
def test_published_training_files_load(task, size):
    real(task, "train")
    data = suite.load(task, suite.protocol(task), REAL)
    assert size - 125 <= len(data.train) <= size - 120
    assert len(data.validation) == 120


def test_majority_of_boolq():
    made = real("boolq", "test")
    assert sum(row["answer"] == "true" for row in made) / len(made) == pytest.approx(SOURCES["boolq"].chance, abs=5e-4)
