// The pages of the report: views of the embedded data, chosen by the part of the address behind `#/`. Data becomes text
// nodes and attributes, never markup.

const HOME = document.title;
const open = []; // tables of the page that is shown
let indexScroll = 0;
let turn = 0; // grows with every navigation: a page that is late is dropped

const PAGES = {
  method: methodPage,
  task: taskPage,
  model: modelPage,
  cell: cellPage,
  cells: cellsPage,
  compare: comparePage,
};

addEventListener("hashchange", show);
document.querySelector(".skip").addEventListener("click", skip);
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", show);
else show();

async function show() {
  const index = document.getElementById("index"),
    page = document.getElementById("page");
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
  const title = el(
    "h1",
    { tabindex: "-1" },
    heading,
    ...(content.badges ?? []).map((text) => el("span", { class: "badge" }, text)),
  );
  page.replaceChildren(trail(), title, ...content.body.flat());
  page.dataset.page = PAGES[kind] ? kind : "";
  index.hidden = true;
  page.hidden = false;
  document.title = `${heading} – ${HOME}`;
  content.ready?.();
  scrollTo({ top: 0, behavior: "instant" });
  title.focus({ preventScroll: true });
}

// The link that leads past the head leads into the page that is shown, not back to the index.
function skip(event) {
  const title = document.querySelector("#page:not([hidden]) h1");
  if (!title) return;
  event.preventDefault();
  title.focus();
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
  else scrollTo({ top: indexScroll, behavior: "instant" });
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
  const why = old
    ? "This browser cannot read the embedded data: it has no DecompressionStream. The tables of the report are complete without it."
    : `The page could not be made: ${problem.message}`;
  return { heading: "No page", body: [el("p", {}, why)] };
}

function nowhere(data, what = "") {
  return {
    heading: "Not in this report",
    body: [el("p", {}, `There is no such page${what && `: ${what}`}. It may belong to another grid.`)],
  };
}
