// Figures: which of a gallery is shown, what of it is drawn, what the pointer is on, and its files.

const PARTS = { label: "names", bar: "intervals", front: "Pareto front", control: "controls" };
const tip = document.createElement("div");
tip.id = "tip";
tip.setAttribute("role", "tooltip");
tip.hidden = true;
document.body.append(tip);

for (const gallery of document.querySelectorAll(".gallery")) furnish(gallery);

function furnish(gallery) {
  const figures = [...gallery.querySelectorAll("figure")];
  const values = (name) => [...new Set(figures.map((figure) => figure.dataset[name]))];
  const chosen = { place: values("place")[0], view: values("view")[0] };
  const tools = document.createElement("div");
  tools.className = "tools";
  if (values("place").length > 1) tools.append(selection(gallery.dataset.title, values("place"), (place) => choose({ place })));
  const views = values("view").length > 1 ? buttons(values("view"), (view) => choose({ view })) : null;
  if (views) tools.append(views);
  const chips = document.createElement("div");
  chips.className = "chips";
  tools.append(chips);
  gallery.prepend(tools);

  function choose(change) {
    Object.assign(chosen, change);
    const here = figures.filter((figure) => figure.dataset.place === chosen.place);
    const shown = here.find((figure) => figure.dataset.view === chosen.view) ?? here[0];
    for (const figure of figures) figure.hidden = figure !== shown;
    for (const button of views?.children ?? []) {
      button.setAttribute("aria-pressed", button.value === shown.dataset.view);
      button.disabled = !here.some((figure) => figure.dataset.view === button.value);
    }
    chips.replaceChildren(...toggles(shown));
  }
  choose({});
}

function selection(title, values, change) {
  const label = document.createElement("label");
  const select = document.createElement("select");
  select.setAttribute("aria-label", `${title}: where`);
  for (const value of values) select.add(new Option(value));
  select.addEventListener("change", () => change(select.value));
  label.append(select);
  return label;
}

function buttons(values, change) {
  const group = document.createElement("div");
  group.className = "views";
  group.setAttribute("role", "group");
  for (const value of values) {
    const button = document.createElement("button");
    button.type = "button";
    button.value = button.textContent = value;
    button.addEventListener("click", () => change(value));
    group.append(button);
  }
  return group;
}

// One button for each kind of mark that the figure has, and for each family where there are several.
function toggles(figure) {
  const svg = figure.querySelector("svg");
  const families = [...new Set([...svg.querySelectorAll("[data-family]")].map((mark) => mark.dataset.family))];
  const parts = Object.entries(PARTS).filter(([part]) => svg.querySelector(`.${part}`));
  const made = parts.map(([part, name]) => toggle(name, () => svg.querySelectorAll(`.${part}`)));
  if (families.length > 1)
    for (const family of families)
      if (family !== "control") made.push(toggle(family, () => svg.querySelectorAll(`[data-family="${CSS.escape(family)}"]`)));
  return made;
}

function toggle(name, marks) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = name;
  button.setAttribute("aria-pressed", ![...marks()].every((mark) => mark.classList.contains("away")));
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", !shown);
    for (const mark of marks()) mark.classList.toggle("away", shown);
  });
  return button;
}

document.addEventListener("atlas-filter", () => {
  for (const mark of document.querySelectorAll(".drawing [data-method]"))
    mark.classList.toggle("off", !atlasFilter.shows(mark.dataset.method));
});

// --- the pointer ------------------------------------------------------------------------------------------------------

document.addEventListener("pointerover", (event) => {
  const mark = event.target.closest?.(".drawing g[class]");
  const title = mark?.querySelector(":scope > title");
  if (title) {
    mark.dataset.tip = title.textContent; // the browser's own tip would stand beside it
    title.remove();
  }
  tip.hidden = !mark?.dataset.tip;
  tip.textContent = mark?.dataset.tip ?? "";
  for (const other of document.querySelectorAll(".drawing .hot")) other.classList.remove("hot");
  if (mark?.dataset.method)
    for (const same of mark.closest("svg").querySelectorAll(`[data-method="${CSS.escape(mark.dataset.method)}"]`))
      same.classList.add("hot");
});

document.addEventListener("pointermove", (event) => {
  if (tip.hidden) return;
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, x)}px`;
  tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
});

document.addEventListener("click", (event) => {
  const method = event.target.closest?.(".drawing [data-method]")?.dataset.method;
  if (method) location.hash = `#/method/${encodeURIComponent(method)}`;
});

// --- files ------------------------------------------------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.(".download[data-figure]");
  if (!button) return;
  const figure = button.closest("figure");
  const svg = alone(figure.querySelector("svg"));
  const name = `${figure.dataset.name}.${button.dataset.figure}`;
  if (button.dataset.figure === "svg") atlasSave(svg.text, name, "image/svg+xml");
  else atlasSave(await pixels(svg), name, "image/png");
});

// The figure as a file of its own, in the colours that the page has now.
function alone(drawn) {
  const copy = drawn.cloneNode(true);
  const style = getComputedStyle(drawn);
  const [, , width, height] = drawn.getAttribute("viewBox").split(" ").map(Number);
  const colours = ["--accent", "--muted", "--page", ...Array.from({ length: 10 }, (_, index) => `--c${index}`)];
  for (const gone of copy.querySelectorAll(".away, .off")) gone.remove();
  const values = colours.map((name) => `${name}:${resolved(style.getPropertyValue(name))}`);
  copy.setAttribute("style", [...values, `color:${style.color}`, `background:${resolved(style.getPropertyValue("--page"))}`].join(";"));
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  return { text: new XMLSerializer().serializeToString(copy), width, height };
}

// A colour as a file can have it: what `light-dark()` means now.
function resolved(colour) {
  const probe = document.createElement("span");
  probe.style.color = colour;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

async function pixels({ text, width, height }) {
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = 2 * width;
  canvas.height = 2 * height;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(image.src);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}
