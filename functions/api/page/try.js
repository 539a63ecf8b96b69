// The section Try it: lines become vectors, and what can be seen of those.

import { build, embedders, named, names, refresh, watch } from "./catalogue.js";
import { $, choices, counted, duration, facts, h, lines, number, onSubmit, short, tell } from "./dom.js";
import { heatmap, latency, map, neighbours, rank } from "./pictures.js";
import { BASE, call, embed, hasKey } from "./service.js";
import { KINDS } from "./snippets.js";
import { cosines, cut, loss, overlap, ranking } from "./vectors.js";

const SAMPLE = [
  "The cat sat on the warm windowsill.",
  "A kitten is sleeping in the sun.",
  "Dogs need a walk twice a day.",
  "The central bank raised interest rates.",
  "Inflation makes borrowing more expensive.",
  "Shares fell after the announcement.",
  "Preheat the oven to 180 degrees.",
  "Knead the dough for ten minutes.",
];
const NEAREST = 5;

let runs = []; // of the last request: {model, vectors, told, seconds, request, table}
let texts = [];
let chosen = 0;
let kind = 0;
let asked = 0;

export function start() {
  $("try-texts").value = SAMPLE.join("\n");
  watch(offer);
  $("try-model").addEventListener("change", () => offer());
  onSubmit($("try-form"), $("try-status"), run);
  $("matryoshka").addEventListener("input", showLoss);
  $("snippet-kinds").append(...KINDS.map(([name], at) => h("button", { type: "button", class: "tab", "aria-pressed": String(at === kind), onclick: () => showSnippet(at) }, name)));
  $("snippet-copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($("snippet").textContent);
      tell($("snippet-status"), "Copied.");
    } catch {
      getSelection().selectAllChildren($("snippet"));
      tell($("snippet-status"), "Selected: copy it with Ctrl C.");
    }
  });
}

function offer() {
  const all = names(embedders());
  choices($("try-model"), all);
  choices($("try-other"), [["", "no second model"], ...all]);
  const model = named($("try-model").value);
  const first = model && build(model);
  const prompts = Object.keys(first?.prompts ?? {});
  const byDefault = first?.default_prompt ? `the default (${first.default_prompt})` : "none";
  choices($("try-prompt"), [["-", byDefault], ...(first?.default_prompt ? [["", "none"]] : []), ...prompts.map((name) => [name, name])]);
  $("try-prompt").disabled = prompts.length === 0;
  if (first) $("try-dimensions").max = first.dimensions;
  $("try-dimensions").placeholder = first ? `all ${first.dimensions}` : "all";
}

async function run() {
  const given = lines("try-texts");
  if (!given.length) throw new Error("Paste at least one line.");
  const models = [$("try-model").value, $("try-other").value].filter(Boolean);
  const dimensions = Number($("try-dimensions").value) || undefined;
  const prompt = $("try-prompt").value === "-" ? undefined : $("try-prompt").value;
  const done = [];
  for (const [at, model] of models.entries()) {
    const has = at === 0 || prompt in build(named(model)).prompts;
    done.push(await embed(model, given, { dimensions, prompt: has ? prompt : undefined }));
  }
  runs = done.map((each) => ({ ...each, table: cosines(each.vectors) }));
  texts = given;
  chosen = Math.min(chosen, given.length - 1);
  $("try-result").hidden = false;
  const length = runs[0].vectors[0].length;
  const slider = $("matryoshka");
  slider.min = Math.min(8, length);
  slider.max = length;
  slider.step = length % 8 ? 1 : 8;
  slider.value = Math.max(8, Math.round(length / 4));
  show();
  showSnippet(kind);
  refresh().catch(() => {});
  return `${counted(given.length, "text")}, ${counted(runs[0].told.tokens, "token")}.`;
}

function choose(at, focus) {
  chosen = at;
  show();
  if (focus === "map") document.querySelector(".map .dot.chosen")?.focus();
}

function show() {
  $("try-runs").replaceChildren(chooser(), ...runs.map(picture));
  $("try-runs").classList.toggle("two", runs.length > 1);
  showLoss();
  showTokens();
}

function chooser() {
  const select = h("select", { id: "try-line", onchange: (event) => { choose(Number(event.target.value)); $("try-line").focus(); } },
    texts.map((text, at) => h("option", { value: at, selected: at === chosen }, `${at + 1}: ${short(text)}`)));
  const both = runs.length > 1 && texts.length > 1
    ? h("p", { class: "sub", id: "try-agree" }, `The two models agree on ${number(agreement() * 100)} % of the ${Math.min(NEAREST, texts.length - 1)} nearest lines.`)
    : null;
  return h("div", { class: "panel chooser" }, h("label", { class: "wide" }, "Look at line", select), both);
}

const agreement = () => texts.reduce((sum, _, at) => sum + overlap(ranking(runs[0].table, at), ranking(runs[1].table, at), NEAREST), 0) / texts.length;

function picture(run, at) {
  const { told } = run;
  const figures = facts("figures", [
    ["Tokens", number(told.tokens), `${number(told.tokens / texts.length, 1)} a text`],
    ["Vectors", `${run.vectors.length} × ${run.vectors[0].length}`, "of length one"],
    ["Backend", told.device === "gpu" ? "GPU" : "CPU", `revision ${short(told.revision ?? "?", 12)}`],
    ["Answered in", duration(run.seconds), "seen from here"],
  ]);
  return h("article", { class: "panel run", "aria-labelledby": `run-${at}` },
    h("h3", { id: `run-${at}` }, run.model),
    figures,
    latency(told, run.seconds),
    told.truncated ? h("p", { class: "notice" }, `Cut to what the model reads: ${told.truncated.split(";")[0]} of the texts.`) : null,
    told.warning ? h("p", { class: "notice" }, told.warning) : null,
    h("div", { class: "blocks" },
      h("div", {}, h("h4", {}, "Similarity"), heatmap(run.model, run.table, texts, chosen, choose)),
      h("div", {}, h("h4", {}, "Map"), map(run.model, run.vectors, texts, chosen, choose)),
      h("div", {}, h("h4", {}, `Nearest to line ${chosen + 1}`), neighbours(run.table, texts, chosen)),
      h("div", {}, h("h4", {}, `Tokens of line ${chosen + 1}`), h("p", { class: "tokens", id: `tokens-${at}` }, "…"))));
}

async function showTokens() {
  const turn = ++asked;
  for (const [at, run] of runs.entries()) {
    let content;
    try {
      const response = await call("tokenize", { method: "POST", json: { model: run.model, inputs: texts[chosen] } });
      const [tokens] = await response.json();
      content = tokens.map((token) => h("span", { class: token.special ? "token special" : "token", title: `id ${token.id}` }, token.text));
    } catch (error) {
      content = [error.message];
    }
    if (turn !== asked) return; // another line was chosen meanwhile
    $(`tokens-${at}`).replaceChildren(...content);
  }
}

function showLoss() {
  const kept = Number($("matryoshka").value);
  $("matryoshka-at").textContent = `${kept} of ${runs[0].vectors[0].length}`;
  const trained = build(named(runs[0].model) ?? { builds: [{}] }).matryoshka_dimensions ?? [];
  $("matryoshka-note").textContent = trained.length
    ? `${runs[0].model} was trained for ${trained.join(", ")}.`
    : `${runs[0].model} was not trained for shorter vectors: see what a ranking loses.`;
  if (texts.length < 2) return $("matryoshka-loss").replaceChildren("It takes two lines.");
  const rows = runs.filter((run) => run.vectors[0].length >= kept).map((run) => {
    const less = cosines(cut(run.vectors, kept));
    return [run, less, loss(run.table, less, NEAREST)];
  });
  const k = Math.min(NEAREST, texts.length - 1);
  const figures = rows.map(([run, , lost]) => h("tr", {}, h("th", { scope: "row" }, run.model),
    h("td", {}, `${number(lost.nearest * 100)} %`), h("td", {}, `${number(lost.kept * 100)} %`), h("td", {}, number(lost.change, 3))));
  const [, less] = rows[0];
  const before = ranking(runs[0].table, chosen), after = ranking(less, chosen);
  const column = (title, order, table, moves) => h("div", {}, h("h4", {}, title),
    h("ol", { class: "ranks" }, order.slice(0, 8).map((at, place) => rank(at, texts[at], table[chosen][at], moves ? before.indexOf(at) - place : null))));
  $("matryoshka-loss").replaceChildren(
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "What rankings lose" }, h("table", { class: "plain" }, h("caption", { class: "out" }, "What rankings lose"),
      h("thead", {}, h("tr", {}, ["Model", "Same nearest line", `Same ${k} nearest`, "Largest change of a cosine"].map((each) => h("th", { scope: "col" }, each)))),
      h("tbody", {}, figures))),
    h("div", { class: "pair two" },
      column(`Nearest to line ${chosen + 1}, all numbers`, before, runs[0].table, false),
      column(`… with ${kept}`, after, less, true)));
}

function showSnippet(at) {
  kind = at;
  for (const [index, button] of [...$("snippet-kinds").children].entries()) button.setAttribute("aria-pressed", String(index === at));
  tell($("snippet-status"), "");
  $("snippet").textContent = KINDS[at][1](BASE.href, runs[0].request, hasKey());
}
