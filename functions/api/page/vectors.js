// What is computed of vectors here: cosines, rankings, shorter vectors, a map. Knows no page.

export function unit(row) {
  let sum = 0;
  for (const value of row) sum += value * value;
  const length = Math.sqrt(sum) || 1;
  return row.map((value) => value / length);
}

// The first `count` numbers of each row, of length one again: what `dimensions` does in the service.
export const cut = (rows, count) => rows.map((row) => unit(row.slice(0, count)));

export function dot(one, other) {
  let sum = 0;
  for (let at = 0; at < one.length; at++) sum += one[at] * other[at];
  return sum;
}

// N x N cosines of N rows.
export function cosines(rows) {
  const units = rows.map(unit);
  const table = units.map(() => new Float64Array(units.length));
  for (let i = 0; i < units.length; i++)
    for (let j = i; j < units.length; j++) table[i][j] = table[j][i] = dot(units[i], units[j]);
  return table;
}

// All other rows, the nearest to row `of` first; equal ones in their order.
export const ranking = (table, of) =>
  [...table.keys()].filter((at) => at !== of).sort((a, b) => table[of][b] - table[of][a] || a - b);

// How many of the first k are in both, as a share.
export function overlap(one, other, k) {
  const first = new Set(one.slice(0, k));
  return other.slice(0, k).filter((each) => first.has(each)).length / Math.min(k, one.length);
}

// What rankings lose: the share of rows whose nearest stays, the share of the nearest k that stay, the
// largest change of a cosine.
export function loss(full, less, k) {
  let nearest = 0, kept = 0, change = 0;
  const count = full.length;
  for (let at = 0; at < count; at++) {
    const before = ranking(full, at), after = ranking(less, at);
    nearest += before[0] === after[0];
    kept += overlap(before, after, k);
    for (let other = 0; other < count; other++) change = Math.max(change, Math.abs(full[at][other] - less[at][other]));
  }
  return { nearest: nearest / count, kept: kept / count, change };
}

// Principal components: {points: N of [x, y], shares: of the variance}. Works on the N x N products of
// the centred rows, because there are fewer texts than dimensions.
export function components(rows) {
  const count = rows.length;
  const products = rows.map((row) => Float64Array.from(rows, (other) => dot(row, other)));
  const means = products.map((row) => row.reduce((sum, value) => sum + value, 0) / count);
  const mean = means.reduce((sum, value) => sum + value, 0) / count;
  const centred = products.map((row, i) => row.map((value, j) => value - means[i] - means[j] + mean));
  const total = centred.reduce((sum, row, i) => sum + row[i], 0);
  const axes = [];
  for (let axis = 0; axis < 2; axis++) {
    const found = largest(centred);
    axes.push(found);
    for (let i = 0; i < count; i++)
      for (let j = 0; j < count; j++) centred[i][j] -= found.value * found.vector[i] * found.vector[j];
  }
  return {
    points: rows.map((_, at) => axes.map(({ value, vector }) => Math.sqrt(value) * vector[at])),
    shares: axes.map(({ value }) => (total > 0 ? value / total : 0)),
  };
}

// The largest eigenvalue of a symmetric matrix, by power iteration.
function largest(matrix) {
  let vector = unit(Float64Array.from(matrix, (_, at) => Math.cos(at + 1)));
  let value = 0;
  for (let turn = 0; turn < 300; turn++) {
    const next = Float64Array.from(matrix, (row) => dot(row, vector));
    const length = Math.sqrt(dot(next, next));
    if (length < 1e-12) return { value: 0, vector };
    const moved = Math.abs(length - value);
    value = length;
    vector = next.map((each) => each / length);
    if (moved < 1e-12 * length) break;
  }
  return { value, vector };
}
