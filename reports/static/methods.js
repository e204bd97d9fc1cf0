// The page of a method: what it is, every result, where it stands, counts, settings.

function methodPage(data, label) {
  const row = data.methods.findIndex((method) => method.label === label);
  if (row < 0) return nowhere(data, `method ${label}`);
  const method = data.methods[row];
  const records = data.places.map((_, place) => standingRecord(data, row, place)).filter(({ cells }) => cells.length);
  const columns = [
    text(
      "task",
      ({ place }) => placeText(data, place),
      ({ place }) => placeLink(data, place),
    ),
    text(
      "model",
      ({ place }) => data.model(place).name,
      ({ place }) => modelLink(data, place),
    ),
    ...scoreColumns(data),
    ...figureColumns(data, records, RESULTS),
    cellLinks(data),
  ];
  const [results, make] = table("method-results", `${label}: every result`, columns, records, 50);
  const body = [
    aboutMethod(method),
    ...comparisons(data, method),
    section(
      "Results",
      el("p", {}, records.length ? KEY : "The grid has no cell of this method."),
      records.length ? results : "",
    ),
    section("Where it stands", ...standingOf(data, records)),
    section("Parameters", ...countsOf(data, row)),
    section("Settings and recipe", ...settingsOf(data, method, records)),
    section("Conformance", ...conformanceOf(method)),
  ];
  return { heading: label, badges: method.control ? ["control"] : [], body, ready: records.length ? make : undefined };
}

function aboutMethod(method) {
  const paper =
    method.paper &&
    (method.url ? el("a", { href: method.url, rel: "noopener noreferrer" }, method.paper) : method.paper);
  const facts = terms({
    title: method.title,
    plugin: method.method === method.label ? null : method.method,
    paper,
    family: method.family,
    "kinds of model": method.kinds?.join(", "),
    "folds into the weights": method.mergeable === undefined ? null : method.mergeable ? "yes" : "no",
    "leaves the output as it is at first": method.identity === undefined ? null : method.identity ? "yes" : "no",
    needs: method.requires?.join(", "),
    file: method.file,
    broken: method.error,
  });
  return [
    facts,
    method.doc
      ? el("pre", { class: "doc", tabindex: "0" }, method.doc)
      : el("p", {}, "This copy has no plugin of that name, so there is nothing to say of it but its results."),
  ];
}

function comparisons(data, method) {
  const others = data.methods.filter(({ label }) => label !== method.label).map(({ label }) => label);
  return others.length
    ? [
        el(
          "p",
          {},
          choice("Compare with", others, null, (other) => (location.hash = route("compare", method.label, other))),
        ),
      ]
    : [];
}

function standingOf(data, records) {
  const scored = records.filter(({ standing }) => standing);
  if (!scored.length) return [el("p", {}, "It has no score.")];
  const control = records[0].method.control;
  const best = scored.filter(({ standing }) => standing.best),
    below = scored.filter(({ standing }) => standing.below.length);
  const listed = (some, more = () => "") =>
    el(
      "ul",
      {},
      ...some.map((record) =>
        el("li", {}, placeLink(data, record.place), `, ${data.model(record.place).name}${more(record)}`),
      ),
    );
  const lines = control
    ? [el("p", {}, "Controls anchor the scale and do not compete.")]
    : [
        el(
          "p",
          {},
          `Best, or not distinguishable from the best, at ${best.length} of ${scored.length} places where it has a score.`,
        ),
        best.length ? listed(best) : "",
      ];
  if (below.length)
    lines.push(
      el("p", {}, "Below controls:"),
      listed(below, ({ standing }) => `: below ${standing.below.join(", ")}`),
    );
  return lines;
}

function countsOf(data, row) {
  const counts = data.counts.filter((count) => count.row === row);
  if (!counts.length) return [el("p", {}, "No result tells its counts.")];
  const number = (value) => (value === null ? DASH : whole(value));
  const range = (ends) => (ends === null ? DASH : [...new Set(ends)].map(whole).join(" to "));
  const share = ({ trained, backbone }) =>
    backbone && trained !== null ? `${significant((100 * trained) / backbone)} %` : DASH;
  const heads = [
    "model",
    "cells",
    "trained",
    "of the backbone",
    "mean",
    "at the end",
    "stored",
    "stored, bytes",
    "added at inference",
    "closed form: trained",
    "stored",
    "added",
  ];
  const body = counts.map((count) => {
    const numbers = [count.mean, count.final, count.stored, count.stored_bytes, count.added].map(number);
    const closed = [count.expected_trained, count.expected_stored, count.expected_added].map(range);
    const values = [whole(count.cells), number(count.trained), share(count), ...numbers, ...closed];
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, link(count.model, "model", count.model)),
      ...values.map((value) => el("td", {}, value)),
    );
  });
  const element = el(
    "table",
    { class: "plain" },
    el("caption", {}, "Parameters, head apart"),
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...body),
  );
  const wrong = [...new Set(counts.flatMap(({ mismatch }) => mismatch))];
  return [
    el("div", { class: "scroll fit", role: "region", tabindex: "0", "aria-label": "Parameters" }, element),
    el(
      "p",
      { class: "notes" },
      wrong.length ? `≠ ${wrong.join("; ")}.` : "Every count with a closed form is the one that it gives.",
    ),
  ];
}

// Distinct settings of the grid beside the defaults, and the recipe: a value that differs between cells is listed whole.
function settingsOf(data, method, records) {
  const cells = records.flatMap((record) => record.cells);
  const distinct = (name) =>
    [...new Set(cells.map((index) => JSON.stringify(data.of(name, index))))].map((one) => JSON.parse(one));
  const values = (some, key) => [
    ...new Set(some.map((one) => (one[key] === undefined ? DASH : JSON.stringify(one[key])))),
  ];
  const names = (some, more = []) => [...new Set([...more, ...some.flatMap((one) => Object.keys(one))])];
  const settings = distinct("settings"),
    recipes = distinct("recipe"),
    known = method.settings ?? {};
  const rows = names(settings, Object.keys(known)).map((name) => [
    name,
    values(settings, name).join(" | "),
    known[name]?.[0] ?? DASH,
    known[name]?.[1] ?? DASH,
  ]);
  const recipe = names(recipes).map((name) => [name, values(recipes, name).join(" | ")]);
  return [
    beside(
      rows.length
        ? small("Settings", ["setting", "in this grid", "default", "type"], rows)
        : el("p", {}, "It has no settings."),
      recipe.length ? small("Recipe", ["recipe", "in this grid"], recipe) : "",
    ),
    el(
      "p",
      { class: "notes" },
      "Where cells differ, all values are listed; each cell's page has its own. Divisions: ",
      [...new Set(cells.map((index) => data.of("division", index)))].join(", ") || DASH,
      ".",
    ),
  ];
}

function small(caption, heads, rows) {
  const element = el(
    "table",
    { class: "plain words" },
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
  );
  element.append(
    el(
      "tbody",
      {},
      ...rows.map(([first, ...rest]) =>
        el("tr", {}, el("th", { scope: "row" }, first), ...rest.map((value) => el("td", {}, value))),
      ),
    ),
  );
  return el("div", { class: "scroll fit", role: "region", tabindex: "0", "aria-label": caption }, element);
}

function conformanceOf(method) {
  if (!method.file) return [el("p", {}, "There is no plugin to check.")];
  const verdict = method.conformance;
  return [
    el("p", { class: "conformance" }, ...(verdict ? verdictOf(verdict) : ["Not run here. This runs the checks:"])),
    verdict?.failed.length ? el("ul", {}, ...verdict.failed.map((line) => el("li", {}, line))) : "",
    ...command(`python -m workflow check ${quoted(method.file)}`),
  ];
}

function verdictOf({ date, passed, skipped, failed, outdated }) {
  const counts = [
    failed.length && `failed ${checks(failed.length)}`,
    `passed ${checks(passed)}`,
    skipped && `${skipped} not applicable`,
  ];
  const said = `${counts.filter(Boolean).join(", ")} on ${date}`;
  return outdated
    ? [el("b", { class: "alert" }, "Stale"), `: ${outdated} since it ${said}. This runs the checks again:`]
    : [
        el("b", { class: failed.length ? "alert" : "good" }, failed.length ? "Does not conform" : "Conforms"),
        `: ${said} (plugin file and checks unchanged since). This runs them again:`,
      ];
}

const checks = (number) => `${number} check${number === 1 ? "" : "s"}`;
