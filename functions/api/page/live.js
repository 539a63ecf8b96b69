// The section Live: what /metrics counts, as rates of the last minutes.

import { $, bytes, duration, h, number, svg } from "./dom.js";
import { quantile, read, sum } from "./prometheus.js";
import { call } from "./service.js";

const POLL_MS = 2000;
const KEPT = 61; // readings: two minutes
const RATE = 6; // readings that a rate is taken over
const QUANTILE = 31; // ... and a quantile, a minute

const readings = []; // {at, series}

const rate = (name) => ({ now, ago, seconds }) => {
  const value = sum(now, name);
  return value === undefined || !seconds ? null : Math.max(0, value - (sum(ago, name) ?? 0)) / seconds;
};
const perBatch = (name) => ({ now, ago }) => {
  const count = (sum(now, `${name}_count`) ?? 0) - (sum(ago, `${name}_count`) ?? 0);
  return count > 0 ? ((sum(now, `${name}_sum`) ?? 0) - (sum(ago, `${name}_sum`) ?? 0)) / count : null;
};
const gauge = (name) => ({ now }) => sum(now, name) ?? null;
const share = ({ now, ago }) => {
  const hits = (sum(now, "blitz_cache_hits") ?? 0) - (sum(ago, "blitz_cache_hits") ?? 0);
  const misses = (sum(now, "blitz_cache_misses") ?? 0) - (sum(ago, "blitz_cache_misses") ?? 0);
  return hits + misses > 0 ? hits / (hits + misses) : null;
};
const took = (part) => ({ now, minute }) => quantile(part, "te_request_duration", minute, now);
const per = (digits) => (value) => number(value, value > 0 && value < 10 ? digits : 0);

// name, unit, value of a moment, how it is written, a note of the newest reading.
const TILES = [
  ["Requests", "a second", rate("te_request_count"), per(1), ({ now }) => `${number(sum(now, "te_request_count") ?? 0)} since the start, ${number(sum(now, "te_request_failure") ?? 0)} refused or failed`],
  ["Texts", "a second", rate("te_embed_success"), per(1), ({ now }) => `${number(sum(now, "blitz_embed_tokens") ?? 0)} tokens since the start`],
  ["Half are answered within", "p50", took(0.5), duration, () => "of the last minute’s requests"],
  ["95 % are answered within", "p95", took(0.95), duration, () => "of the last minute’s requests"],
  ["Queue", "tokens waiting", gauge("te_queue_size"), per(0), () => "in this process"],
  ["Texts in a micro-batch", "mean", perBatch("te_batch_next_size"), per(1), (moment) => {
    const tokens = perBatch("te_batch_next_tokens")(moment);
    return tokens === null ? "none ran just now" : `filled with ${number(tokens)} padded tokens`;
  }],
  ["Cache hits", "of leases", share, (value) => `${number(value * 100)} %`, ({ now }) => `${number(sum(now, "blitz_cache_misses") ?? 0)} misses since the start`],
  ["Models in memory", "now", gauge("blitz_cache_models"), per(0), ({ now }) => bytes(sum(now, "blitz_cache_bytes") ?? 0)],
  ["Loads", "since the start", gauge("blitz_cache_load_duration_count"), per(0), ({ now }) => {
    const count = sum(now, "blitz_cache_load_duration_count");
    return count ? `${duration(sum(now, "blitz_cache_load_duration_sum") / count)} each, ${number(sum(now, "blitz_cache_load_failures") ?? 0)} failed` : "none yet";
  }],
  ["Evictions", "since the start", gauge("blitz_cache_evictions"), per(0), () => "models closed to make room"],
  ["Bulk rows", "a second", rate("blitz_bulk_rows"), per(1), ({ now }) => `${number(sum(now, "blitz_bulk_rows") ?? 0)} since the start`],
];

// Counted where models run. That is elsewhere if texts were embedded and no model was leased here.
const OF_BACKENDS = ["Queue", "Texts in a micro-batch", "Cache hits", "Models in memory", "Loads", "Evictions"];
const areElsewhere = ({ now }) =>
  sum(now, "te_embed_success") > 0 && !((sum(now, "blitz_cache_hits") ?? 0) + (sum(now, "blitz_cache_misses") ?? 0));

const tiles = TILES.map(([name, unit]) => {
  const value = h("b", {}, "–"), note = h("small", {}), path = svg("path"), under = svg("path", { class: "under" });
  const element = h("div", { class: "tile panel" }, h("dl", {}, h("dt", {}, name), h("dd", {}, value, " ", h("span", { class: "sub" }, unit)), h("dd", {}, note)),
    svg("svg", { viewBox: "0 0 120 40", preserveAspectRatio: "none", "aria-hidden": "true" }, under, path));
  return { element, value, note, path, under };
});

let running = false;
let asking = false;
let timer;

export function start() {
  $("live-tiles").append(...tiles.map((tile) => tile.element));
  document.addEventListener("shown", (event) => {
    const here = event.detail === "live";
    if (here && !running) {
      clearTimeout(timer); // of the last visit: two loops would ask twice as often
      if (!asking) turn();
    }
    running = here;
  });
  document.addEventListener("keychange", () => { readings.length = 0; });
}

async function turn() {
  asking = true;
  if (document.visibilityState === "visible") {
    try {
      readings.push({ at: performance.now() / 1000, series: read(await (await call("metrics")).text()) });
      if (readings.length > KEPT) readings.shift();
      show();
      $("live-note").textContent = "The last two minutes of this process.";
    } catch (error) {
      $("live-note").textContent = error.message;
    }
  }
  asking = false;
  timer = setTimeout(() => { if (running) turn(); }, POLL_MS);
}

function momentAt(at) {
  const { at: time, series: now } = readings[at];
  const before = readings[Math.max(0, at - RATE + 1)];
  return { now, ago: before.series, seconds: time - before.at, minute: readings[Math.max(0, at - QUANTILE + 1)].series };
}

function show() {
  const moments = readings.map((_, at) => momentAt(at));
  const elsewhere = areElsewhere(moments.at(-1)) ? OF_BACKENDS : [];
  for (const [at, [name, , measure, write, note]] of TILES.entries()) {
    const tile = tiles[at];
    const isTold = !elsewhere.includes(name);
    const values = moments.map((moment) => (isTold ? measure(moment) : null));
    const last = values.at(-1);
    tile.value.textContent = last === null ? "–" : write(last);
    tile.note.textContent = isTold ? note(moments.at(-1)) : "in the /metrics of the backends";
    draw(tile, values);
  }
}

// A line from the right, where now is; nothing where nothing was measured.
function draw({ path, under }, values) {
  const most = Math.max(...values.map((value) => value ?? 0)) || 1;
  const runs = [];
  for (const [at, value] of values.entries()) {
    if (value === null) continue;
    if (at === 0 || values[at - 1] === null) runs.push([]);
    const x = 120 - (values.length - 1 - at) * (120 / (KEPT - 1));
    runs.at(-1).push([x.toFixed(1), (38 - (value / most) * 34).toFixed(1)]);
  }
  const lines = runs.map((run) => `M${run.map((point) => point.join(" ")).join("L")}`);
  path.setAttribute("d", lines.join(""));
  under.setAttribute("d", lines.map((line, at) => `${line}L${runs[at].at(-1)[0]} 40L${runs[at][0][0]} 40Z`).join(""));
}
