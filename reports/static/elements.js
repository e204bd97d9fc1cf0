// What the pages are made of: elements, figures as text, tables.

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== null && value !== undefined) element.setAttribute(name, value);
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
  return value.toLocaleString("en", {
    minimumFractionDigits: Math.min(digits, 100),
    maximumFractionDigits: Math.min(digits, 100),
  });
}

const whole = (value) => Math.round(value).toLocaleString("en");
const figureText = (data, name, value) =>
  value === null ? DASH : data.figures[name].unit === "parameters" ? whole(value) : significant(value);
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
        render: (_, type, record) =>
          type === "display"
            ? node(column.shown(record))
            : type === "filter"
              ? filterText(column, record)
              : column.value(record),
      })),
    };
    open.push(new DataTable(element, settings));
    // the part that scrolls sideways is now inside, beside the controls
    const outer = element.closest(".scroll"),
      inner = element.closest(".dt-layout-table");
    for (const name of ["role", "tabindex", "aria-label"]) {
      inner.setAttribute(name, outer.getAttribute(name));
      outer.removeAttribute(name);
    }
  };
  return [el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, element), make];
}

const escaped = (title) => el("span", {}, title).innerHTML;
const node = (shown) => (shown instanceof Node ? shown : el("span", {}, plain(shown)));

// What a row is searched in: names and words, and figures with all their digits. Elements are made only for what has no
// value, since making them for all cells of a large grid takes seconds.
function filterText(column, record) {
  const value = column.value(record);
  if (value !== null) return String(value);
  const shown = column.shown(record);
  return shown instanceof Node ? shown.textContent : plain(shown);
}

const spans = (...parts) => el("span", {}, ...parts);
const why = ({ text, why }) => el("span", { class: "word", title: why }, text);

// A row of the tables at a place, as the pages of methods, tasks and models list them.
function standingRecord(data, row, place) {
  const cells = data.cellsAt(row, place);
  return { row, place, cells, standing: data.standing(row, place), method: data.methods[row], at: data.places[place] };
}

function scoreColumns(data) {
  return [
    figure(
      "score",
      ({ standing }) => standing?.mean ?? null,
      (record) => scoreCell(data, record),
    ),
    text("unit", ({ at }) => (at.scored ? at.unit : "")),
    figure(
      "seeds",
      ({ standing }) => standing?.seeds ?? null,
      ({ standing, cells }) =>
        standing
          ? standing.seeds === cells.length
            ? standing.seeds
            : `${standing.seeds} of ${cells.length}`
          : why(blank(data, cells)),
    ),
  ];
}

function scoreCell(data, { standing, at, cells }) {
  if (!at.scored) return el("span", { class: "word", title: "the suite measures costs only" }, "not scored");
  if (!standing) return why(blank(data, cells));
  const score = scoreText(at, standing.mean, standing.half);
  const marks = [];
  if (standing.seeds === 1) marks.push(el("sup", { title: "one seed: ± 1.96 standard errors of sampling" }, "†"));
  if (standing.below.length)
    marks.push(el("sup", { class: "alert", title: `below ${standing.below.join(", ")}` }, "↓"));
  return spans(
    standing.best ? el("strong", { title: "the best, or not distinguishable from it" }, score) : score,
    ...marks,
  );
}

function figureColumns(data, records, names) {
  const shown = names.filter(
    (name) =>
      data.figureNames.includes(name) && records.some(({ row, place }) => data.figure(name, row, place) !== null),
  );
  return shown.map((name) =>
    figure(
      heading(data, name),
      ({ row, place }) => data.figure(name, row, place),
      ({ row, place, cells }) =>
        data.figure(name, row, place) === null
          ? noFigure(data, cells)
          : figureText(data, name, data.figure(name, row, place)),
    ),
  );
}

function noFigure(data, cells) {
  const found = blank(data, cells);
  return why(found.text === DASH ? { text: DASH, why: "the device or the method does not give this figure" } : found);
}

const cellLinks = (data) =>
  text(
    "cells",
    ({ cells }) => cells.length,
    ({ cells }) =>
      spans(
        ...cells.flatMap((index, k) => [
          k ? " " : "",
          link(`seed ${data.at("seed", index)}`, "cell", data.at("key", index)),
        ]),
      ),
  );

const RESULTS = ["trained", "stored", "memory", "step", "attached", "merged", "token", "token_merged", "energy"];
const KEY =
  "Bold: the best and all that cannot be told apart from it. †: one seed. ↓: below a control that should be easy to beat. Hover over a word or a mark for its reason.";
