// Paired comparison of two methods. Nothing here knows of the page.

const NORMAL = 1.959963984540054; // 97.5 % point of the normal distribution

// Mean of paired differences and the half-width of its 95 % t interval; t[i] is the 97.5 % point for i + 1 degrees of
// freedom. Needs two or more.
function pairedMean(differences, t) {
  const n = differences.length;
  const mean = differences.reduce((sum, d) => sum + d, 0) / n;
  const variance = differences.reduce((sum, d) => sum + (d - mean) ** 2, 0) / (n - 1);
  return { mean, half: t[n - 2] * Math.sqrt(variance / n), n };
}

// McNemar's exact two-sided p: of the examples that only one of two methods gets right, are the shares one half?
function mcnemar(onlyFirst, onlySecond) {
  const n = onlyFirst + onlySecond;
  const few = Math.min(onlyFirst, onlySecond);
  if (2 * few >= n) return 1;
  let term = -n * Math.LN2; // log of the chance of 0 of n
  let tail = Math.exp(term);
  for (let k = 1; k <= few; k++) {
    term += Math.log((n - k + 1) / k);
    tail += Math.exp(term);
  }
  return Math.min(1, 2 * tail);
}

// Difference of two paired shares and its 95 % interval by Bonett and Price: one example is added to either kind of
// disagreement, so that few disagreements do not give an interval without width.
function pairedShares(onlyFirst, onlySecond, n) {
  const a = (onlyFirst + 1) / (n + 2),
    b = (onlySecond + 1) / (n + 2);
  const half = NORMAL * Math.sqrt((a + b - (a - b) ** 2) / (n + 2));
  return { mean: (onlyFirst - onlySecond) / n, low: Math.max(-1, a - b - half), high: Math.min(1, a - b + half), n };
}

// How many examples only the first and only the second of two bit strings has right.
function disagreements(first, second) {
  let onlyFirst = 0,
    onlySecond = 0;
  for (let i = 0; i < first.length; i++) {
    onlyFirst += ones(first[i] & ~second[i]);
    onlySecond += ones(second[i] & ~first[i]);
  }
  return { onlyFirst, onlySecond };
}

function ones(byte) {
  let count = 0;
  for (let rest = byte & 255; rest; rest &= rest - 1) count++;
  return count;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b),
    middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function geometricMean(values) {
  return Math.exp(values.reduce((sum, value) => sum + Math.log(value), 0) / values.length);
}
