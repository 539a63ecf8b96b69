// The section Models: a card for each, its state as it changes, and what was loaded and evicted.

import { build, refresh, watch } from "./catalogue.js";
import { $, bytes, clock, counted, duration, facts, h, number } from "./dom.js";
import { call } from "./service.js";

const ENGINES = {
  "cpu-int8": "ONNX Runtime, INT8",
  "cpu-fp32": "ONNX Runtime, FP32",
  "cpu-static": "a table of token vectors",
  "cpu-int8-static": "OpenVINO, INT8",
  "cpu-bf16": "OpenVINO, BF16",
  "gpu-fp16": "torch, FP16",
};
const TASKS = { // what it does, what `dimensions` counts, the smallest request
  embedding: ["Embeds texts", "Dimensions", "v1/embeddings", { input: "." }],
  // A pair, because a reranker made of a language model refuses a single text.
  "cross-encoder": ["Scores pairs (cross-encoder)", "Labels", "predict", { inputs: [[".", "."]] }],
  sparse: ["Weighs words (sparse)", "Words", "embed_sparse", { inputs: "." }],
  "multi-vector": ["Embeds each token (multi-vector)", "Dimensions", "embed_all", { inputs: "." }],
};
const LOG_LINES = 50;

const cards = new Map(); // name -> {element, told, shape}
const before = new Map(); // name -> {state, since}

export function start() {
  watch((models, states) => {
    const own = models.filter((model) => model.id === model.root);
    for (const [name, card] of cards)
      if (!own.some((model) => model.id === name)) { card.element.remove(); cards.delete(name); }
    for (const model of own) show(model, models, states.get(model.id) ?? { state: "cold" });
    const warm = own.filter((model) => states.get(model.id)?.state === "warm");
    $("models-sum").textContent = `${counted(own.length, "model")}, ${warm.length} in memory.`;
  });
}

function show(model, models, state) {
  const aliases = models.filter((each) => each.root === model.id && each.id !== model.id).map((each) => each.id);
  const shape = JSON.stringify([model, aliases]);
  let card = cards.get(model.id);
  if (card?.shape !== shape) {
    const made = make(model, aliases);
    if (card) card.element.replaceWith(made.element);
    else $("model-cards").append(made.element);
    card = { ...made, shape };
    cards.set(model.id, card);
  }
  card.pill.textContent = state.state;
  card.pill.className = `pill ${state.state}`;
  card.why.textContent = state.reason ?? "";
  card.why.hidden = !state.reason;
  card.load.hidden = state.state !== "cold";
  note(model.id, state);
}

function make(model, aliases) {
  const first = build(model);
  const [does, size] = TASKS[model.task];
  const pill = h("span", {});
  const why = h("p", { class: "notice bad", hidden: true });
  const load = h("button", { type: "button", class: "quiet", "aria-label": `Load ${model.id}`, onclick: () => loadNow(model, load) }, "Load");
  const id = `model-${model.id}`;
  const isStaged = model.builds.some((each) => each.staged);
  const columns = ["Target", "Engine", "Revision", ...(isStaged ? ["Staged"] : [])];
  const element = h("article", { class: "card", "aria-labelledby": id },
    h("div", { class: "row between" }, h("h3", { id }, model.id), h("span", { class: "row" }, load, pill)),
    h("p", { class: "sub" }, does, aliases.length ? `; also called ${aliases.join(", ")}` : ""),
    why,
    facts("facts", [
      [size, number(first.dimensions)],
      ["Reads", counted(first.max_tokens, "token")],
      ["Size", bytes(first.size_bytes)],
      ...(first.pooling ? [["Pooling", first.pooling]] : []),
    ]),
    quality(first),
    h("table", { class: "plain" }, h("caption", { class: "out" }, `Builds of ${model.id}`),
      h("thead", {}, h("tr", {}, columns.map((each) => h("th", { scope: "col" }, each)))),
      h("tbody", {}, model.builds.map((each) => h("tr", {},
        h("th", { scope: "row" }, h("code", {}, each.target)), h("td", {}, ENGINES[each.target] ?? each.target),
        h("td", {}, h("code", {}, each.revision.slice(0, 12))),
        isStaged ? h("td", {}, each.staged ? h("code", {}, each.staged.revision.slice(0, 12)) : "–") : null)))),
    more(first));
  return { element, pill, why, load };
}

// What was measured when it was built: a model without figures says so.
function quality(first) {
  const told = first.quality;
  if (!Object.keys(told).length) return h("p", { class: "sub" }, "It was not measured when it was built.");
  const closeness = told.cosine_mean != null
    ? ["Cosine to the original", number(told.cosine_mean, 4), `lowest ${number(told.cosine_min, 4)}`]
    : ["Rank agreement", number(told.rank_agreement_mean, 4), `lowest ${number(told.rank_agreement_min, 4)}`];
  const change = told.batch_max_abs_diff;
  return facts("figures", [
    closeness,
    ["Changes in a batch by", change === 0 ? "0" : change.toExponential(1), change === 0 ? "identical bits" : "at most"],
    [first.labels.length ? "Pairs a second" : "Texts a second", number(told.inputs_per_s), "where it was built"],
  ]);
}

function more(first) {
  const prompts = Object.entries(first.prompts);
  const evaluations = Object.entries(first.quality.evaluations ?? {});
  const rest = [
    ["Weights", first.source || "unknown"],
    ["Architecture", first.architecture],
    ["Built", first.created ? new Date(first.created * 1000).toISOString().slice(0, 10) : "unknown"],
    ...(first.labels.length ? [["Labels", first.labels.join(", ")]] : []),
    ...(first.matryoshka_dimensions.length ? [["Shorter lengths", first.matryoshka_dimensions.join(", ")]] : []),
    ...(first.quality.load_s != null ? [["Loads in", duration(first.quality.load_s)]] : []),
    ...evaluations.map(([name, value]) => [name, number(value, 4)]),
  ];
  return h("details", {}, h("summary", {}, prompts.length ? `${counted(prompts.length, "prompt")} and more` : "No prompts; more"),
    prompts.length ? facts("prompts", prompts.map(([name, text]) =>
      [name === first.default_prompt ? `${name} (default)` : name, h("code", {}, text || "(empty)")])) : null,
    facts("facts", rest));
}

async function loadNow(model, button) {
  button.disabled = true;
  try {
    const [, , path, smallest] = TASKS[model.task];
    await call(path, { method: "POST", json: { model: model.id, ...smallest } });
  } catch (error) {
    await refresh().catch(() => {});
    // Of one that failed the state has told already.
    if (before.get(model.id).state !== "failed") write(model.id, `did not load: ${error.message}`);
  }
  button.disabled = false;
  refresh().catch(() => {});
}

function note(name, state) {
  const was = before.get(name);
  if (was?.state === state.state) return;
  const since = performance.now();
  before.set(name, { state: state.state, since });
  if (!was) return;
  const took = was.state === "loading" ? ` after about ${duration((since - was.since) / 1000)}` : "";
  const text = {
    loading: "is being loaded",
    warm: `is warm${took}`,
    failed: `failed: ${state.reason}`,
    cold: was.state === "warm" ? "was evicted" : "is cold",
  }[state.state];
  write(name, text);
}

function write(name, text) {
  const log = $("model-log");
  log.prepend(h("li", {}, h("time", {}, clock()), h("b", {}, name), ` ${text}`));
  while (log.children.length > LOG_LINES) log.lastChild.remove();
}
