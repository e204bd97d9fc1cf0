// The page of a cell: everything its result says, and the command that runs it again.

async function cellPage(data, key) {
  const index = data.byKey.get(key);
  if (index === undefined) return nowhere(data, `cell ${key}`);
  const [figures, curves, predictions] = await Promise.all(
    ["figures", "curves", "predictions"].map((part) => detail(part, index)),
  );
  const row = data.at("row", index),
    place = data.at("place", index),
    method = data.methods[row];
  const task = data.task(place),
    seed = data.at("seed", index),
    config = data.at("config", index);
  const siblings = data.cellsAt(row, place).filter((other) => other !== index);
  const facts = terms({
    method: methodLink(method),
    task: placeLink(data, place),
    model: modelLink(data, place),
    seed: String(seed),
    division: data.of("division", index),
    "settings and recipe from": data.of("source", index),
    status: data.status(index),
    reason: data.reason(index),
    key,
    result: `results/cells/${task.suite}/${task.task}/${data.model(place).name}/${method.method}-${config}/seed${seed}.json`,
    "other seeds": siblings.map((other) =>
      spans(link(`seed ${data.at("seed", other)}`, "cell", data.at("key", other)), " "),
    ),
  });
  const { metrics, provenance, ...costs } = figures ?? {};
  const body = [
    facts,
    section("Scores", ...scoresOf(data, place, index, metrics)),
    section("Curves", ...curvesOf(data, index, curves)),
    section("Costs", ...costsOf(data, index, costs)),
    section(
      "Settings and recipe",
      beside(...tableOf("Settings", data.of("settings", index)), ...tableOf("Recipe", data.of("recipe", index))),
    ),
    section("Predictions", ...predictionsOf(data, index, predictions)),
    section(
      "Provenance",
      ...(provenance ? tableOf("Provenance", flat(provenance)) : [absentPart(data, index, "figures")]),
    ),
    section(
      "Run it again",
      ...command(`python -m workflow cell --grid ${quoted(data.grid.file)} --key ${config}/${seed}`),
    ),
  ];
  return {
    heading: `${method.label} on ${task.suite}/${task.task}, ${data.model(place).name}, seed ${seed}`,
    badges: task.tag ? [task.tag] : [],
    body,
  };
}

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);

// Why a part of a cell's details is not there.
function absentPart(data, index, part) {
  if (data.lost[part])
    return el("p", {}, `Left out to keep the file small: ${data.lost[part]}. The result file has them.`);
  const status = data.status(index);
  return el(
    "p",
    {},
    status === "ok"
      ? "The result has none."
      : `The cell has none: ${status}${data.reason(index) && `, ${data.reason(index)}`}.`,
  );
}

function scoresOf(data, place, index, metrics) {
  if (!metrics)
    return [
      data.places[place].scored ? absentPart(data, index, "figures") : el("p", {}, "The suite measures costs only."),
    ];
  const sets = ["selected", "last", "validation"].filter((name) => metrics[name]);
  const names = [...new Set(sets.flatMap((name) => Object.keys(metrics[name])))];
  const shown = (one) =>
    one === undefined
      ? DASH
      : `${significant(one.value)}${one.stderr === undefined ? "" : ` (standard error ${significant(one.stderr)})`}${one.n === undefined ? "" : `, n = ${whole(one.n)}`}`;
  const heads = {
    selected: "test, at the checkpoint chosen on validation data",
    last: "test, at the last step",
    validation: "validation",
  };
  const rows = names.map((name) => [
    name === metrics.primary ? `${name} (primary)` : name,
    ...sets.map((set) => shown(metrics[set][name])),
  ]);
  const counts = `The tables show: ${metrics.rule === "selected" ? "the checkpoint chosen on validation data" : "the last step"}${metrics.selected_step === undefined ? "" : `; chosen was step ${whole(metrics.selected_step)}`}.`;
  return [
    small("Scores on the metrics' own scales", ["metric", ...sets.map((set) => heads[set])], rows),
    el("p", { class: "notes" }, counts),
  ];
}

function curvesOf(data, index, curves) {
  if (!curves) return [absentPart(data, index, "curves")];
  const drawn = Object.entries(curves).map(([name, curve]) => {
    const thinned = curve.of > curve.steps.length ? `, ${curve.steps.length} of ${whole(curve.of)} points` : "";
    return el("figure", {}, curvePlot(name, curve), el("figcaption", {}, `${name.replaceAll("_", " ")}${thinned}`));
  });
  return [beside(...drawn)];
}

function costsOf(data, index, costs) {
  const found = Object.entries(costs).filter(([, values]) => values && Object.keys(values).length);
  const named = data.figureNames
    .filter((name) => data.at(name, index) !== null)
    .map((name) => [
      `${data.figures[name].title}`,
      `${figureText(data, name, data.at(name, index))} ${data.figures[name].unit}`,
    ]);
  const units = {
    memory: "bytes",
    time: "seconds; rates a second",
    latency: "seconds",
    flops: "operations",
    energy: "joules",
  };
  const rest = found.map(([name, values]) =>
    el(
      "details",
      {},
      el("summary", {}, `all of ${name}${units[name] ? `, ${units[name]}` : ""}`),
      ...tableOf(name, flat(values)),
    ),
  );
  return [terms(Object.fromEntries(named)), ...(rest.length ? rest : [absentPart(data, index, "figures")])];
}

function tableOf(caption, values) {
  const rows = Object.entries(values).map(([name, value]) => [
    name,
    typeof value === "number" && Math.abs(value) >= 1e4 && Number.isInteger(value) ? whole(value) : plain(value),
  ]);
  return [rows.length ? small(caption, ["name", "value"], rows) : el("p", {}, `${caption}: none.`)];
}

// Nested values by dotted names.
function flat(values, prefix = "") {
  return Object.entries(values).reduce((found, [name, value]) => {
    const nested = value !== null && typeof value === "object" && !Array.isArray(value);
    return Object.assign(found, nested ? flat(value, `${prefix}${name}.`) : { [prefix + name]: value });
  }, {});
}

function predictionsOf(data, index, predictions) {
  if (!predictions) return [absentPart(data, index, "predictions")];
  const names = [...new Set(predictions.rows.flatMap((row) => Object.keys(row)))];
  const heads = el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name.replaceAll("_", " "))));
  const show = (value) => (value === true ? "yes" : value === false ? "no" : plain(value));
  const rows = predictions.rows.map((row) => el("tr", {}, ...names.map((name) => el("td", {}, show(row[name])))));
  const element = el(
    "table",
    { id: "predictions", class: "plain words" },
    el("caption", {}, `${predictions.rows.length} of ${whole(predictions.of)} test examples`),
    el("thead", {}, heads),
    el("tbody", {}, ...rows),
  );
  const text = "The first that are wrong and the first that are right, in the order of the file; no share of either.";
  return [
    el("div", { class: "scroll fit", role: "region", tabindex: "0", "aria-label": "Predictions" }, element),
    el("p", { class: "notes" }, text),
  ];
}
