// The pages of the report: views of the embedded data, chosen by the part of the address behind `#/`. Data becomes text
// nodes and attributes, never markup.

const HOME = document.title;
const open = []; // tables of the page that is shown
let indexScroll = 0;
let turn = 0; // grows with every navigation: a page that is late is dropped

const PAGES = { method: methodPage, task: taskPage, model: modelPage, cell: cellPage, cells: cellsPage, compare: comparePage };

addEventListener("hashchange", show);
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", show);
else show();

async function show() {
  const index = document.getElementById("index"), page = document.getElementById("page");
  const mine = ++turn;
  if (!location.hash.startsWith("#/")) {
    leave(index, page);
    return;
  }
  if (!index.hidden) indexScroll = scrollY;
  const [kind, ...rest] = location.hash.slice(2).split("/").map(decoded);
  let content, heading;
  try {
    content = await (PAGES[kind] ?? nowhere)(await report(), ...rest);
    heading = content.heading;
  } catch (problem) {
    content = failed(problem);
    heading = content.heading;
  }
  if (mine !== turn) return;
  close();
  const title = el("h1", { tabindex: "-1" }, heading, ...(content.badges ?? []).map((text) => el("span", { class: "badge" }, text)));
  page.replaceChildren(trail(), title, ...content.body.flat());
  page.dataset.page = PAGES[kind] ? kind : "";
  index.hidden = true;
  page.hidden = false;
  document.title = `${heading} – ${HOME}`;
  content.ready?.();
  scrollTo(0, 0);
  title.focus({ preventScroll: true });
}

function leave(index, page) {
  const back = index.hidden;
  close();
  page.replaceChildren();
  page.hidden = true;
  page.dataset.page = "";
  index.hidden = false;
  document.title = HOME;
  if (!back) return;
  const target = location.hash && document.getElementById(decoded(location.hash.slice(1)));
  if (target) target.scrollIntoView();
  else scrollTo(0, indexScroll);
}

function close() {
  for (const table of open.splice(0)) table.destroy();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function failed(problem) {
  const old = typeof DecompressionStream === "undefined";
  const why = old ? "This browser cannot read the embedded data: it has no DecompressionStream. The tables of the report are complete without it." : `The page could not be made: ${problem.message}`;
  return { heading: "No page", body: [el("p", {}, why)] };
}

function nowhere(data, what = "") {
  return { heading: "Not in this report", body: [el("p", {}, `There is no such page${what && `: ${what}`}. It may belong to another grid.`)] };
}

// --- elements -------------------------------------------------------------------------------------------------------

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const route = (...parts) => `#/${parts.map(encodeURIComponent).join("/")}`;
const link = (text, ...parts) => el("a", { href: route(...parts) }, text);
const methodLink = ({ label }) => link(label, "method", label);
const placeLink = (data, place) => {
  const task = data.task(place);
  return link(`${task.suite}/${task.task}`, "task", task.suite, task.task);
};
const modelLink = (data, place) => link(data.model(place).name, "model", data.model(place).name);
const placeText = (data, place) => `${data.task(place).suite}/${data.task(place).task}, ${data.model(place).name}`;

function trail() {
  return el("nav", { class: "trail", "aria-label": "Back" }, el("a", { href: "#" }, "← Report"));
}

function section(title, ...content) {
  return el("section", {}, el("h2", {}, title), ...content.flat());
}

// Side by side where there is room.
const beside = (...content) => el("div", { class: "beside" }, ...content);

// Pairs of name and value; a value is text, an element or a list of them. Absent ones are left out.
function terms(pairs, name = "record") {
  const list = el("dl", { class: name });
  for (const [term, value] of Object.entries(pairs)) {
    if (value === null || value === undefined || value === "" || (Array.isArray(value) && !value.length)) continue;
    list.append(el("dt", {}, term), el("dd", {}, ...(Array.isArray(value) ? value : [value])));
  }
  return list;
}

function choice(label, options, chosen, change) {
  const select = el("select", {}, ...(chosen === null ? [el("option", { value: "" }, "choose")] : []));
  for (const option of options) select.append(el("option", { value: option }, option));
  select.value = chosen ?? "";
  select.addEventListener("change", () => select.value && change(select.value));
  return el("label", { class: "choice" }, `${label} `, select);
}

function command(text) {
  return [el("pre", { class: "command", tabindex: "0" }, text), copyButton("Copy the command", () => text)];
}

function copyButton(label, text) {
  const button = el("button", { type: "button", class: "copy" }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      prompt("Copy this:", text()); // a browser that keeps the clipboard from pages on disk
    }
    setTimeout(() => (button.textContent = label), 2000);
  });
  return button;
}

// --- figures as text ------------------------------------------------------------------------------------------------

const DASH = "—";

// Three significant digits without an exponent; thousands separated.
function significant(value) {
  if (value === 0) return "0";
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  return value.toLocaleString("en", { minimumFractionDigits: Math.min(digits, 100), maximumFractionDigits: Math.min(digits, 100) });
}

const whole = (value) => Math.round(value).toLocaleString("en");
const figureText = (data, name, value) => (value === null ? DASH : data.figures[name].unit === "parameters" ? whole(value) : significant(value));
const heading = (data, name) => `${data.figures[name].title}, ${data.figures[name].unit}`;

function scoreText(place, mean, half) {
  return mean.toFixed(place.decimals) + (half === null ? "" : ` ±${half.toFixed(place.decimals)}`);
}

function plain(value) {
  if (value === null || value === undefined) return DASH;
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

// Why there is no score: the first word that applies, with its reason.
const WORDS = ["error", "corrupt", "oom", "diverged", "timeout", "unsupported", "missing"];
function blank(data, cells) {
  if (!cells.length) return { text: "n/a", why: "the grid has no such cell" };
  const lost = cells.filter((index) => data.status(index) !== "ok");
  if (!lost.length) return { text: DASH, why: "the cell has no score" };
  const [first] = lost.sort((a, b) => WORDS.indexOf(data.status(a)) - WORDS.indexOf(data.status(b)));
  return { text: data.status(first), why: data.reason(first) };
}

// --- tables ---------------------------------------------------------------------------------------------------------

// A column of a table of pages: title, and of a record what is shown (text or element) and by what it is sorted. Figures
// are right-aligned, and what has no figure is last in either order.
const text = (title, value, shown = value) => ({ title, value, shown });
const figure = (title, value, shown) => ({ title, value, shown, figure: true });

let ordersKnown = false;
function knowOrders(DataTable) {
  if (ordersKnown) return;
  ordersKnown = true;
  const last = (direction) => (a, b) => (a === null) - (b === null) || direction * (a - b) || 0;
  DataTable.ext.type.order["page-figure-asc"] = last(1);
  DataTable.ext.type.order["page-figure-desc"] = last(-1);
}

// A table that is made when its page is shown; returns [element, make]. Rows are made as they come into view.
function table(id, caption, columns, records, paged = 25) {
  const element = el("table", { id, class: "atlas display" }, el("caption", {}, caption));
  const make = () => {
    const { DataTable } = globalThis;
    knowOrders(DataTable);
    const settings = {
      data: records,
      deferRender: true,
      autoWidth: false,
      order: [],
      paging: records.length > paged,
      pageLength: paged,
      lengthMenu: [10, 25, 100, 500],
      layout: {
        topStart: records.length > 8 ? "search" : null,
        topEnd: null,
        bottomStart: records.length > 8 ? "info" : null,
        bottomEnd: records.length > paged ? "paging" : null,
      },
      language: { search: "Filter", searchPlaceholder: "any word of a row", emptyTable: "nothing here" },
      columns: columns.map((column) => ({
        title: escaped(column.title),
        type: column.figure ? "page-figure" : "string",
        className: column.figure ? "figure" : "words",
        data: null,
        render: (_, type, record) => (type === "display" ? node(column.shown(record)) : type === "filter" ? filterText(column, record) : column.value(record)),
      })),
    };
    open.push(new DataTable(element, settings));
    // the part that scrolls sideways is now inside, beside the controls
    const outer = element.closest(".scroll"), inner = element.closest(".dt-layout-table");
    for (const name of ["role", "tabindex", "aria-label"]) {
      inner.setAttribute(name, outer.getAttribute(name));
      outer.removeAttribute(name);
    }
  };
  return [el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, element), make];
}

const escaped = (title) => el("span", {}, title).innerHTML;
const node = (shown) => (shown instanceof Node ? shown : el("span", {}, plain(shown)));
const filterText = (column, record) => {
  const shown = column.shown(record);
  return shown instanceof Node ? shown.textContent : plain(shown);
};

const spans = (...parts) => el("span", {}, ...parts);
const why = ({ text, why }) => el("span", { class: "word", title: why }, text);

// A row of the tables at a place, as the pages of methods, tasks and models list them.
function standingRecord(data, row, place) {
  const cells = data.cellsAt(row, place);
  return { row, place, cells, standing: data.standing(row, place), method: data.methods[row], at: data.places[place] };
}

function scoreColumns(data) {
  return [
    figure("score", ({ standing }) => standing?.mean ?? null, (record) => scoreCell(data, record)),
    text("unit", ({ at }) => (at.scored ? at.unit : "")),
    figure("seeds", ({ standing }) => standing?.seeds ?? null, ({ standing, cells }) => (standing ? (standing.seeds === cells.length ? standing.seeds : `${standing.seeds} of ${cells.length}`) : why(blank(data, cells)))),
  ];
}

function scoreCell(data, { standing, at, cells }) {
  if (!at.scored) return el("span", { class: "word", title: "the suite measures costs only" }, "not scored");
  if (!standing) return why(blank(data, cells));
  const score = scoreText(at, standing.mean, standing.half);
  const marks = [];
  if (standing.seeds === 1) marks.push(el("sup", { title: "one seed: ± 1.96 standard errors of sampling" }, "†"));
  if (standing.below.length) marks.push(el("sup", { class: "alert", title: `below ${standing.below.join(", ")}` }, "↓"));
  return spans(standing.best ? el("strong", { title: "the best, or not distinguishable from it" }, score) : score, ...marks);
}

function figureColumns(data, records, names) {
  const shown = names.filter((name) => data.figureNames.includes(name) && records.some(({ row, place }) => data.figure(name, row, place) !== null));
  return shown.map((name) =>
    figure(
      heading(data, name),
      ({ row, place }) => data.figure(name, row, place),
      ({ row, place, cells }) => (data.figure(name, row, place) === null ? noFigure(data, cells) : figureText(data, name, data.figure(name, row, place))),
    ),
  );
}

function noFigure(data, cells) {
  const found = blank(data, cells);
  return why(found.text === DASH ? { text: DASH, why: "the device or the method does not give this figure" } : found);
}

const cellLinks = (data) =>
  text("cells", ({ cells }) => cells.length, ({ cells }) => spans(...cells.flatMap((index, k) => [k ? " " : "", link(`seed ${data.at("seed", index)}`, "cell", data.at("key", index))])));

const RESULTS = ["trained", "stored", "memory", "step", "attached", "merged", "token", "token_merged", "energy"];
const KEY = "Bold: the best and all that cannot be told apart from it. †: one seed. ↓: below a control that should be easy to beat. Hover over a word or a mark for its reason.";

// --- a method -------------------------------------------------------------------------------------------------------

function methodPage(data, label) {
  const row = data.methods.findIndex((method) => method.label === label);
  if (row < 0) return nowhere(data, `method ${label}`);
  const method = data.methods[row];
  const records = data.places.map((_, place) => standingRecord(data, row, place)).filter(({ cells }) => cells.length);
  const columns = [
    text("task", ({ place }) => placeText(data, place), ({ place }) => placeLink(data, place)),
    text("model", ({ place }) => data.model(place).name, ({ place }) => modelLink(data, place)),
    ...scoreColumns(data),
    ...figureColumns(data, records, RESULTS),
    cellLinks(data),
  ];
  const [results, make] = table("method-results", `${label}: every result`, columns, records, 50);
  const body = [
    aboutMethod(method),
    ...comparisons(data, method),
    section("Results", el("p", {}, records.length ? KEY : "The grid has no cell of this method."), records.length ? results : ""),
    section("Where it stands", ...standingOf(data, records)),
    section("Parameters", ...countsOf(data, row)),
    section("Settings and recipe", ...settingsOf(data, method, records)),
    section("Conformance", ...conformanceOf(method)),
  ];
  return { heading: label, badges: method.control ? ["control"] : [], body, ready: records.length ? make : undefined };
}

function aboutMethod(method) {
  const paper = method.paper && (method.url ? el("a", { href: method.url, rel: "noopener noreferrer" }, method.paper) : method.paper);
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
  return [facts, method.doc ? el("pre", { class: "doc", tabindex: "0" }, method.doc) : el("p", {}, "This copy has no plugin of that name, so there is nothing to say of it but its results.")];
}

function comparisons(data, method) {
  const others = data.methods.filter(({ label }) => label !== method.label).map(({ label }) => label);
  return others.length ? [el("p", {}, choice("Compare with", others, null, (other) => (location.hash = route("compare", method.label, other))))] : [];
}

function standingOf(data, records) {
  const scored = records.filter(({ standing }) => standing);
  if (!scored.length) return [el("p", {}, "It has no score.")];
  const control = records[0].method.control;
  const best = scored.filter(({ standing }) => standing.best), below = scored.filter(({ standing }) => standing.below.length);
  const listed = (some, more = () => "") => el("ul", {}, ...some.map((record) => el("li", {}, placeLink(data, record.place), `, ${data.model(record.place).name}${more(record)}`)));
  const lines = control
    ? [el("p", {}, "Controls anchor the scale and do not compete.")]
    : [el("p", {}, `Best, or not distinguishable from the best, at ${best.length} of ${scored.length} places where it has a score.`), best.length ? listed(best) : ""];
  if (below.length) lines.push(el("p", {}, "Below controls:"), listed(below, ({ standing }) => `: below ${standing.below.join(", ")}`));
  return lines;
}

function countsOf(data, row) {
  const counts = data.counts.filter((count) => count.row === row);
  if (!counts.length) return [el("p", {}, "No result tells its counts.")];
  const number = (value) => (value === null ? DASH : whole(value));
  const range = (ends) => (ends === null ? DASH : [...new Set(ends)].map(whole).join(" to "));
  const share = ({ trained, backbone }) => (backbone && trained !== null ? `${significant((100 * trained) / backbone)} %` : DASH);
  const heads = ["model", "cells", "trained", "of the backbone", "mean", "at the end", "stored", "stored, bytes", "added at inference", "closed form: trained", "stored", "added"];
  const body = counts.map((count) => {
    const numbers = [count.mean, count.final, count.stored, count.stored_bytes, count.added].map(number);
    const closed = [count.expected_trained, count.expected_stored, count.expected_added].map(range);
    const values = [whole(count.cells), number(count.trained), share(count), ...numbers, ...closed];
    return el("tr", {}, el("th", { scope: "row" }, link(count.model, "model", count.model)), ...values.map((value) => el("td", {}, value)));
  });
  const element = el("table", { class: "plain" }, el("caption", {}, "Parameters, head apart"), el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, ...body));
  const wrong = [...new Set(counts.flatMap(({ mismatch }) => mismatch))];
  return [
    el("div", { class: "scroll fit", role: "region", tabindex: "0", "aria-label": "Parameters" }, element),
    el("p", { class: "notes" }, wrong.length ? `≠ ${wrong.join("; ")}.` : "Every count with a closed form is the one that it gives."),
  ];
}

// Distinct settings of the grid beside the defaults, and the recipe: a value that differs between cells is listed whole.
function settingsOf(data, method, records) {
  const cells = records.flatMap((record) => record.cells);
  const distinct = (name) => [...new Set(cells.map((index) => JSON.stringify(data.of(name, index))))].map((one) => JSON.parse(one));
  const values = (some, key) => [...new Set(some.map((one) => (one[key] === undefined ? DASH : JSON.stringify(one[key]))))];
  const names = (some, more = []) => [...new Set([...more, ...some.flatMap((one) => Object.keys(one))])];
  const settings = distinct("settings"), recipes = distinct("recipe"), known = method.settings ?? {};
  const rows = names(settings, Object.keys(known)).map((name) => [name, values(settings, name).join(" | "), known[name]?.[0] ?? DASH, known[name]?.[1] ?? DASH]);
  const recipe = names(recipes).map((name) => [name, values(recipes, name).join(" | ")]);
  return [
    beside(rows.length ? small("Settings", ["setting", "in this grid", "default", "type"], rows) : el("p", {}, "It has no settings."), recipe.length ? small("Recipe", ["recipe", "in this grid"], recipe) : ""),
    el("p", { class: "notes" }, "Where cells differ, all values are listed; each cell's page has its own. Divisions: ", [...new Set(cells.map((index) => data.of("division", index)))].join(", ") || DASH, "."),
  ];
}

function small(caption, heads, rows) {
  const element = el("table", { class: "plain words" }, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))));
  element.append(el("tbody", {}, ...rows.map(([first, ...rest]) => el("tr", {}, el("th", { scope: "row" }, first), ...rest.map((value) => el("td", {}, value))))));
  return el("div", { class: "scroll fit", role: "region", tabindex: "0", "aria-label": caption }, element);
}

function conformanceOf(method) {
  if (!method.file) return [el("p", {}, "There is no plugin to check.")];
  return [el("p", {}, "Results carry no verdict. This runs the conformance tests on the plugin as it is now:"), ...command(`python -m workflow check ${method.file}`)];
}

// --- a task ---------------------------------------------------------------------------------------------------------

function taskPage(data, suite, name) {
  const number = data.tasks.findIndex((task) => task.suite === suite && task.task === name);
  if (number < 0) return nowhere(data, `task ${suite}/${name}`);
  const task = data.tasks[number];
  const places = data.places.map((_, place) => place).filter((place) => data.places[place].task === number);
  const records = places.flatMap((place) => data.methods.map((_, row) => standingRecord(data, row, place))).filter(({ cells }) => cells.length);
  const columns = [
    text("method", ({ method }) => method.label, ({ method }) => methodLink(method)),
    text("model", ({ place }) => data.model(place).name, ({ place }) => modelLink(data, place)),
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
  const controls = found.filter(({ method }) => method.control), methods = found.filter(({ method }) => !method.control).sort(order);
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
  const rows = data.methods.flatMap((method, row) => (method.control ? places.map((place) => standingRecord(data, row, place)) : []));
  const found = rows.filter(({ cells }) => cells.length);
  const missing = data.controls.all.filter((name) => !found.some(({ method }) => method.method === name));
  const lines = found.map((record) => el("li", {}, methodLink(record.method), `, ${data.model(record.place).name}: `, scoreCell(data, record)));
  return [lines.length ? el("ul", {}, ...lines) : "", missing.length ? el("p", {}, `The grid has no cell of ${missing.join(", ")} here.`) : ""];
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
  return [about, ...protocols.flatMap(({ resolved, text }) => [small(`Protocol ${resolved.name ?? ""}`, ["option", "value"], Object.entries(resolved).map(([name, value]) => [name, plain(value)])), text ? el("pre", { class: "doc", tabindex: "0" }, text) : ""])];
}

// --- a model --------------------------------------------------------------------------------------------------------

function modelPage(data, name) {
  const number = data.models.findIndex((model) => model.name === name);
  if (number < 0) return nowhere(data, `model ${name}`);
  const model = data.models[number];
  const places = data.places.map((_, place) => place).filter((place) => data.places[place].model === number);
  const records = places.flatMap((place) => data.methods.map((_, row) => standingRecord(data, row, place))).filter(({ cells }) => cells.length);
  const columns = [
    text("method", ({ method }) => method.label, ({ method }) => methodLink(method)),
    text("task", ({ place }) => placeText(data, place), ({ place }) => placeLink(data, place)),
    ...scoreColumns(data),
    ...figureColumns(data, records, RESULTS),
    cellLinks(data),
  ];
  const [results, make] = table("model-results", `${name}: every result`, columns, records, 100);
  const { name: _, title, parameters, ...rest } = model;
  const facts = terms({ title, parameters: parameters ? whole(parameters) : null, ...rest });
  const known = Object.keys(model).length > 1 ? facts : el("p", {}, "This copy has no entry of that name, so there is nothing to say of it but its results.");
  return { heading: name, body: [known, section("All methods", el("p", {}, KEY), results)], ready: make };
}

// --- all cells ------------------------------------------------------------------------------------------------------

function cellsPage(data, status) {
  const everything = Array.from({ length: data.count }, (_, index) => ({ index, place: data.at("place", index), method: data.methods[data.at("row", index)], status: data.status(index) }));
  const records = everything.filter((record) => !status || record.status === status);
  const scaled = ({ index, place }, name) => (data.at(name, index) === null ? null : data.at(name, index) * data.places[place].scale);
  const scaledText = (record, name, write) => (scaled(record, name) === null ? DASH : write(scaled(record, name)));
  const taskOf = ({ place }) => `${data.task(place).suite}/${data.task(place).task}`;
  const columns = [
    text("cell", ({ index }) => data.at("key", index), ({ index }) => link(data.at("key", index).slice(0, 8), "cell", data.at("key", index))),
    text("method", ({ method }) => method.label, ({ method }) => methodLink(method)),
    text("task", taskOf, ({ place }) => placeLink(data, place)),
    text("model", ({ place }) => data.model(place).name, ({ place }) => modelLink(data, place)),
    text("division", ({ index }) => data.of("division", index)),
    figure("seed", ({ index }) => data.at("seed", index), ({ index }) => data.at("seed", index)),
    text("status", (record) => record.status, (record) => el("span", { class: record.status === "ok" ? null : "word" }, record.status)),
    ...(records.some(({ index }) => data.reason(index)) ? [text("reason", ({ index }) => data.reason(index), ({ index }) => el("span", { class: "reason" }, data.reason(index)))] : []),
    figure("score", (record) => scaled(record, "value"), (record) => scaledText(record, "value", (score) => score.toFixed(data.places[record.place].decimals))),
    figure("standard error", (record) => scaled(record, "stderr"), (record) => scaledText(record, "stderr", significant)),
    text("unit", ({ place }) => (data.places[place].scored ? data.places[place].unit : "")),
    ...["trained", "memory", "step", "train"]
      .filter((name) => data.figureNames.includes(name))
      .map((name) => figure(heading(data, name), ({ index }) => data.at(name, index), ({ index }) => figureText(data, name, data.at(name, index)))),
  ];
  const [element, make] = table("cells-table", status ? `Cells with status ${status}` : "All cells", columns, records);
  const statuses = [null, ...new Set(everything.map((record) => record.status))];
  const choices = statuses.flatMap((one) => [one === (status ?? null) ? el("b", {}, one ?? "all") : link(one ?? "all", "cells", ...(one ? [one] : [])), " "]);
  const body = [el("p", {}, `${whole(records.length)} of ${whole(data.count)} cells.`), el("p", { class: "choices" }, ...choices), element];
  return { heading: status ? `Cells: ${status}` : "All cells", body, ready: make };
}

// --- a cell ---------------------------------------------------------------------------------------------------------

async function cellPage(data, key) {
  const index = data.byKey.get(key);
  if (index === undefined) return nowhere(data, `cell ${key}`);
  const [figures, curves, predictions] = await Promise.all(["figures", "curves", "predictions"].map((part) => detail(part, index)));
  const row = data.at("row", index), place = data.at("place", index), method = data.methods[row];
  const task = data.task(place), seed = data.at("seed", index), config = data.at("config", index);
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
    "other seeds": siblings.map((other) => spans(link(`seed ${data.at("seed", other)}`, "cell", data.at("key", other)), " ")),
  });
  const { metrics, provenance, ...costs } = figures ?? {};
  const body = [
    facts,
    section("Scores", ...scoresOf(data, place, index, metrics)),
    section("Curves", ...curvesOf(data, index, curves)),
    section("Costs", ...costsOf(data, index, costs)),
    section("Settings and recipe", beside(...tableOf("Settings", data.of("settings", index)), ...tableOf("Recipe", data.of("recipe", index)))),
    section("Predictions", ...predictionsOf(data, index, predictions)),
    section("Provenance", ...(provenance ? tableOf("Provenance", flat(provenance)) : [absentPart(data, index, "figures")])),
    section("Run it again", ...command(`python -m workflow cell --grid ${quoted(data.grid.file)} --key ${config}/${seed}`)),
  ];
  return { heading: `${method.label} on ${task.suite}/${task.task}, ${data.model(place).name}, seed ${seed}`, badges: task.tag ? [task.tag] : [], body };
}

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);

// Why a part of a cell's details is not there.
function absentPart(data, index, part) {
  if (data.lost[part]) return el("p", {}, `Left out to keep the file small: ${data.lost[part]}. The result file has them.`);
  const status = data.status(index);
  return el("p", {}, status === "ok" ? "The result has none." : `The cell has none: ${status}${data.reason(index) && `, ${data.reason(index)}`}.`);
}

function scoresOf(data, place, index, metrics) {
  if (!metrics) return [data.places[place].scored ? absentPart(data, index, "figures") : el("p", {}, "The suite measures costs only.")];
  const sets = ["selected", "last", "validation"].filter((name) => metrics[name]);
  const names = [...new Set(sets.flatMap((name) => Object.keys(metrics[name])))];
  const shown = (one) => (one === undefined ? DASH : `${significant(one.value)}${one.stderr === undefined ? "" : ` (standard error ${significant(one.stderr)})`}${one.n === undefined ? "" : `, n = ${whole(one.n)}`}`);
  const heads = { selected: "test, at the checkpoint chosen on validation data", last: "test, at the last step", validation: "validation" };
  const rows = names.map((name) => [name === metrics.primary ? `${name} (primary)` : name, ...sets.map((set) => shown(metrics[set][name]))]);
  const counts = `The tables show: ${metrics.rule === "selected" ? "the checkpoint chosen on validation data" : "the last step"}${metrics.selected_step === undefined ? "" : `; chosen was step ${whole(metrics.selected_step)}`}.`;
  return [small("Scores on the metrics' own scales", ["metric", ...sets.map((set) => heads[set])], rows), el("p", { class: "notes" }, counts)];
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
  if (!found.length) return [absentPart(data, index, "figures")];
  const named = data.figureNames.filter((name) => data.at(name, index) !== null).map((name) => [`${data.figures[name].title}`, `${figureText(data, name, data.at(name, index))} ${data.figures[name].unit}`]);
  const units = { memory: "bytes", time: "seconds; rates a second", latency: "seconds", flops: "operations", energy: "joules" };
  const rest = found.map(([name, values]) => el("details", {}, el("summary", {}, `all of ${name}${units[name] ? `, ${units[name]}` : ""}`), ...tableOf(name, flat(values))));
  return [named.length ? terms(Object.fromEntries(named)) : "", ...rest];
}

function tableOf(caption, values) {
  const rows = Object.entries(values).map(([name, value]) => [name, typeof value === "number" && Math.abs(value) >= 1e4 && Number.isInteger(value) ? whole(value) : plain(value)]);
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
  const element = el("table", { id: "predictions", class: "plain words" }, el("caption", {}, `${predictions.rows.length} of ${whole(predictions.of)} test examples`), el("thead", {}, heads), el("tbody", {}, ...rows));
  const text = "The first that are wrong and the first that are right, in the order of the file; no share of either.";
  return [el("div", { class: "scroll fit", role: "region", tabindex: "0", "aria-label": "Predictions" }, element), el("p", { class: "notes" }, text)];
}

// --- compare --------------------------------------------------------------------------------------------------------

async function comparePage(data, first, second) {
  const labels = data.methods.map(({ label }) => label);
  const a = labels.indexOf(first), b = labels.indexOf(second);
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
  const common = data.places.map((_, place) => place).filter((place) => data.cellsAt(a, place).length && data.cellsAt(b, place).length);
  const records = [];
  for (const place of common) records.push(await pairedRecord(data, a, b, place));
  const address = el("a", { class: "compare-link", href: route("compare", first, second) }, "Link to this comparison");
  const shared = el("p", {}, address, " ", copyButton("Copy the link", () => location.href));
  if (!common.length) return { heading: `${first} against ${second}`, body: [choices, shared, el("p", {}, "The grid has no task and model with cells of both.")] };
  const [differences, makeDifferences] = table("compare-table", `${first} minus ${second}, by task and model`, differenceColumns(data, first, second), records, 100);
  const [costs, makeCosts] = costTables(data, a, b, common, first, second);
  const body = [
    choices,
    shared,
    section("Scores", ...verdict(records, first, second), ...differencePlots(data, records, first, second), differences, el("p", { class: "notes" }, PAIRED)),
    section("Costs", ...costs),
  ];
  return { heading: `${first} against ${second}`, body, ready: () => [makeDifferences, ...makeCosts].forEach((make) => make()) };
}

const PAIRED =
  "With two or more seeds in common: the mean of the differences by seed and its 95 % t interval. With one: of the test examples, the difference of the shares that each gets right, its 95 % interval by Bonett and Price, and p of McNemar's exact test; it holds the size of the test set and says nothing of other seeds. Intervals are of one task each: of twenty true ties, one is expected to be missed.";

// The difference of two rows at a place with its interval, and what it rests on; or why there is none.
async function pairedRecord(data, a, b, place) {
  const at = data.places[place];
  const record = { place, at, a: standingRecord(data, a, place), b: standingRecord(data, b, place) };
  if (!at.scored) return { ...record, why: "the suite measures costs only" };
  const scores = (row) => new Map(data.cellsAt(row, place).filter((index) => data.at("value", index) !== null).map((index) => [data.at("seed", index), index]));
  const ours = scores(a), theirs = scores(b);
  const seeds = [...ours.keys()].filter((seed) => theirs.has(seed));
  if (!ours.size || !theirs.size) return { ...record, why: `no score of ${data.methods[ours.size ? b : a].label}: ${blank(data, data.cellsAt(ours.size ? b : a, place)).text}` };
  if (!seeds.length) return { ...record, why: "no seed in common" };
  if (seeds.length > 1) {
    const { mean, half } = pairedMean(seeds.map((seed) => at.scale * (data.at("value", ours.get(seed)) - data.at("value", theirs.get(seed)))), data.t);
    return { ...record, mean, low: mean - half, high: mean + half, unit: at.unit, lower: at.lower, basis: `${seeds.length} seeds`, clear: mean - half > 0 || mean + half < 0 };
  }
  return { ...record, ...(await pairedExamples(data, ours.get(seeds[0]), theirs.get(seeds[0]), at)) };
}

async function pairedExamples(data, ours, theirs, at) {
  const [a, b] = [await detail("right", ours), await detail("right", theirs)];
  if (!a || !b) return { why: data.lost.right ? "one seed, and which examples are right is left out to keep the file small" : "one seed, and no stored predictions that are either right or wrong" };
  if (a.examples !== b.examples) return { why: "one seed, and the predictions are of different test examples" };
  const { onlyFirst, onlySecond } = disagreements(bytesOf(a.bits), bytesOf(b.bits));
  const { mean, low, high } = pairedShares(onlyFirst, onlySecond, a.n);
  const p = mcnemar(onlyFirst, onlySecond);
  const unit = at.metric === "accuracy" && at.unit === "accuracy, %" ? at.unit : "right answers, %";
  return { mean: 100 * mean, low: 100 * low, high: 100 * high, unit, p, lower: false, basis: `${whole(a.n)} examples, one seed`, clear: p < 0.05 };
}

const signed = (value, decimals = 2) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(decimals)}`;

function outcomeText({ clear, mean, lower }, first, second) {
  if (!clear) return "not distinguishable";
  return mean > 0 !== lower ? `${first} is better` : `${second} is better`;
}

function differenceColumns(data, first, second) {
  const none = (record) => why({ text: "no paired data", why: record.why });
  return [
    text("task", ({ place }) => placeText(data, place), ({ place }) => placeLink(data, place)),
    text("model", ({ place }) => data.model(place).name, ({ place }) => modelLink(data, place)),
    figure(first, ({ a }) => a.standing?.mean ?? null, ({ a }) => scoreCell(data, a)),
    figure(second, ({ b }) => b.standing?.mean ?? null, ({ b }) => scoreCell(data, b)),
    figure("difference", ({ mean }) => mean ?? null, (record) => (record.why ? none(record) : signed(record.mean))),
    figure("95 % interval", ({ low }) => low ?? null, (record) => (record.why ? DASH : `${signed(record.low)} to ${signed(record.high)}`)),
    text("unit", ({ unit, at }) => unit ?? (at.scored ? at.unit : "")),
    figure("p", ({ p }) => p ?? null, ({ p }) => (p === undefined ? DASH : p < 0.0005 ? "< 0.001" : p.toFixed(3))),
    text("verdict", (record) => record.why ?? outcomeText(record, first, second)),
    text("from", ({ basis }) => basis ?? DASH),
  ];
}

function verdict(records, first, second) {
  const paired = records.filter((record) => !record.why);
  if (!paired.length) return [el("p", {}, "No place has paired data of both; the table says why.")];
  const count = (words) => paired.filter((record) => outcomeText(record, first, second) === words).length;
  const sentence = `Of ${paired.length} places with paired data: ${first} is better at ${count(`${first} is better`)}, ${second} at ${count(`${second} is better`)}, and ${count("not distinguishable")} cannot be told apart.`;
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
    return el("figure", {}, intervalPlot(`${first} minus ${second}`, unit, entries, 0), el("figcaption", {}, `${first} minus ${second}, ${unit}; 95 % intervals; filled: clear differences`));
  });
}

function costTables(data, a, b, common, first, second) {
  const pairs = data.figureNames.flatMap((name) =>
    common.map((place) => ({ name, place, a: data.figure(name, a, place), b: data.figure(name, b, place) })).filter((pair) => pair.a !== null && pair.b !== null),
  );
  if (!pairs.length) return [[el("p", {}, "No figure of costs is there for both.")], []];
  const ratio = ({ a, b }) => (a > 0 && b > 0 ? a / b : null);
  const summary = data.figureNames.flatMap((name) => {
    const ratios = pairs.filter((pair) => pair.name === name).map(ratio).filter((value) => value !== null);
    return ratios.length ? [[heading(data, name), `× ${significant(geometricMean(ratios))}`, `× ${significant(Math.min(...ratios))} to × ${significant(Math.max(...ratios))}`, String(ratios.length)]] : [];
  });
  const columns = [
    text("figure", ({ name }) => heading(data, name)),
    text("task", ({ place }) => placeText(data, place)),
    figure(first, (pair) => pair.a, (pair) => figureText(data, pair.name, pair.a)),
    figure(second, (pair) => pair.b, (pair) => figureText(data, pair.name, pair.b)),
    figure(`${first} ÷ ${second}`, ratio, (pair) => (ratio(pair) === null ? DASH : significant(ratio(pair)))),
  ];
  const [all, make] = table("costs-table", "Costs by task and model", columns, pairs, 50);
  const rest = el("details", {}, el("summary", {}, `By task and model (${whole(pairs.length)} figures)`), all);
  return [[summary.length ? small(`${first} ÷ ${second}`, ["figure", "geometric mean", "range", "places"], summary) : "", rest], [make]];
}
