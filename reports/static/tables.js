// Tables of the index: sorted by a column, filtered, columns to choose. A table gets its controls when it comes near the
// screen, so that a page of many is there at once.

// Figures sort by their value; what has none stays last in both directions.
const last = (direction) => (a, b) => (a === "" || b === "" ? (a === "") - (b === "") : direction * (a - b));
DataTable.ext.type.order["figure-asc"] = last(1);
DataTable.ext.type.order["figure-desc"] = last(-1);

const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      enhance(target);
    }
  },
  { rootMargin: "400px" },
);
const tables = document.querySelectorAll("#index table.atlas");
for (const table of tables) near.observe(table);
addEventListener("beforeprint", () => tables.forEach(enhance));

const ready = new Map();

function enhance(table) {
  if (ready.has(table)) return;
  const sections = gather(table);
  const first = sections ? 1 : 0;
  const headings = [...table.tHead.rows[0].cells];
  const figures = headings.flatMap((head, index) => (index > first && !head.classList.contains("text") ? [index] : []));
  const options = {
    autoWidth: false,
    info: false,
    order: [],
    paging: false,
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
    columnDefs: [{ targets: figures, type: "figure", className: "figure" }],
  };
  if (sections) {
    options.columnDefs.push({ targets: 0, visible: false });
    options.orderFixed = { pre: [[0, "asc"]] };
    options.rowGroup = { dataSrc: 0 };
  }
  if (headings.length > first + 2)
    options.layout.topStart = {
      buttons: [
        {
          extend: "colvis",
          text: "Columns",
          columns: headings.map((_, index) => index).slice(first + 1),
          columnText: (api, index) => headings[index].dataset.label,
        },
      ],
    };
  const api = new DataTable(table, options);
  // with a fixed first order DataTables announces that one's direction
  api.on("order", () => {
    for (const head of headings)
      if (head.ariaSort) head.ariaSort = head.classList.contains("dt-ordering-desc") ? "descending" : "ascending";
  });
  api.search.fixed("filters", (text, data, index) => atlasFilter.shows(api.row(index).node().dataset.method));
  api.draw();
  ready.set(table, api);
  // the part that scrolls sideways is now inside, below the controls
  const outer = table.closest(".scroll"), inner = table.closest(".dt-layout-table");
  for (const name of ["role", "tabindex", "aria-label"]) {
    inner.setAttribute(name, outer.getAttribute(name));
    outer.removeAttribute(name);
  }
}

// One body instead of one a section; the section becomes a first column, by which rows are grouped.
function gather(table) {
  if (!table.querySelector("tr.section")) return false;
  const [body, ...others] = table.tBodies;
  const head = document.createElement("th");
  head.textContent = "section";
  head.dataset.label = "section";
  table.tHead.rows[0].prepend(head);
  for (const part of [body, ...others]) {
    const name = part.querySelector("tr.section").textContent;
    part.querySelector("tr.section").remove();
    for (const row of [...part.rows]) {
      const cell = document.createElement("td");
      cell.textContent = name;
      row.prepend(cell);
      body.append(row);
    }
  }
  others.forEach((part) => part.remove());
  return true;
}

document.addEventListener("atlas-filter", () => {
  for (const block of document.querySelectorAll("#index .block"))
    block.hidden = !atlasFilter.showsPlace(JSON.parse(block.dataset.suite), JSON.parse(block.dataset.model));
  for (const api of ready.values()) api.draw();
});
