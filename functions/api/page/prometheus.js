// Reads Prometheus' text format. Knows no page.

// {name: [{labels, value}]}; a histogram's buckets are under its name with _bucket.
export function read(text) {
  const series = {};
  for (const line of text.split("\n")) {
    const found = line.match(/^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/);
    if (!found) continue;
    const labels = Object.fromEntries([...(found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value]));
    (series[found[1]] ??= []).push({ labels, value: Number(found[3]) });
  }
  return series;
}

// All series of a name together; undefined if there is none.
export const sum = (series, name) => series[name]?.reduce((total, each) => total + each.value, 0);

// A quantile of what a histogram took between two readings, as Prometheus' histogram_quantile has it.
export function quantile(share, name, before, after) {
  const buckets = (after[`${name}_bucket`] ?? [])
    .map(({ labels, value }) => [labels.le === "+Inf" ? Infinity : Number(labels.le), value - valueAt(before, name, labels.le)])
    .sort((one, other) => one[0] - other[0]);
  const count = buckets.at(-1)?.[1] ?? 0;
  if (count <= 0) return null;
  const wanted = share * count;
  const at = buckets.findIndex(([, value]) => value >= wanted);
  const [end, value] = buckets[at];
  const [begin, below] = at > 0 ? buckets[at - 1] : [0, 0];
  if (end === Infinity) return begin;
  return begin + (end - begin) * (value > below ? (wanted - below) / (value - below) : 1);
}

const valueAt = (series, name, le) => series[`${name}_bucket`]?.find((each) => each.labels.le === le)?.value ?? 0;
