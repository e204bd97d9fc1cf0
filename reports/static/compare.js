// The page that compares two methods: paired differences with intervals, and costs.

async function comparePage(data, first, second) {
  const labels = data.methods.map(({ label }) => label);
  const a = labels.indexOf(first),
    b = labels.indexOf(second);
  const unknown = [first, second].filter((label) => label !== undefined && !labels.includes(label));
  if (unknown.length) return nowhere(data, `method ${unknown.join(", ")}`);
  const go = (one, other) => (location.hash = route("compare", ...[one, other].filter(Boolean)));
  const choices = el(
    "p",
    { class: "choices" },
    choice("First", labels, first ?? null, (label) => go(label, second)),
    " ",
    choice("Second", labels, second ?? null, (label) => first && go(first, label)),
  );
  if (a < 0 || b < 0) return { heading: "Compare two methods", body: [el("p", {}, "Choose two."), choices] };
  const common = data.places
    .map((_, place) => place)
    .filter((place) => data.cellsAt(a, place).length && data.cellsAt(b, place).length);
  const records = [];
  for (const place of common) records.push(await pairedRecord(data, a, b, place));
  const address = el("a", { class: "compare-link", href: route("compare", first, second) }, "Link to this comparison");
  const shared = el(
    "p",
    {},
    address,
    " ",
    copyButton("Copy the link", () => location.href),
  );
  if (!common.length)
    return {
      heading: `${first} against ${second}`,
      body: [choices, shared, el("p", {}, "The grid has no task and model with cells of both.")],
    };
  const [differences, makeDifferences] = table(
    "compare-table",
    `${first} minus ${second}, by task and model`,
    differenceColumns(data, first, second),
    records,
    100,
  );
  const [costs, makeCosts] = costTables(data, a, b, common, first, second);
  const body = [
    choices,
    shared,
    section(
      "Scores",
      ...verdict(records, first, second),
      ...differencePlots(data, records, first, second),
      differences,
      el("p", { class: "notes" }, PAIRED),
    ),
    section("Costs", ...costs),
  ];
  return {
    heading: `${first} against ${second}`,
    body,
    ready: () => [makeDifferences, ...makeCosts].forEach((make) => make()),
  };
}

const PAIRED =
  "With two or more seeds in common: the mean of the differences by seed and its 95 % t interval. With one: of the test examples, the difference of the shares that each gets right, its 95 % interval by Bonett and Price, and p of McNemar's exact test; it holds the size of the test set and says nothing of other seeds. Intervals are of one task each: of twenty true ties, one is expected to be missed.";

// The difference of two rows at a place with its interval, and what it rests on; or why there is none.
async function pairedRecord(data, a, b, place) {
  const at = data.places[place];
  const record = { place, at, a: standingRecord(data, a, place), b: standingRecord(data, b, place) };
  if (!at.scored) return { ...record, why: "the suite measures costs only" };
  const scores = (row) =>
    new Map(
      data
        .cellsAt(row, place)
        .filter((index) => data.at("value", index) !== null)
        .map((index) => [data.at("seed", index), index]),
    );
  const ours = scores(a),
    theirs = scores(b);
  const seeds = [...ours.keys()].filter((seed) => theirs.has(seed));
  if (!ours.size || !theirs.size)
    return {
      ...record,
      why: `no score of ${data.methods[ours.size ? b : a].label}: ${blank(data, data.cellsAt(ours.size ? b : a, place)).text}`,
    };
  if (!seeds.length) return { ...record, why: "no seed in common" };
  if (seeds.length > 1) {
    const { mean, half } = pairedMean(
      seeds.map((seed) => at.scale * (data.at("value", ours.get(seed)) - data.at("value", theirs.get(seed)))),
      data.t,
    );
    return {
      ...record,
      mean,
      low: mean - half,
      high: mean + half,
      unit: at.unit,
      lower: at.lower,
      basis: `${seeds.length} seeds`,
      clear: mean - half > 0 || mean + half < 0,
    };
  }
  return { ...record, ...(await pairedExamples(data, ours.get(seeds[0]), theirs.get(seeds[0]), at)) };
}

async function pairedExamples(data, ours, theirs, at) {
  const [a, b] = [await detail("right", ours), await detail("right", theirs)];
  if (!a || !b)
    return {
      why: data.lost.right
        ? "one seed, and which examples are right is left out to keep the file small"
        : "one seed, and no stored predictions that are either right or wrong",
    };
  if (a.examples !== b.examples) return { why: "one seed, and the predictions are of different test examples" };
  const { onlyFirst, onlySecond } = disagreements(bytesOf(a.bits), bytesOf(b.bits));
  const { mean, low, high } = pairedShares(onlyFirst, onlySecond, a.n);
  const p = mcnemar(onlyFirst, onlySecond);
  const unit = at.share ? at.unit : "right answers, %";
  return {
    mean: 100 * mean,
    low: 100 * low,
    high: 100 * high,
    unit,
    p,
    lower: false,
    basis: `${whole(a.n)} examples, seed ${data.at("seed", ours)}`,
    clear: p < 0.05,
  };
}

const signed = (value, decimals = 2) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(decimals)}`;

function outcomeText({ clear, mean, lower }, first, second) {
  if (!clear) return "not distinguishable";
  return mean > 0 !== lower ? `${first} is better` : `${second} is better`;
}

function differenceColumns(data, first, second) {
  const none = (record) => why({ text: "no paired data", why: record.why });
  return [
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
    figure(
      first,
      ({ a }) => a.standing?.mean ?? null,
      ({ a }) => scoreCell(data, a),
    ),
    figure(
      second,
      ({ b }) => b.standing?.mean ?? null,
      ({ b }) => scoreCell(data, b),
    ),
    figure(
      "difference",
      ({ mean }) => mean ?? null,
      (record) => (record.why ? none(record) : signed(record.mean)),
    ),
    figure(
      "95 % interval",
      ({ low }) => low ?? null,
      (record) => (record.why ? DASH : `${signed(record.low)} to ${signed(record.high)}`),
    ),
    text("unit", ({ unit, at }) => unit ?? (at.scored ? at.unit : "")),
    figure(
      "p",
      ({ p }) => p ?? null,
      ({ p }) => (p === undefined ? DASH : p < 0.0005 ? "< 0.001" : p.toFixed(3)),
    ),
    text("verdict", (record) => record.why ?? outcomeText(record, first, second)),
    text("from", ({ basis }) => basis ?? DASH),
  ];
}

function verdict(records, first, second) {
  const paired = records.filter((record) => !record.why);
  if (!paired.length) return [el("p", {}, "No place has paired data of both; the table says why.")];
  const count = (words) => paired.filter((record) => outcomeText(record, first, second) === words).length;
  const sentence = `Of ${paired.length} ${paired.length === 1 ? "place" : "places"} with paired data: ${first} is better at ${count(`${first} is better`)}, ${second} at ${count(`${second} is better`)}, and ${count("not distinguishable")} cannot be told apart.`;
  return [el("p", { class: "verdict" }, sentence)];
}

// One plot a unit, since differences in unlike units have no common axis.
function differencePlots(data, records, first, second) {
  const paired = records.filter((record) => !record.why);
  return [...new Set(paired.map(({ unit }) => unit))].map((unit) => {
    const entries = paired
      .filter((record) => record.unit === unit)
      .map((record) => ({
        label: placeText(data, record.place),
        href: route("task", data.task(record.place).suite, data.task(record.place).task),
        mean: record.mean,
        low: record.low,
        high: record.high,
        kind: record.clear ? "best" : "",
        text: `${signed(record.mean)}, ${signed(record.low)} to ${signed(record.high)}, ${outcomeText(record, first, second)}`,
      }));
    return el(
      "figure",
      {},
      intervalPlot(`${first} minus ${second}`, unit, entries, 0),
      el("figcaption", {}, `${first} minus ${second}, ${unit}; 95 % intervals; filled: clear differences`),
    );
  });
}

function costTables(data, a, b, common, first, second) {
  const pairs = data.figureNames.flatMap((name) =>
    common
      .map((place) => ({ name, place, a: data.figure(name, a, place), b: data.figure(name, b, place) }))
      .filter((pair) => pair.a !== null && pair.b !== null),
  );
  if (!pairs.length) return [[el("p", {}, "No figure of costs is there for both.")], []];
  const ratio = ({ a, b }) => (a > 0 && b > 0 ? a / b : null);
  const summary = data.figureNames.flatMap((name) => {
    const ratios = pairs
      .filter((pair) => pair.name === name)
      .map(ratio)
      .filter((value) => value !== null);
    return ratios.length
      ? [
          [
            heading(data, name),
            `× ${significant(geometricMean(ratios))}`,
            `× ${significant(Math.min(...ratios))} to × ${significant(Math.max(...ratios))}`,
            String(ratios.length),
          ],
        ]
      : [];
  });
  const columns = [
    text("figure", ({ name }) => heading(data, name)),
    text("task", ({ place }) => placeText(data, place)),
    figure(
      first,
      (pair) => pair.a,
      (pair) => figureText(data, pair.name, pair.a),
    ),
    figure(
      second,
      (pair) => pair.b,
      (pair) => figureText(data, pair.name, pair.b),
    ),
    figure(`${first} ÷ ${second}`, ratio, (pair) => (ratio(pair) === null ? DASH : significant(ratio(pair)))),
  ];
  const [all, make] = table("costs-table", "Costs by task and model", columns, pairs, 50);
  const rest = el("details", {}, el("summary", {}, `By task and model (${whole(pairs.length)} figures)`), all);
  return [
    [
      summary.length ? small(`${first} ÷ ${second}`, ["figure", "geometric mean", "range", "places"], summary) : "",
      rest,
    ],
    [make],
  ];
}
