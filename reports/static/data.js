// The report's data, read from the page when a view first wants it.

const once = (make) => {
  let made;
  return () => (made ??= make());
};

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

async function unpack(element) {
  const stream = new Blob([bytesOf(element.textContent)]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return JSON.parse(await new Response(stream).text());
}

// What #atlas-data says, with the cells of #atlas-cells and indices over them.
const report = once(async () => {
  const found = JSON.parse(document.getElementById("atlas-data").textContent);
  const columns = await unpack(document.getElementById("atlas-cells"));
  const { shared } = columns;
  const count = found.cells;
  const at = (name, index) => (columns[name] === undefined ? null : columns[name][index]);
  const of = (name, index) => shared[name][columns[name][index]];
  const byPair = new Map(),
    byKey = new Map(),
    standing = new Map();
  for (let index = 0; index < count; index++) {
    const pair = `${columns.row[index]} ${columns.place[index]}`;
    if (!byPair.has(pair)) byPair.set(pair, []);
    byPair.get(pair).push(index);
    byKey.set(columns.key[index], index);
  }
  for (const [row, place, mean, half, seeds, best, below] of found.standings)
    standing.set(`${row} ${place}`, { mean, half, seeds, best, below });
  return {
    ...found,
    count,
    at,
    of,
    byKey,
    status: (index) => of("status", index),
    reason: (index) => of("reason", index),
    cellsAt: (row, place) => byPair.get(`${row} ${place}`) ?? [],
    standing: (row, place) => standing.get(`${row} ${place}`),
    task: (place) => found.tasks[found.places[place].task],
    model: (place) => found.models[found.places[place].model],
    // A figure of a row at a place over the cells that are ok, as tables show it; null where there is none.
    figure(name, row, place) {
      const cells = (byPair.get(`${row} ${place}`) ?? []).filter((index) => of("status", index) === "ok");
      const values = cells.map((index) => at(name, index)).filter((value) => value !== null);
      if (!values.length) return null;
      return found.figures[name].combine === "max" ? Math.max(...values) : median(values);
    },
    figureNames: Object.keys(found.figures).filter((name) => columns[name]),
  };
});

// One part of the details of a cell (`figures`, `right`, `curves`, `predictions`): null where the report has none.
const blocks = new Map();
async function detail(part, index) {
  const { block } = await report();
  const start = index - (index % block);
  const id = `atlas-${part}-${start}`;
  if (!blocks.has(id)) {
    const element = document.getElementById(id);
    blocks.set(id, element ? unpack(element) : Promise.resolve([]));
  }
  const found = (await blocks.get(id))[index - start];
  return found && Object.keys(found).length ? found : null;
}
