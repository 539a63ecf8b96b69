// The section Rerank: documents as given, by the cosine of embeddings, and by a cross-encoder.

import { crossEncoders, embedders, names, refresh, watch } from "./catalogue.js";
import { $, choices, counted, h, lines, onSubmit } from "./dom.js";
import { latency, rank } from "./pictures.js";
import { call, toldBy } from "./service.js";

const QUERY = "When was the Eiffel Tower finished?";
const DOCUMENTS = [
  "The Eiffel Tower is a wrought-iron tower on the Champ de Mars in Paris.",
  "Work on the Eiffel Tower was completed in March 1889, for the World’s Fair.",
  "When will the repairs of the tower be finished?",
  "The Eiffel Tower was repainted in 2021.",
  "Tickets for the Eiffel Tower can be bought online.",
];

export function start() {
  $("rerank-query").value = QUERY;
  $("rerank-texts").value = DOCUMENTS.join("\n");
  watch(() => {
    const scorers = names(crossEncoders());
    choices($("rerank-model"), scorers.length ? scorers : [["", "none is published"]]);
    $("rerank-model").disabled = scorers.length === 0;
    const others = names(embedders());
    choices($("rerank-cosine"), others.length ? others : [["", "none is published"]]);
    $("rerank-cosine").disabled = others.length === 0;
  });
  onSubmit($("rerank-form"), $("rerank-status"), run);
}

async function run() {
  const query = $("rerank-query").value.trim();
  const documents = lines("rerank-texts");
  if (!documents.length) throw new Error("Paste at least one document.");
  const given = documents.map((_, at) => at);
  const columns = [{ title: "As given", note: "before", order: given }];
  for (const [select, title] of [["rerank-cosine", "By cosine"], ["rerank-model", "By the cross-encoder"]]) {
    const model = $(select).value;
    if (!model) continue;
    const before = columns.at(-1).order;
    columns.push({ title, note: model, before, ...(await ask(model, query, documents)) });
  }
  $("rerank-result").replaceChildren(h("div", { class: `pair ${columns.length > 2 ? "three" : "two"}` }, columns.map((column, at) => picture(column, at, documents))));
  refresh().catch(() => {});
  return `${counted(documents.length, "document")}.`;
}

async function ask(model, query, documents) {
  const began = performance.now();
  const response = await call("v2/rerank", { method: "POST", json: { model, query, documents } });
  const { results } = await response.json();
  const seconds = (performance.now() - began) / 1000;
  const scores = new Map(results.map((each) => [each.index, each.relevance_score]));
  return { order: results.map((each) => each.index), scores, told: toldBy(response), seconds };
}

function picture({ title, note, order, before, scores, told, seconds }, at, documents) {
  const id = `ranked-${at}`;
  return h("article", { class: "panel", "aria-labelledby": id },
    h("div", { class: "head" }, h("h3", { id }, title), h("p", { class: "sub" }, note)),
    h("ol", { class: "ranks", onpointerover: seen, onpointerleave: seen }, order.map((index, place) =>
      rank(index, documents[index], scores ? scores.get(index) : null, before ? before.indexOf(index) - place : null))),
    told ? latency(told, seconds) : null);
}

// The document under the pointer is marked in every column.
function seen(event) {
  const line = event.type === "pointerleave" ? null : event.target.closest("li")?.dataset.line;
  for (const item of $("rerank-result").querySelectorAll("li[data-line]")) item.classList.toggle("seen", item.dataset.line === line);
}
