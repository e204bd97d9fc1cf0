"""What a network reads of an example: prompt and answer, options, pixels; and the cache of tokenised texts."""

import subprocess
import sys
import textwrap
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from models.entries import model
from models.load import load
from tasks.base import Images, Split, TaskInfo
from workflow import cache, encode
from workflow.data import IGNORED, Ragged

INFO = TaskInfo(
    suite="toy",
    name="sums",
    kind="generation",
    modality="text",
    fields=("prompt",),
    labels=(),
    metrics=("accuracy", "nll"),
    primary="accuracy",
    max_length=32,
    title="Sums",
    new_tokens=4,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATLAS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def decoder():
    return load(model("tiny-llama"), "generation")


def split(*pairs: tuple[str, str], **more) -> Split:
    prompts, answers = zip(*pairs, strict=True)
    return Split([(p,) for p in prompts], np.array(answers, object), np.arange(len(pairs)), **more)


SUMS = split(("how much is three and four", "seven"), ("two and two", "it is four"))


def test_a_training_example_begins_with_the_prompt_of_a_test(decoder):
    data, prompts = encode.encode(INFO, SUMS, decoder, None), encode.prompts(SUMS, decoder, 4)
    for row in range(2):
        prompt = prompts.ids[row].tolist()
        assert data.ids[row].tolist()[: len(prompt)] == prompt
        assert data.prompt[row] == len(prompt)


def test_labels_are_the_tokens_that_follow_and_the_end_token(decoder):
    data = encode.encode(INFO, SUMS, decoder, None)
    answer = decoder.tokenizer(["it is four"], add_special_tokens=False)["input_ids"][0]
    learned = [*answer, decoder.tokenizer.eos_token_id]
    labels = data.labels[1].tolist()
    assert labels[-len(learned) :] == learned
    assert set(labels[: -len(learned)]) == {IGNORED}
    assert data.ids[1].tolist()[-len(answer) :] == answer, "the end token is learned and never read"
    assert data.first[1] == len(labels) - len(learned) == data.prompt[1] - 1


def test_with_the_loss_on_all_tokens_the_prompt_is_learned_too(decoder):
    data = encode.encode(replace(INFO, learn="all"), SUMS, decoder, None)
    for row in range(2):
        assert data.labels[row][:-1].tolist() == data.ids[row][1:].tolist()
    assert data.first.tolist() == [0, 0]


def test_what_is_too_long_is_cut_on_the_right_and_counted(decoder):
    data = encode.encode(INFO, SUMS, decoder, 6)
    assert data.cut == 2
    assert data.lengths.max() <= 5
    assert decoder.tokenizer.eos_token_id not in data.labels.values
    assert encode.encode(INFO, SUMS, decoder, None).cut == 0


def test_an_example_whose_answer_is_cut_away_is_not_trained_on(decoder):
    both = split(("a b c d e f g h", "seven"), ("two", "four"))
    data = encode.encode(INFO, both, decoder, 6)
    assert len(data) == 2 and data.cut == 1
    kept = data.learnable()
    assert [row.tolist() for row in kept.ids] == [data.ids[1].tolist()]
    assert kept.first.tolist() == [data.first[1]]
    whole = encode.encode(INFO, both, decoder, None)
    assert whole.learnable() is whole


def test_a_prompt_loses_its_beginning_where_there_is_no_room_for_the_answer():
    gpt2 = load(model("tiny-gpt2"), "generation")
    long = split((" ".join(f"w{i}" for i in range(100)), "seven"), choices=[("answer a", "answer b")])
    whole = encode.prompt_ids([long.inputs[0][0]], gpt2.tokenizer)[0]
    assert encode.prompts(long, gpt2, 10).ids[0].tolist() == whole[-54:]
    assert encode.choices(long, gpt2).encoded.ids[0].tolist()[:-1] == whole[-63:]


def test_an_encoder_decoder_learns_texts_of_their_own_length():
    t5 = load(model("tiny-t5"), "generation")
    data = encode.encode(INFO, split(("one", "a much longer answer than the question")), t5, None)
    batch = data.batch([0])
    assert batch.labels.shape[1] == 8 > batch.inputs["input_ids"].shape[1] == 3
    assert batch.labels[0, -1] == t5.tokenizer.eos_token_id


def test_options_that_differ_in_their_last_token_share_a_row(decoder):
    options = [("answer a", "answer b", "other c d"), ("yes", "no")]
    found = encode.choices(split(("first", "answer b"), ("second", "no"), choices=options), decoder)
    assert found.example.tolist() == [0, 0, 1]
    assert [o.tolist() for o in found.options] == [[0, 1], [2], [0, 1]]
    assert found.encoded.ids[2].tolist() == encode.prompts(split(("second", "no")), decoder, 4).ids[0].tolist()


class TestPixels:
    def test_values_are_normalised_by_channel(self):
        images = np.zeros((2, 4, 4, 3), np.uint8)
        images[1, :, :, 0] = 255
        pixels = encode.Pixels(images, 4, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0), "bicubic")[np.array([0, 1])]
        assert pixels.shape == (2, 3, 4, 4) and pixels.dtype == np.float32
        assert pixels[0, :, 0, 0].tolist() == pytest.approx([-1, -1, 0])
        assert pixels[1, :, 0, 0].tolist() == pytest.approx([1, -1, 0])

    def test_images_of_other_sizes_are_read_when_asked_for_and_brought_to_a_square(self):
        read = []

        class Files(Images):
            def __len__(self):
                return 3

            def read(self, row):
                read.append(row)
                return np.full((6, 9, 3), 51 * row, np.uint8)

        pixels = encode.Pixels(Files(), 4, (0.0,) * 3, (1.0,) * 3, "bilinear")
        assert read == []
        assert pixels[np.array([2, 1])][:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.2])
        assert sorted(read) == [1, 2]


class TestCache:
    def test_texts_are_tokenised_once(self, decoder, monkeypatch):
        first = encode.encode(INFO, SUMS, decoder, None)
        monkeypatch.setattr(encode, "_completions", lambda *_: pytest.fail("tokenised again"))
        again = encode.encode(INFO, SUMS, decoder, None)
        assert again.prompt.dtype == np.int64
        assert again.ids.values.tolist() == first.ids.values.tolist()
        assert again.labels.values.tolist() == first.labels.values.tolist()

    def test_the_end_token_is_part_of_what_a_tokenizer_is(self, decoder, tmp_path):
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        plain = Tokenizer(models.WordLevel({"[UNK]": 0, "<a>": 1, "<b>": 2, "four": 3}, unk_token="[UNK]"))
        plain.pre_tokenizer = pre_tokenizers.Whitespace()
        ends = []
        for end in ("<a>", "<b>"):
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=end)
            on = SimpleNamespace(kind="decoder", tokenizer=tokenizer, shape=SimpleNamespace(tokens=64))
            data = encode.encode(INFO, split(("two and two", "four")), on, None)
            ends.append(int(data.labels[0][-1]))
            digest = encode._tokenizer_digest(tokenizer)
            tokenizer(["one two three"], truncation=True, max_length=2)
            assert encode._tokenizer_digest(tokenizer) == digest
        assert ends == [1, 2]

    @pytest.mark.parametrize("other", ["texts", "length", "tokenizer"])
    def test_what_changes_the_tokens_changes_the_file(self, decoder, other, tmp_path):
        encode.encode(INFO, SUMS, decoder, None)
        data = split(("two and two", "four")) if other == "texts" else SUMS
        bigger = load(
            replace(model("tiny-llama"), config=model("tiny-llama").config | {"vocab_size": 98}), "generation"
        )
        encode.encode(INFO, data, bigger if other == "tokenizer" else decoder, 6 if other == "length" else None)
        assert len(list((tmp_path / "cache" / "tokenised").glob("*.arrow"))) == 2

    def test_of_many_jobs_that_start_at_once_one_makes_the_file(self, tmp_path):
        program = textwrap.dedent("""
            import sys, time
            from pathlib import Path
            from workflow import cache

            def make(path):
                with open(sys.argv[1], "a") as log:
                    log.write("made\\n")
                time.sleep(0.5)
                path.write_text("whole")

            assert cache.made("folder/file", make).read_text() == "whole"
        """)
        log = tmp_path / "log"
        jobs = [subprocess.Popen([sys.executable, "-c", program, str(log)]) for _ in range(4)]
        assert [job.wait(60) for job in jobs] == [0] * 4
        assert log.read_text() == "made\n"

    def test_a_job_that_fails_leaves_nothing_that_looks_done(self, tmp_path):
        def fail(path):
            path.write_text("half")
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            cache.made("file", fail)
        assert [p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")] == []
        assert cache.made("file", lambda path: path.write_text("whole")).read_text() == "whole"


def test_ragged_rows():
    rows = Ragged.of([[1, 2], [], [3, 4, 5]])
    assert [row.tolist() for row in rows] == [[1, 2], [], [3, 4, 5]]
    assert rows.lengths.tolist() == [2, 0, 3]
    assert [row.tolist() for row in rows.take([2, 0])] == [[3, 4, 5], [1, 2]]
    assert rows.padded([0, 2], 3, -1, left=True).tolist() == [[-1, 1, 2], [3, 4, 5]]
    assert rows[-1].tolist() == [3, 4, 5]
