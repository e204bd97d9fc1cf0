// Sort a table by a column: click again to turn the order. Rows stay in their section; words and dashes stay last.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const table = head.closest("table");
    const index = head.cellIndex;
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    for (const body of table.tBodies) {
      const rows = [...body.rows].slice(1);
      rows.sort((a, b) => compare(a.cells[index], b.cells[index], descending ? -1 : 1));
      body.append(...rows);
    }
  });
}

function compare(a, b, direction) {
  if (a.tagName === "TH") return direction * a.textContent.localeCompare(b.textContent);
  if (a.dataset.value === undefined || b.dataset.value === undefined)
    return (a.dataset.value === undefined) - (b.dataset.value === undefined);
  return direction * (a.dataset.value - b.dataset.value);
}

// What is folded is printed too.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
