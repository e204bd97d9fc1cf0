"""The tables of scores: tasks and their means, parts of test splits, generated answers."""

from __future__ import annotations

from dataclasses import dataclass

from workflow import registry
from workflow.outcomes import Place, Row, Study
from workflow.standing import TIE_RULE, Estimate, Standing, average, leader, metric_of, scored, standings
from workflow.table_columns import Filled, absent, incomplete, lost_seeds, made, whole
from workflow.typeset import Column, Entry, Notes, Table, some

INTERVAL = (
    "Scores are mean ± half-width of a 95 % interval, in the unit of the column. With two or more seeds it is a t "
    "interval over seeds; it does not hold the sampling error of the test set."
)
CHECKPOINTS = {"selected": "the evaluation that was best on validation data", "last": "the last step"}
ANSWERS = {
    "accuracy": ("strict", "accuracy, %"),
    "accuracy_flexible": ("flexible", "accuracy, %"),
    "accuracy_likelihood": ("likelihood", "accuracy, %"),
    "unparsed": ("unparsed", "% of texts"),
    "nll": ("nll", "nats/token"),
}


def score_text(found: Estimate) -> str:
    decimals = found.metric.decimals
    return f"{found.mean:.{decimals}f}" + ("" if found.half is None else f" ±{found.half:.{decimals}f}")


def score_entry(
    study: Study, row: Row, place: Place, ranked: dict[Row, Standing], notes: Notes, metric: str | None = None
) -> Entry:
    """A metric at a place; only the primary one is held against the controls."""
    found = study.at(row, place)
    standing = ranked.get(row)
    if standing is None:
        return absent(study, row, found, notes, "accuracy")
    own = standing.score
    entry = Entry(score_text(own), own.mean, own.half, own.seeds, best=standing.best, marks=lost_seeds(found, notes))
    if own.half is None:
        entry = entry.marked(notes.add("no standard error recorded, so no interval"))
    elif own.seeds == 1:
        entry = entry.marked(notes.case("†"))
    others = {outcome.rule for outcome in found if outcome.trained} - {study.rules.get(place)}
    entry = entry.marked(*(notes.add(f"checkpoint: {CHECKPOINTS[rule]}") for rule in sorted(others)))
    if standing.below and metric is None:
        entry = entry.marked(notes.case("↓", f"{row.label} on {place.title}, below {', '.join(standing.below)}"))
    return entry


def unit_of(study: Study, place: Place) -> str:
    return metric_of(study.metric(place)).unit


def accuracy(study: Study, ranked: dict[Place, dict[Row, Standing]], title: str) -> Table | None:
    notes = score_notes(study)
    notes.general += chance_note(study)
    filled = [
        column
        for places in study.families()
        if not places[0].cost_only
        for column in (*score_columns(study, places, ranked, notes), *mean_columns(study, places, ranked, notes))
    ]
    return made("accuracy", f"Accuracy: {title}", study, filled, notes) if filled else None


def score_notes(study: Study) -> Notes:
    """Notes that every table of scores begins with; the checkpoint is among them where all columns share it."""
    texts = {checkpoint(study, place) for place in study.rules}
    shared = [f"Checkpoint of the scores: {text}." for text in texts] if len(texts) == 1 else []
    return Notes(general=[INTERVAL, seeds_note(study), TIE_RULE, *shared])


def checkpoint(study: Study, place: Place) -> str:
    """Which checkpoint most scores of a place are from, as the results say; '' where there is none yet."""
    rule, select = study.rules.get(place), study.facts[place].select
    return CHECKPOINTS.get(rule, "") + (f", by {select}" if rule == "selected" and select else "")


def column_marks(study: Study, place: Place, notes: Notes) -> tuple[str, ...]:
    """What must be known of every score in a column: its checkpoint if columns differ, a test set that was cut."""
    marks = []
    if len({checkpoint(study, other) for other in study.rules}) > 1 and place in study.rules:
        marks.append(notes.add(f"checkpoint: {checkpoint(study, place)}"))
    if cut := cut_test(study, place):
        marks.append(notes.add(cut))
    return tuple(marks)


def cut_test(study: Study, place: Place) -> str:
    """A sentence on a test set that the protocol cuts; '' where it does not, or had nothing to cut."""
    most = study.protocols[place].get("max_test")
    if not most:
        return ""
    sizes = test_sizes(study, place)
    if sizes and max(sizes) < most:
        return ""
    counted = f"n = {' or '.join(f'{size:,}' for size in sizes)} test examples, " if sizes else ""
    return f"{counted}cut by the protocol's max_test of {most:,}{' a part' if study.facts[place].parts else ''}"


def test_sizes(study: Study, place: Place, metric: str | None = None) -> list[int]:
    """The different numbers of test examples behind a metric, over all results of a place."""
    found = (outcome.estimate(metric, "n") for row in study.rows for outcome in study.at(row, place))
    return sorted({int(size) for size in found if size})


def chance_note(study: Study) -> list[str]:
    """One sentence with the score that guessing gives."""
    known = {
        f"{place.suite}/{place.task}": facts.chance * metric_of(facts.primary).scale
        for place, facts in study.facts.items()
        if facts.chance is not None
    }
    return [f"By chance: {', '.join(f'{task} {chance:.1f}' for task, chance in known.items())}."] if known else []


def seeds_note(study: Study) -> str:
    """How many seeds stand behind the scores, exceptions named."""
    counts: dict[int, list[str]] = {}
    for (row, place), found in study.outcomes.items():
        if seeds := len(scored(found)):
            counts.setdefault(seeds, []).append(f"{row.label} on {place.title}")
    if not counts:
        return "Seeds: no score yet."
    usual = max(counts, key=lambda seeds: (len(counts[seeds]), seeds))
    others = [f"{seeds} for {', '.join(some(counts[seeds]))}" for seeds in sorted(counts) if seeds != usual]
    return f"Seeds a score: {'; '.join([str(usual), *others])}."


def score_columns(
    study: Study, places: tuple[Place, ...], ranked: dict[Place, dict[Row, Standing]], notes: Notes
) -> list[Filled]:
    averaged = bool(means(study, places))

    def filled(place: Place) -> Filled:
        marks = column_marks(study, place, notes)
        if averaged and not study.facts[place].ranked:
            marks += (notes.add("this task does not count in means over tasks"),)
        column = Column(place.task, unit_of(study, place), place.family, marks)
        return column, lambda row: score_entry(study, row, place, ranked[place], notes)

    return [filled(place) for place in places]


# --- means over tasks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """A mean over places of one suite and model, or over such means. `places` are all that it needs."""

    title: str
    members: tuple[Place | Mean, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(place for one in self.members for place in (one.places if isinstance(one, Mean) else (one,)))

    def of(self, row: Row, ranked: dict[Place, dict[Row, Standing]]) -> Estimate | None:
        """None where a score is missing."""
        if any(row not in ranked[place] for place in self.places):
            return None
        return average(
            [one.of(row, ranked) if isinstance(one, Mean) else ranked[one][row].score for one in self.members]
        )


def means(study: Study, places: tuple[Place, ...]) -> list[Mean]:
    """The means of a suite on a model: of each group, of the groups, and of all tasks; of all tasks only where no group
    has two. A title says `2 of 7` where the grid has not all tasks of the suite. Tasks that do not count in means, and
    metrics to be low, are left out."""
    counted = [place for place in places if study.facts[place].ranked and not metric_of(study.metric(place)).lower]
    if len(counted) < 2:
        return []
    whole_suite = [info for info in registry.suites()[places[0].suite].tasks.values() if info.ranked]

    def share(here: int, there: int) -> str:
        return str(here) if here >= there else f"{here} of {there}"

    groups: dict[str, list[Place]] = {}
    for place in counted:
        groups.setdefault(study.facts[place].group, []).append(place)
    of_groups = [
        Mean(f"{group or 'other'}, mean of {share(len(own), sum(i.group == group for i in whole_suite))}", tuple(own))
        for group, own in groups.items()
    ]
    over_groups = Mean(f"mean of {share(len(groups), len({i.group for i in whole_suite}))} groups", tuple(of_groups))
    title = f"mean of {share(len(counted), len(whole_suite))}"
    if 1 < len(groups) < len(counted):
        return [*of_groups, over_groups, Mean(f"{title} tasks", tuple(counted))]
    return [Mean(title, tuple(counted))]


def mean_columns(
    study: Study, places: tuple[Place, ...], ranked: dict[Place, dict[Row, Standing]], notes: Notes
) -> list[Filled]:
    def filled(one: Mean) -> Filled:
        found = {row: own for row in study.rows if (own := one.of(row, ranked))}
        units = {unit_of(study, place) for place in one.places}
        marks = dict.fromkeys(mark for place in one.places for mark in column_marks(study, place, notes))
        column = Column(one.title, units.pop() if len(units) == 1 else "×100", places[0].family, tuple(marks))
        best = leader(found)
        return column, lambda row: mean_entry(study, row, one.places, found, best, notes)

    return [filled(one) for one in means(study, places)]


def mean_entry(
    study: Study, row: Row, places: tuple[Place, ...], found: dict[Row, Estimate], best: Row | None, notes: Notes
) -> Entry:
    """A mean score, only where every task has one. best: the row that leads by it."""
    own = found.get(row)
    if own is None:
        return incomplete(study, row, places, notes, scored)
    tied = not row.control and (row == best or own.overlaps(found[best]))
    entry = Entry(score_text(own), own.mean, own.half, own.seeds, best=tied)
    return entry.marked(notes.case("†")) if own.seeds == 1 else entry


# --- parts of a test split, and generated answers ---------------------------------------------------------------------


def parts(study: Study, ranked: dict[Place, dict[Row, Standing]], title: str) -> Table | None:
    """The primary metric of each part beside the headline, for the tasks that have parts."""
    notes = score_notes(study)
    notes.general.append("The headline is the score of the other tables.")
    filled = [
        column
        for place in study.scored
        if study.facts[place].parts
        for column in part_columns(study, place, ranked[place], notes)
    ]
    return made("parts", f"Parts: {title}", study, filled, notes) if filled else None


def part_columns(study: Study, place: Place, ranked: dict[Row, Standing], notes: Notes) -> list[Filled]:
    facts, primary, unit = study.facts[place], study.metric(place), unit_of(study, place)
    counted = len(facts.parts) - len(facts.contaminated)
    over = f"mean of {counted} parts" if facts.headline == "mean" else facts.headline
    shared = column_marks(study, place, notes)
    sizes = {part: test_sizes(study, place, f"{primary}/{part}") for part in facts.parts}
    counts = [f"{part} {' or '.join(f'{n:,}' for n in found)}" for part, found in sizes.items() if found]
    if counts:
        notes.general.append(f"Test examples of {place.title}: {', '.join(counts)}.")

    def filled(part: str) -> Filled:
        marks = shared
        if part in facts.contaminated:
            text = "test questions of this part occur in the training data; it does not count in the mean"
            marks += (notes.add(text),)
        metric = f"{primary}/{part}"
        own = standings(study, place, metric)
        return Column(part, unit, place.title, marks), lambda row: score_entry(study, row, place, own, notes, metric)

    headline = Column(f"headline: {over}", unit, place.title, shared)
    first = (headline, lambda row: score_entry(study, row, place, ranked, notes))
    return [first, *(filled(part) for part in facts.parts)]


def answers(study: Study, ranked: dict[Place, dict[Row, Standing]], title: str) -> Table | None:
    """What the texts that a model generated hold, for the tasks that are answered by generation."""
    notes = score_notes(study)
    notes.general.append(
        "Strict: the answer in the form that the protocol asks for. Flexible: the answer by the protocol's second "
        "rule. Likelihood: the most likely of the given choices. Unparsed: texts without a strict answer; lower is "
        "better. Nll: mean negative log-likelihood of the reference answers; lower is better."
    )
    filled = [
        column
        for place in study.scored
        if study.facts[place].kind == "generation"
        for column in answer_columns(study, place, ranked[place], notes)
    ]
    return made("answers", f"Generated answers: {title}", study, filled, notes) if filled else None


def answer_columns(study: Study, place: Place, ranked: dict[Row, Standing], notes: Notes) -> list[Filled]:
    facts = study.facts[place]
    shared = column_marks(study, place, notes)

    def filled(metric: str) -> Filled:
        title, unit = ANSWERS[metric]
        column = Column(title, unit, place.title, shared)
        if metric == study.metric(place):
            return column, lambda row: score_entry(study, row, place, ranked, notes)
        own = standings(study, place, metric)
        return column, lambda row: score_entry(study, row, place, own, notes, metric)

    return [
        *(filled(metric) for metric in ANSWERS if metric in facts.metrics),
        (Column("test", "examples", place.title), lambda row: size_entry(study, row, place, notes)),
    ]


def size_entry(study: Study, row: Row, place: Place, notes: Notes) -> Entry:
    """The number of test examples of a score."""
    found = study.at(row, place)
    sizes = sorted({int(size) for outcome in scored(found) if (size := outcome.estimate(None, "n"))})
    if not sizes:
        return absent(study, row, found, notes)
    return Entry("–".join(dict.fromkeys((whole(sizes[0]), whole(sizes[-1])))), sizes[-1])
