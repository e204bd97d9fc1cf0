"""Methods over the tasks of a suite: a map of all scores, and mean ranks with their critical difference."""

from __future__ import annotations

from statistics import mean

from workflow.figures import ACCENT, INK, MUTED, Drawing, Gallery, Marks, drawn
from workflow.outcomes import Place, Row, Study
from workflow.ranks import LEAST_METHODS, LEAST_TASKS, LEVEL, Ranking, ranking
from workflow.standing import Standing
from workflow.table_columns import absent
from workflow.typeset import Notes, some

MOST_ROWS, MOST_MAPS = 40, 4
HEAT_NOTES = (
    "Colour: where a score stands between the lowest (none) and the highest (full) of its column, so that columns of "
    "unlike metrics can be looked at together; it says nothing of how far apart they are. Bold: the best method of the "
    "column and those that cannot be told apart from it. A word stands where there is no score.",
)
RANK_NOTES = (
    "Mean rank over tasks, 1 being best; controls do not compete. A bar joins methods whose mean ranks are closer than "
    "Nemenyi's critical difference at 5 %: they cannot be told apart by these tasks. Seeds are averaged before "
    "ranking. Tasks are taken as independent.",
)
DEEPEST = 0.55  # opacity of the highest score, so that ink stays readable on it


def heat_maps(study: Study, ranked: dict[Place, dict[Row, Standing]]) -> Gallery:
    """A map for each suite and model with two or more tasks."""
    families = [places for places in study.families() if not places[0].cost_only and len(places) > 1]
    drawings = tuple(drawing for places in families[:MOST_MAPS] if (drawing := heat_map(study, places, ranked)))
    why = "No suite of this grid has two or more tasks with scores on one model."
    notes = HEAT_NOTES
    if left := [places[0].family for places in families[MOST_MAPS:]]:
        notes += (f"Not drawn here, but in the table of accuracy: {', '.join(some(left))}.",)
    return Gallery("tasks", "Scores by task", drawings, notes, why)


def heat_map(study: Study, places: tuple[Place, ...], ranked: dict[Place, dict[Row, Standing]]) -> Drawing | None:
    shares = {place: positions(ranked[place]) for place in places}
    rows = [row for row in study.rows if any(row in shares[place] for place in places)]
    if not rows:
        return None
    rows, left = most_telling(rows, shares)
    said = [
        f"{row.label}: "
        + ", ".join(f"{place.task} {ranked[place][row].score.mean:.1f}" for place in places if row in shares[place])
        for row in rows
    ]
    alt = f"Scores by task, {places[0].family}. {'; '.join(said)}."
    caption = f"{places[0].family}: scores by task" + (f"; {left} methods of low rank are not drawn" if left else "")
    width, height = min(11.0, 2.0 + 0.75 * len(places)), 0.9 + 0.25 * len(rows)

    def paint(figure, marks: Marks) -> None:
        figure.subplots_adjust(left=1.6 / width, right=1 - 0.08 / width, top=1 - 0.55 / height, bottom=0.05 / height)
        axes = figure.add_subplot()
        for y, row in enumerate(rows):
            for x, place in enumerate(places):
                paint_entry(axes, (x, y), study, row, place, ranked[place].get(row), shares[place].get(row), marks)
        axes.set_xlim(-0.5, len(places) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.xaxis.tick_top()
        turned = {"rotation": 35, "ha": "left"} if len(places) > 6 else {}
        axes.set_xticks(range(len(places)), [place.task for place in places], **turned)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return drawn(paint, f"{places[0].family}-tasks", caption, alt, size=(width, height), place=places[0].family)


def positions(standings: dict[Row, Standing]) -> dict[Row, float]:
    """Where each score stands between the lowest (0) and the highest (1) of its place."""
    scores = {row: -one.score.mean if one.score.metric.lower else one.score.mean for row, one in standings.items()}
    low, high = min(scores.values(), default=0), max(scores.values(), default=0)
    return {row: (score - low) / (high - low) if high > low else 0.5 for row, score in scores.items()}


def most_telling(rows: list[Row], shares: dict[Place, dict[Row, float]]) -> tuple[list[Row], int]:
    """Controls, then methods from the highest mean position; how many of the lowest are left out."""

    def height(row: Row) -> float:
        return mean(share[row] for share in shares.values() if row in share)

    controls = [row for row in rows if row.control]
    methods = sorted((row for row in rows if not row.control), key=lambda row: -height(row))
    kept = methods[: MOST_ROWS - len(controls)]
    return controls + kept, len(methods) - len(kept)


def paint_entry(
    axes, at: tuple[int, int], study: Study, row: Row, place: Place, standing: Standing | None, share, marks: Marks
) -> None:
    from matplotlib.patches import Rectangle

    x, y = at
    if standing is None:
        entry = absent(study, row, study.at(row, place), Notes())
        axes.text(x, y, entry.text, ha="center", va="center", color=MUTED, fontsize=7.5, style="italic")
        return
    box = Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=ACCENT, alpha=DEEPEST * share, linewidth=0)
    axes.add_artist(box)
    score = standing.score
    tip = f"{row.label} on {place.task}: {score.mean:.1f}" + (f" ± {score.half:.1f}" if score.half else "")
    marks.add(box, "box", tip + (", best or tied with it" if standing.best else ""), method=row.label)
    weight = "bold" if standing.best else "normal"
    axes.text(x, y, f"{score.mean:.{score.metric.decimals}f}", ha="center", va="center", fontsize=8, weight=weight)


# --- ranks ------------------------------------------------------------------------------------------------------------


def rank_plots(study: Study, ranked: dict[Place, dict[Row, Standing]]) -> Gallery:
    """A plot for each model with enough tasks that the same methods have scores on; else why there is none."""
    drawings, reasons = [], []
    for model in dict.fromkeys(place.model for place in study.scored):
        places = [place for place in study.scored if place.model == model and study.facts[place].ranked]
        places = [place for place in places if any(not row.control for row in ranked[place])]
        everywhere = [row for row in study.rows if not row.control and all(row in ranked[place] for place in places)]
        if len(places) < LEAST_TASKS or len(everywhere) < LEAST_METHODS:
            methods = len(everywhere) if places else 0
            scored = f"{len(places)} task{'' if len(places) == 1 else 's'} with scores"
            shared = f"{methods} method{'' if methods == 1 else 's'} with a score on all of them"
            reasons.append(f"{model}: {scored}, {shared}")
            continue
        found = ranking({row.label: [directed(ranked[place][row]) for place in places] for row in everywhere})
        without = [row.label for row in study.rows if not row.control and row not in everywhere]
        drawings.append(rank_plot(model, found, without))
    least = f"A rank plot needs {LEAST_TASKS} tasks and {LEAST_METHODS} methods with a score on each of them"
    why = f"{least}. {'; '.join(reasons)}." if reasons else f"{least}."
    return Gallery("ranks", "Ranks over tasks", tuple(drawings), RANK_NOTES, why)


def directed(standing: Standing) -> float:
    return -standing.score.mean if standing.score.metric.lower else standing.score.mean


def rank_plot(model: str, found: Ranking, without: list[str]) -> Drawing:
    names = sorted(found.means, key=lambda name: (found.means[name], name))
    verdict = (
        f"Friedman p = {found.p:.2g}"
        if found.p < LEVEL
        else f"Friedman p = {found.p:.2g}: these tasks do not tell the methods apart at all"
    )
    caption = f"{model}: mean ranks over {found.tasks} tasks. {verdict}; critical difference {found.difference:.2f}"
    caption += f". Without a score on every task, so not ranked: {', '.join(without)}" if without else ""
    alt = f"{caption}. {'; '.join(f'{name} {found.means[name]:.2f}' for name in names)}."
    joined = found.cliques() if found.p < LEVEL else [tuple(names)]
    height = 0.9 + 0.24 * len(names)

    def paint(figure, marks: Marks) -> None:
        figure.subplots_adjust(left=0.22, right=0.97, top=1 - 0.12 / height, bottom=0.5 / height)
        axes = figure.add_subplot()
        for y, name in enumerate(names):
            (dot,) = axes.plot(found.means[name], y, marker="o", color=ACCENT, markersize=5)
            marks.add(dot, "mark", f"{name}: mean rank {found.means[name]:.2f}", method=name)
        for index, clique in enumerate(joined):
            at = len(found.means) * (1.02 + 0.015 * index) + 0.1
            first, last = names.index(clique[0]), names.index(clique[-1])
            (bar,) = axes.plot([at, at], [first - 0.25, last + 0.25], color=INK, linewidth=2.2, solid_capstyle="round")
            marks.add(bar, "bar", f"not told apart: {', '.join(clique)}")
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("mean rank (1 is best); bars on the right join methods that are not told apart")
        axes.grid(axis="x", color=MUTED, alpha=0.25, linewidth=0.5)
        axes.tick_params(axis="y", length=0)

    return drawn(paint, f"{model}-ranks", caption, alt, size=(7.6, height), place=model)
