// What every view of the report shares: light and dark, downloads, notes, filters, print.

for (const element of document.querySelectorAll(".js")) element.hidden = false;

// --- light and dark ---------------------------------------------------------------------------------------------------

const root = document.documentElement;
const kept = storage();
if (kept?.getItem("atlas-theme")) root.dataset.theme = kept.getItem("atlas-theme");
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try {
    kept?.setItem("atlas-theme", root.dataset.theme);
  } catch {
    // a page from disk may have no storage: the choice then lasts as long as the page
  }
});

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function storage() {
  try {
    return globalThis.localStorage;
  } catch {
    return null;
  }
}

// --- downloads --------------------------------------------------------------------------------------------------------

globalThis.atlasSave = (content, name, type) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};

document.addEventListener("click", async (event) => {
  const name = event.target.closest?.(".download[data-file]")?.dataset.file;
  if (!name) return;
  const file = document.querySelector(`script.atlas-file[data-file="${CSS.escape(name)}"]`);
  const squeezed = Uint8Array.from(atob(file.textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([squeezed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  atlasSave(await new Response(stream).blob(), name, file.dataset.type);
});

// --- notes ------------------------------------------------------------------------------------------------------------

// A mark shows its note where it stands, without a jump to the end of the table.
document.addEventListener("mouseover", (event) => {
  const mark = event.target.closest?.("sup a");
  if (mark && !mark.title) mark.title = document.getElementById(mark.hash.slice(1))?.textContent ?? "";
});

// --- filters ----------------------------------------------------------------------------------------------------------

// What is chosen is told to the tables and figures by an event: `shows` says whether a row, and `showsPlace` whether
// a table of a suite and model, is wanted.
const filters = document.getElementById("filters");
const methods = new Map();
for (const row of document.querySelectorAll("tr[data-method]")) methods.set(row.dataset.method, row.dataset);

globalThis.atlasFilter = { shows: () => true, showsPlace: () => true };

function filter() {
  const chosen = Object.fromEntries(new FormData(filters));
  const words = chosen.method.toLowerCase().split(/[\s,]+/).filter(Boolean);
  atlasFilter.shows = (label) => {
    const facets = methods.get(label);
    if (!facets) return true;
    const named = !words.length || words.some((word) => label.toLowerCase().includes(word));
    const fits = (name) => !chosen[name] || facets[name].split(" ").includes(chosen[name]);
    return named && fits("family") && fits("division") && fits("status");
  };
  atlasFilter.showsPlace = (suites, models) =>
    (!chosen.suite || suites.includes(chosen.suite)) && (!chosen.model || models.includes(chosen.model));
  const shown = [...methods.keys()].filter(atlasFilter.shows).length;
  filters.querySelector("output").textContent = shown < methods.size ? `${shown} of ${methods.size} rows` : "";
  document.dispatchEvent(new Event("atlas-filter"));
}

filters.addEventListener("input", filter);
filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("reset", () => setTimeout(filter));

// --- print ------------------------------------------------------------------------------------------------------------

// What is folded is printed too.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("#index details")) details.open = true;
});

// A link to a note, or to a section, in a folded part opens it.
document.addEventListener("click", (event) => {
  const hash = event.target.closest?.("a[href^='#']")?.getAttribute("href");
  if (hash?.length > 1 && !hash.startsWith("#/")) {
    const folded = document.getElementById(hash.slice(1))?.closest("details");
    if (folded) folded.open = true;
  }
});
