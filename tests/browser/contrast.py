"""The contrast of every visible text with what is behind it, by WCAG 2.2."""

from __future__ import annotations

NORMAL, LARGE = 4.5, 3.0  # least contrast of level AA; large is 24 px, or 18.66 px in bold

TEXTS = """
() => {
  const found = [];
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const rgba = text => {
    if (!known.has(text)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = text;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      known.set(text, [r, g, b, a / 255]);
    }
    return known.get(text);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("script, style, template, noscript")) continue;
    if (!element.checkVisibility({ visibilityProperty: true })) continue;
    const style = getComputedStyle(element);
    const behind = [];
    let opacity = 1;
    for (let up = element; up; up = up.parentElement) {
      const own = getComputedStyle(up);
      opacity *= Number(own.opacity);
      const colour = rgba(own.backgroundColor);
      if (colour[3]) behind.push(colour);
    }
    const ink = rgba(element instanceof SVGElement ? style.fill : style.color).slice();
    ink[3] *= opacity;
    const disabled = element.closest("[disabled], [aria-disabled=true]") !== null;
    found.push({ text: node.data.trim().slice(0, 40), element: element.tagName + "." + element.getAttribute("class"),
                 ink, behind, size: parseFloat(style.fontSize), bold: Number(style.fontWeight) >= 700, disabled });
  }
  return found;
}
"""


def faint(page) -> list[str]:
    """A line for each text, what is folded too, whose contrast is too low. Backgrounds under the page are white."""
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    texts = page.evaluate(TEXTS)
    assert len(texts) > 10, "the page has texts"
    lines = []
    for text in texts:
        behind = (255.0, 255.0, 255.0)
        for colour in reversed(text["behind"]):
            behind = over(colour, behind)
        ratio = contrast(over(text["ink"], behind), behind)
        large = text["size"] >= 24 or (text["bold"] and text["size"] >= 18.66)
        if not text["disabled"] and ratio < (LARGE if large else NORMAL):
            lines.append(f"{text['element']} “{text['text']}”: {ratio:.2f}")
    return sorted(set(lines))


def over(colour, behind) -> tuple[float, ...]:
    """A colour [r, g, b, alpha] laid over an opaque one."""
    *channels, alpha = colour
    return tuple(alpha * front + (1 - alpha) * back for front, back in zip(channels, behind, strict=True))


def contrast(first, second) -> float:
    """(lighter + 0.05) / (darker + 0.05) of the relative luminances of two opaque colours."""
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (c / 255 for c in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
