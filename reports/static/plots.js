// Small figures drawn in the browser: they take colours from the page, and say in words what they show.

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function figureSvg(kind, width, height, label) {
  const image = svg("svg", {
    class: `plot ${kind}`,
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": label,
  });
  image.style.maxWidth = `${width}px`;
  return image;
}

// Round numbers that divide a range, about `count` of them; zero is never the negative one.
function ticks(low, high, count = 5) {
  const raw = (high - low) / count;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = size * [1, 2, 5, 10].find((factor) => factor * size >= raw);
  const found = [];
  for (let k = Math.ceil(low / step) || 0; k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}

function tickText(value, values) {
  const step = Math.abs(values[1] - values[0]) || 1;
  return value.toLocaleString("en", {
    minimumFractionDigits: 0,
    maximumFractionDigits: Math.max(0, Math.ceil(-Math.log10(step) + 1e-9)),
  });
}

function padded(values, share = 0.06) {
  let low = Math.min(...values),
    high = Math.max(...values);
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const margin = (high - low) * share;
  return [low - margin, high + margin];
}

// A curve over steps; points without a value break the line.
function curvePlot(title, { steps, values, of }) {
  const width = 460,
    height = 220,
    left = 56,
    right = 12,
    top = 12,
    bottom = 40;
  const known = values.filter((value) => value !== null);
  const said = known.length
    ? `from ${known[0]} to ${known.at(-1)}, lowest ${Math.min(...known)}, highest ${Math.max(...known)}`
    : "no finite value";
  const image = figureSvg(
    "curve",
    width,
    height,
    `${title} over ${of} points, steps ${steps[0]} to ${steps.at(-1)}: ${said}.`,
  );
  if (!known.length) return image;
  const [low, high] = padded(known),
    [first, last] = padded(steps, 0.02);
  const x = (step) => left + ((step - first) / (last - first)) * (width - left - right);
  const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - top - bottom);
  axis(image, ticks(low, high, 4), (value, all) => [
    svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
    svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, tickText(value, all)),
  ]);
  axis(
    image,
    ticks(first, last).filter((step) => step >= 0 && Number.isInteger(step)),
    (step, all) => [svg("text", { x: x(step), y: height - bottom + 16, "text-anchor": "middle" }, tickText(step, all))],
  );
  image.append(
    svg("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle", class: "name" }, "step"),
  );
  let path = "",
    down = false;
  steps.forEach((step, index) => {
    const value = values[index];
    if (value !== null) path += `${down ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
    down = value !== null;
  });
  image.append(svg("path", { class: "line", d: path }));
  steps.forEach((step, index) => {
    if (values[index] === null) return;
    const point = svg("circle", {
      class: "point",
      cx: x(step).toFixed(1),
      cy: y(values[index]).toFixed(1),
      r: values.length > 12 ? 2 : 3.5,
    });
    point.append(svg("title", {}, `step ${step}: ${values[index]}`));
    image.append(point);
  });
  return image;
}

function axis(image, values, draw) {
  for (const value of values) image.append(...draw(value, values));
}

// Intervals side by side, one a line: entries {label, href, mean, low, high, kind, text}, kind "best", "control", "" or
// "clear". `line` is a value to compare with, drawn across all.
function intervalPlot(label, unit, entries, line = null) {
  const letters = Math.min(44, Math.max(28, ...entries.map(({ label }) => label.length)));
  const left = 22 + 6 * letters,
    right = 24,
    row = 22,
    width = 720,
    top = 8,
    bottom = 40;
  const height = top + bottom + row * entries.length;
  const ends = entries.flatMap(({ mean, low, high }) => [mean, low ?? mean, high ?? mean]);
  const [low, high] = padded(line === null ? ends : [...ends, line]);
  const x = (value) => left + ((value - low) / (high - low)) * (width - left - right);
  const image = figureSvg(
    "intervals",
    width,
    height,
    `${label}, ${unit}. ${entries.map(({ label, text }) => `${label} ${text}`).join("; ")}.`,
  );
  axis(image, ticks(low, high, 6), (value, all) => [
    svg("line", { class: "grid", x1: x(value), x2: x(value), y1: top, y2: height - bottom }),
    svg("text", { x: x(value), y: height - bottom + 16, "text-anchor": "middle" }, tickText(value, all)),
  ]);
  image.append(
    svg("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle", class: "name" }, unit),
  );
  if (line !== null)
    image.append(svg("line", { class: "zero", x1: x(line), x2: x(line), y1: top, y2: height - bottom }));
  entries.forEach((entry, index) => {
    const y = top + row * (index + 0.5);
    const shown = entry.label.length > letters ? `${entry.label.slice(0, letters - 1)}…` : entry.label;
    const name = svg("text", { x: left - 10, y: y + 4, "text-anchor": "end", class: "label" }, shown);
    const link = svg("a", { href: entry.href }, name);
    const group = svg("g", { class: `entry ${entry.kind}` }, svg("title", {}, `${entry.label}: ${entry.text}`));
    if (entry.low !== undefined && entry.low !== null)
      group.append(svg("line", { class: "bar", x1: x(entry.low), x2: x(entry.high), y1: y, y2: y }));
    group.append(svg("circle", { class: "point", cx: x(entry.mean), cy: y, r: 4.5 }));
    image.append(link, group);
  });
  return image;
}
