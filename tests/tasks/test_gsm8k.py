"""GSM8K: prompts, splits and answers of both tasks under both protocols; from small files, and real ones if any."""

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tasks.gsm8k import GSM8K_ID, GSM8K_REVISION, METAMATHQA_ID, METAMATHQA_REVISION, PEFT, suite
from workflow.errors import AtlasError

REAL = Path(__file__).parents[2].parent / "shared" / "data"
PUBLISHED = {"name": PEFT.name}


def write(root, task, split, columns):
    path = root / "gsm8k" / task / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def gsm8k(root, split, size, final="{}"):
    questions = [f"What is {row} and 1, {split}?" for row in range(size)]
    answers = [f"It is {row}+1 = <<{row}+1={row + 1}>>{row + 1}.\n#### {final.format(row + 1)}" for row in range(size)]
    write(root, "main", split, {"question": questions, "answer": answers})


@pytest.fixture
def root(tmp_path):
    gsm8k(tmp_path, "train", 200)
    gsm8k(tmp_path, "test", 30)
    rows = range(300)
    write(
        tmp_path,
        "metamathqa",
        "train",
        {
            "type": ["GSM_Rephrased" for row in rows],
            "query": [f"Reworded {row}" + "?" * (2000 if row == 1 else 1) for row in rows],
            "original_question": [f"What is {row % 200} and 1,  train?" for row in rows],  # two blanks: white space
            "response": [f"It is {row}.\n#### {row}\nThe answer is: {row}" for row in rows],
        },
    )
    return tmp_path


def load(root, task="main", **options):
    options = {"validation": 20} | options if "name" not in options else options
    return suite.load(task, suite.protocol(task, options), root)


def numbers(split):
    """The row numbers that the questions were made from."""
    return [int(prompt.split()[3]) for (prompt,) in split.inputs]


def test_a_prompt_ends_where_the_answer_begins(root):
    data = load(root)
    for split in (data.train, data.validation, data.test):
        assert all(prompt.startswith("Question: What") and prompt.endswith("?\nAnswer:") for (prompt,) in split.inputs)
    row = numbers(data.train)[0]
    assert data.train.labels[0] == f" It is {row}+1 = {row + 1}.\n#### {row + 1}"


def test_marks_of_the_calculator_can_be_kept(root):
    data = load(root, calculator_marks=True)
    assert "<<0+1=1>>1.\n#### 1" in data.test.labels[0]


def test_test_is_whole_and_validation_comes_from_train(root):
    data = load(root)
    assert numbers(data.test) == list(range(30)) and len(data.validation) == 20
    assert sorted(numbers(data.train) + numbers(data.validation)) == list(range(200))
    assert all("train?" in prompt for (prompt,) in data.validation.inputs)


def test_answers_are_what_extraction_finds_in_the_worked_answers(root):
    gsm8k(root, "test", 30, final="1,{:03d}")
    for task, options in (("main", {}), ("main", PUBLISHED), ("metamathqa", PUBLISHED)):
        test, protocol = load(root, task, **options).test, suite.protocol(task, options)
        assert list(test.answers[:3]) == ["1001", "1002", "1003"]
        assert [suite.extract(task, protocol, text)["strict"] for text in test.labels] == list(test.answers)


def test_extraction_gives_both_rules():
    protocol = suite.protocol("main", {})
    assert suite.extract("main", protocol, " 3 + 4 = 7\n#### 7\nQuestion: 2?") == {"strict": "7", "flexible": "2"}


def test_an_answer_without_a_final_number_is_an_error(root):
    gsm8k(root, "train", 200, final="none")
    with pytest.raises(AtlasError, match="row 0 of gsm8k/main/train does not end in"):
        load(root)


def test_subsets_are_drawn_and_leave_validation_as_it_is(root):
    whole, cut = load(root), load(root, max_train=50, max_test=10)
    assert len(cut.train) == 50 and set(numbers(cut.train)) <= set(numbers(whole.train))
    assert len(cut.test) == 10 and numbers(cut.test) != list(range(10))
    assert numbers(cut.validation) == numbers(whole.validation)
    other = load(root, max_train=50, max_test=10, split_seed=1)
    assert numbers(other.validation) != numbers(cut.validation) and numbers(other.test) == numbers(cut.test)


def test_metamathqa_does_not_train_on_rewordings_of_validation(root):
    data = load(root, "metamathqa")
    assert data.train.inputs[0][0].startswith("Question: Reworded")
    assert not {row % 200 for row in data.train.ids} & set(numbers(data.validation))
    assert len(data.train) == sum(row % 200 not in numbers(data.validation) for row in range(300))


def test_the_published_protocol_takes_the_first_short_rows_in_order(root):
    data = load(root, "metamathqa", max_train=100, **PUBLISHED)
    assert list(data.train.ids) == [0, *range(2, 101)]
    assert data.train.inputs[0] == ("Question: Reworded 0? Think step by step.\nAnswer:",)
    assert data.train.labels[0] == "It is 0.\n#### 0\nThe answer is: 0"


def test_the_limit_counts_query_blank_and_response(root):
    rows = {"query": ["q" * 5, "q" * 6], "response": ["r" * 4] * 2, "original_question": [""] * 2}
    write(root, "metamathqa", "train", rows)
    assert list(load(root, "metamathqa", max_characters=10, **PUBLISHED).train.ids) == [0]


def test_published_validation_is_the_first_fifty_of_numpys_shuffle(root):
    rows = np.arange(200)
    np.random.seed(0)
    np.random.shuffle(rows)
    assert numbers(load(root, "metamathqa", **PUBLISHED).validation) == list(rows[:50])


def test_each_protocol_has_its_lengths_and_loss():
    def facts(task, **options):
        info = suite.facts(task, suite.protocol(task, options))
        return info.max_length, info.learn, info.new_tokens, info.total_tokens

    assert facts("main") == (512, "completion", 256, None)
    assert facts("main", new_tokens=64) == (512, "completion", 64, None)
    assert facts("metamathqa", **PUBLISHED) == (768, "all", 300, 800)


def test_the_published_recipe():
    assert suite.recipe("metamathqa") == {
        "lr": 1e-4,
        "weight_decay": 0.1,
        "schedule": "cosine",
        "warmup": 0.1,
        "clip": 1.0,
        "batch_size": 4,
        "max_steps": 5000,
        "evaluations": 20,
        "dtype": "bfloat16",
    }


def test_the_last_checkpoint_counts():
    assert {suite.reported(suite.protocol("main", {"name": p.name})) for p in suite.protocols} == {"last"}


def test_sources_are_what_is_read():
    protocol = suite.protocol("main", {})
    assert suite.sources("main", protocol) == [(GSM8K_ID, "main", GSM8K_REVISION, ("train", "test"), ())]
    assert suite.sources("metamathqa", protocol)[1:] == [
        (METAMATHQA_ID, "default", METAMATHQA_REVISION, ("train",), ())
    ]


def test_a_missing_file_is_named(root):
    (root / "gsm8k" / "metamathqa" / "train.parquet").unlink()
    with pytest.raises(AtlasError, match="gsm8k/metamathqa has no 'train' split"):
        load(root, "metamathqa")


@pytest.mark.skipif(not (REAL / "gsm8k").is_dir(), reason="no real data beside the repository")
def test_real_data_has_its_published_sizes_and_every_answer_is_found():
    protocol = suite.protocol("main", {})
    data = suite.load("main", protocol, REAL)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [6973, 500, 1319]
    assert not {prompt for (prompt,) in data.train.inputs} & {prompt for (prompt,) in data.test.inputs}
    for split in (data.train, data.test):
        found = [suite.extract("main", protocol, text) for text in split.labels]
        assert [rules["strict"] for rules in found] == list(split.answers)
        assert [rules["flexible"] for rules in found] == list(split.answers)
        assert not any("<<" in text for text in split.labels)
    assert sum("," in text.rpartition("####")[2] for text in data.test.labels) == 14
    assert sum(answer.startswith("-") for answer in data.test.answers) == 2
