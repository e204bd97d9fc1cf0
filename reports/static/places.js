// The pages of a task, of a model, and of all cells.

function taskPage(data, suite, name) {
  const number = data.tasks.findIndex((task) => task.suite === suite && task.task === name);
  if (number < 0) return nowhere(data, `task ${suite}/${name}`);
  const task = data.tasks[number];
  const places = data.places.map((_, place) => place).filter((place) => data.places[place].task === number);
  const records = places
    .flatMap((place) => data.methods.map((_, row) => standingRecord(data, row, place)))
    .filter(({ cells }) => cells.length);
  const columns = [
    text(
      "method",
      ({ method }) => method.label,
      ({ method }) => methodLink(method),
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
  const [results, make] = table("task-results", `${suite}/${name}: all methods`, columns, records, 100);
  const plots = places.map((place) => scoresPlot(data, place)).filter(Boolean);
  const body = [
    el("p", { class: "lead" }, task.facts.title),
    plots.length ? section("Scores", ...plots) : "",
    section("All methods", el("p", {}, KEY), results),
    section("Controls", ...controlsOf(data, places)),
    section("Protocol", ...protocolOf(data, task, places)),
  ];
  return { heading: `${suite}/${name}`, badges: task.tag ? [task.tag] : [], body, ready: make };
}

const MOST_LINES = 40;

function scoresPlot(data, place) {
  const at = data.places[place];
  const found = data.methods.map((_, row) => standingRecord(data, row, place)).filter(({ standing }) => standing);
  if (!found.length) return null;
  const order = (a, b) => (at.lower ? 1 : -1) * (a.standing.mean - b.standing.mean);
  const controls = found.filter(({ method }) => method.control),
    methods = found.filter(({ method }) => !method.control).sort(order);
  const entries = [...controls, ...methods.slice(0, MOST_LINES)].map(({ method, standing }) => ({
    label: method.label,
    href: route("method", method.label),
    mean: standing.mean,
    low: standing.half === null ? null : standing.mean - standing.half,
    high: standing.half === null ? null : standing.mean + standing.half,
    kind: method.control ? "control" : standing.best ? "best" : "",
    text: `${scoreText(at, standing.mean, standing.half)}${standing.best ? ", best or tied" : ""}`,
  }));
  const left = methods.length - MOST_LINES;
  const caption = `${placeText(data, place)}: 95 % intervals; filled: the best and all not distinguishable from it; controls above${left > 0 ? `; ${left} lower methods are only in the table` : ""}`;
  return el("figure", {}, intervalPlot(placeText(data, place), at.unit, entries), el("figcaption", {}, caption));
}

function controlsOf(data, places) {
  const rows = data.methods.flatMap((method, row) =>
    method.control ? places.map((place) => standingRecord(data, row, place)) : [],
  );
  const found = rows.filter(({ cells }) => cells.length);
  const missing = data.controls.all.filter((name) => !found.some(({ method }) => method.method === name));
  const lines = found.map((record) =>
    el("li", {}, methodLink(record.method), `, ${data.model(record.place).name}: `, scoreCell(data, record)),
  );
  return [
    lines.length ? el("ul", {}, ...lines) : "",
    missing.length ? el("p", {}, `The grid has no cell of ${missing.join(", ")} here.`) : "",
  ];
}

function protocolOf(data, { facts, protocols, suite_title }, places) {
  const [at] = places.map((place) => data.places[place]);
  const labels = facts.labels.length > 12 ? `${facts.labels.length} classes` : facts.labels.join(", ");
  const about = terms({
    suite: suite_title,
    kind: facts.modality === "text" ? facts.kind : `${facts.kind} (${facts.modality})`,
    group: facts.group,
    inputs: facts.fields.join(", "),
    labels,
    "primary metric": facts.primary,
    "other metrics": facts.metrics.filter((metric) => metric !== facts.primary).join(", "),
    "by chance": facts.chance === null ? null : String(facts.chance),
    checkpoint: at.checkpoint,
    "chosen by": facts.select,
    "test examples": at.test.map(whole).join(" or "),
    "cut test set": at.cut,
    parts: facts.parts.join(", "),
    "headline over parts": facts.parts.length ? facts.headline : null,
    "parts seen in training data": facts.contaminated.join(", "),
    "counts in means": facts.ranked ? null : "no",
  });
  return [
    about,
    ...protocols.flatMap(({ resolved, text }) => [
      small(
        `Protocol ${resolved.name ?? ""}`,
        ["option", "value"],
        Object.entries(resolved).map(([name, value]) => [name, plain(value)]),
      ),
      text ? el("pre", { class: "doc", tabindex: "0" }, text) : "",
    ]),
  ];
}

// --- a model --------------------------------------------------------------------------------------------------------

function modelPage(data, name) {
  const number = data.models.findIndex((model) => model.name === name);
  if (number < 0) return nowhere(data, `model ${name}`);
  const model = data.models[number];
  const places = data.places.map((_, place) => place).filter((place) => data.places[place].model === number);
  const records = places
    .flatMap((place) => data.methods.map((_, row) => standingRecord(data, row, place)))
    .filter(({ cells }) => cells.length);
  const columns = [
    text(
      "method",
      ({ method }) => method.label,
      ({ method }) => methodLink(method),
    ),
    text(
      "task",
      ({ place }) => placeText(data, place),
      ({ place }) => placeLink(data, place),
    ),
    ...scoreColumns(data),
    ...figureColumns(data, records, RESULTS),
    cellLinks(data),
  ];
  const [results, make] = table("model-results", `${name}: every result`, columns, records, 100);
  const { name: _, title, parameters, ...rest } = model;
  const facts = terms({ title, parameters: parameters ? whole(parameters) : null, ...rest });
  const known =
    Object.keys(model).length > 1
      ? facts
      : el("p", {}, "This copy has no entry of that name, so there is nothing to say of it but its results.");
  return { heading: name, body: [known, section("All methods", el("p", {}, KEY), results)], ready: make };
}

// --- all cells ------------------------------------------------------------------------------------------------------

function cellsPage(data, status) {
  const everything = Array.from({ length: data.count }, (_, index) => ({
    index,
    place: data.at("place", index),
    method: data.methods[data.at("row", index)],
    status: data.status(index),
  }));
  const records = everything.filter((record) => !status || record.status === status);
  const scaled = ({ index, place }, name) =>
    data.at(name, index) === null ? null : data.at(name, index) * data.places[place].scale;
  const scaledText = (record, name, write) => (scaled(record, name) === null ? DASH : write(scaled(record, name)));
  const taskOf = ({ place }) => `${data.task(place).suite}/${data.task(place).task}`;
  const columns = [
    text(
      "cell",
      ({ index }) => data.at("key", index),
      ({ index }) => link(data.at("key", index).slice(0, 8), "cell", data.at("key", index)),
    ),
    text(
      "method",
      ({ method }) => method.label,
      ({ method }) => methodLink(method),
    ),
    text("task", taskOf, ({ place }) => placeLink(data, place)),
    text(
      "model",
      ({ place }) => data.model(place).name,
      ({ place }) => modelLink(data, place),
    ),
    text("division", ({ index }) => data.of("division", index)),
    figure(
      "seed",
      ({ index }) => data.at("seed", index),
      ({ index }) => data.at("seed", index),
    ),
    text(
      "status",
      (record) => record.status,
      (record) => el("span", { class: record.status === "ok" ? null : "word" }, record.status),
    ),
    ...(records.some(({ index }) => data.reason(index))
      ? [
          text(
            "reason",
            ({ index }) => data.reason(index),
            ({ index }) => el("span", { class: "reason" }, data.reason(index)),
          ),
        ]
      : []),
    figure(
      "score",
      (record) => scaled(record, "value"),
      (record) => scaledText(record, "value", (score) => score.toFixed(data.places[record.place].decimals)),
    ),
    figure(
      "standard error",
      (record) => scaled(record, "stderr"),
      (record) => scaledText(record, "stderr", significant),
    ),
    text("unit", ({ place }) => (data.places[place].scored ? data.places[place].unit : "")),
    ...["trained", "memory", "step", "train"]
      .filter((name) => data.figureNames.includes(name))
      .map((name) =>
        figure(
          heading(data, name),
          ({ index }) => data.at(name, index),
          ({ index }) => figureText(data, name, data.at(name, index)),
        ),
      ),
  ];
  const [element, make] = table("cells-table", status ? `Cells with status ${status}` : "All cells", columns, records);
  const statuses = [null, ...new Set(everything.map((record) => record.status))];
  const choices = statuses.flatMap((one) => [
    one === (status ?? null) ? el("b", {}, one ?? "all") : link(one ?? "all", "cells", ...(one ? [one] : [])),
    " ",
  ]);
  const body = [
    el("p", {}, `${whole(records.length)} of ${whole(data.count)} cells.`),
    el("p", { class: "choices" }, ...choices),
    element,
  ];
  return { heading: status ? `Cells: ${status}` : "All cells", body, ready: make };
}
