"""What a reader should know before trusting the figures of a grid: cells that failed and scores that look wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from workflow.outcomes import Place, Row, Study, count_mismatches
from workflow.outdated import outdated
from workflow.standing import Standing, score
from workflow.table_scores import cut_test
from workflow.typeset import MOST_LISTED, some


@dataclass(frozen=True)
class Finding:
    """One thing to look at. `severity` is 'serious', 'warning' or 'note'."""

    kind: str
    severity: str
    where: str
    text: str


MEANING = {
    "broken plugins": "A plugin that cannot be imported has no cells.",
    "unreadable results": "A result file that is cut short or does not fit the schema.",
    "failed cells": "The cell ended without a score; the word says how.",
    "diverged cells": "The loss was no longer a finite number: look at the learning rate before blaming the method.",
    "unlike data": "Scores of one column that were taken on different data cannot be compared.",
    "out of date": "An older version has a result, which is not shown; the cell as it is now has not run.",
    "missing cells": "The grid names the cell, but it has not run.",
    "unsupported cells": "The method says that it cannot work here.",
    "below control": "A method that a control beats is more likely broken, or badly set, than bad.",
    "unparsed answers": "Texts without an answer count as wrong: the score says as much of the form as of the answer.",
    "cut test sets": "Scores on a part of the test split are not those on all of it.",
    "parameter counts": "Counts that are not what the paper's closed form gives.",
    "one seed": "The interval is that of sampling; another seed could move the score by more.",
}
MOST_SHOWN = 500  # findings of one kind
FAILED = {"missing": ("missing cells", "note"), "unsupported": ("unsupported cells", "note")}
FAILED |= {"corrupt": ("unreadable results", "serious"), "diverged": ("diverged cells", "serious")}


def findings(study: Study, ranked: dict[Place, dict[Row, Standing]]) -> list[Finding]:
    """Every finding, in the order of MEANING, then of the tables."""
    found = [
        *broken_plugins(study),
        *failed_cells(study),
        *unlike_data(study),
        *old_results(study),
        *below_control(ranked),
        *unparsed_answers(study),
        *cut_test_sets(study),
        *mismatches(study),
        *one_seed(ranked),
    ]
    return bounded(sorted(dict.fromkeys(found), key=place_in_order))


def bounded(found: list[Finding]) -> list[Finding]:
    """What many places share is said once, and of each kind at most MOST_SHOWN are shown: grids may be large."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for finding in found:
        places.setdefault((finding.kind, finding.severity, finding.text), []).append(finding.where)
    shared = {same: where for same, where in places.items() if len(where) > MOST_LISTED + 1}
    gathered: dict[Finding, None] = {}
    for finding in found:
        if where := shared.get((finding.kind, finding.severity, finding.text)):
            finding = replace(finding, where=f"{len(where):,} of them: {'; '.join(some(where))}")
        gathered[finding] = None
    shown, counts = [], Counter()
    for finding in gathered:
        counts[finding.kind] += 1
        if counts[finding.kind] <= MOST_SHOWN:
            shown.append(finding)
    rest = {kind: count - MOST_SHOWN for kind, count in counts.items() if count > MOST_SHOWN}
    shown += [Finding(kind, "note", f"{count:,} more", "`cells.csv` has every cell") for kind, count in rest.items()]
    return sorted(shown, key=place_in_order)


def place_in_order(finding: Finding) -> int:
    return list(MEANING).index(finding.kind)


def broken_plugins(study: Study) -> Iterator[Finding]:
    for row in study.rows:
        if row.error:
            yield Finding("broken plugins", "serious", row.label, row.error)


def failed_cells(study: Study) -> Iterator[Finding]:
    for (row, place), outcomes in study.outcomes.items():
        for outcome in outcomes:
            if not outcome.ok:
                kind, severity = FAILED.get(outcome.status, ("failed cells", "serious"))
                where = f"{row.label} on {place.title}, seed {outcome.cell.seed}"
                yield Finding(kind, severity, where, f"{outcome.status}: {outcome.reason or 'no reason recorded'}")


def unlike_data(study: Study) -> Iterator[Finding]:
    """Places whose cells read data of different fingerprints."""
    for place in study.places:
        cells: dict[str, list[str]] = {}
        for outcome in study.of_place(place):
            if outcome.ok and (fingerprint := outcome.value("provenance", "data", "fingerprint")):
                cells.setdefault(str(fingerprint), []).append(f"{outcome.cell.label}, seed {outcome.cell.seed}")
        if len(cells) > 1:
            told = [f"{fingerprint[:12]} of {', '.join(some(same, 4))}" for fingerprint, same in cells.items()]
            yield Finding("unlike data", "serious", place.title, "; ".join(told))


def old_results(study: Study) -> Iterator[Finding]:
    for row, place, outcome, changed in outdated(study):
        where = f"{row.label} on {place.title}, seed {outcome.cell.seed}"
        yield Finding("out of date", "warning", where, f"changed since the last result: {', '.join(changed)}")


def below_control(ranked: dict[Place, dict[Row, Standing]]) -> Iterator[Finding]:
    for place, standings in ranked.items():
        for row, standing in standings.items():
            if standing.below:
                text = f"{standing.score.mean:.1f}, below {', '.join(standing.below)}"
                yield Finding("below control", "warning", f"{row.label} on {place.title}", text)


def unparsed_answers(study: Study) -> Iterator[Finding]:
    """Methods, controls apart, of whose texts more than a tenth have no answer."""
    for (row, place), outcomes in study.outcomes.items():
        found = None if row.control else score(outcomes, "unparsed")
        if found and found.mean > 10:
            text = f"{found.mean:.0f} % of the texts have no strict answer"
            yield Finding("unparsed answers", "warning", f"{row.label} on {place.title}", text)


def cut_test_sets(study: Study) -> Iterator[Finding]:
    for place in study.places:
        if text := cut_test(study, place):
            yield Finding("cut test sets", "note", place.title, text)


def mismatches(study: Study) -> Iterator[Finding]:
    for (row, place), outcomes in study.outcomes.items():
        for sentence in dict.fromkeys(sentence for own in count_mismatches(outcomes) for sentence in own):
            yield Finding("parameter counts", "serious", f"{row.label} on {place.title}", sentence)


def one_seed(ranked: dict[Place, dict[Row, Standing]]) -> Iterator[Finding]:
    for place, standings in ranked.items():
        single = [row.label for row, standing in standings.items() if standing.score.seeds == 1]
        if single:
            text = "every score" if len(single) == len(standings) else ", ".join(some(single))
            yield Finding("one seed", "note", place.title, text)
