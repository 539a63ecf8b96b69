// The section Bulk: a file becomes a batch of OpenAI's, which is followed to its end.

import { embedders, names, watch } from "./catalogue.js";
import { $, choices, counted, duration, h, number, onSubmit, tell } from "./dom.js";
import { call, getJson, ServiceError } from "./service.js";
import * as rows from "./rows.js";

const POLL_MS = 1000;
const MOST_BYTES = 200e6;
const SHOWN_BAD = 100;
const SHOWN_JOBS = 5;
const ENDED = ["completed", "failed", "cancelled"];

let chosen = null; // {name, text, what}
const followed = new Set();

export function start() {
  watch(() => choices($("bulk-model"), names(embedders())));
  const drop = $("bulk-drop");
  for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) $("bulk-file").files = event.dataTransfer.files;
    take(event.dataTransfer.files[0]);
  });
  $("bulk-file").addEventListener("change", (event) => take(event.target.files[0]));
  onSubmit($("bulk-form"), $("bulk-status"), send);
  document.addEventListener("shown", (event) => { if (event.detail === "bulk") earlier(); });
}

async function take(file) {
  const status = $("bulk-status");
  chosen = null;
  $("bulk-start").disabled = true;
  if (!file) return tell(status, "");
  if (file.size > MOST_BYTES) return tell(status, "This file is too large for a browser: give it to bulk-in or the command line.", true);
  if (/\.(parquet|gz|zst|zip)$/i.test(file.name)) return tell(status, "Give this kind of file to bulk-in or the command line: this page reads text, CSV and JSONL.", true);
  const text = await file.text();
  const what = rows.look(file.name, text);
  const columns = what.columns.map((name) => [name, name]);
  choices($("bulk-column"), columns.length ? columns : [["", what.kind === "batch" ? "as the lines say" : "the line itself"]]);
  $("bulk-column").disabled = columns.length === 0;
  $("bulk-model").disabled = what.kind === "batch";
  if (what.kind !== "batch" && what.kind !== "text" && !columns.length) return tell(status, "There is no field with a text in its first row.", true);
  chosen = { name: file.name, text, what };
  $("bulk-start").disabled = false;
  tell(status, `${file.name}: ${{ batch: "OpenAI's batch lines", jsonl: "JSONL", csv: "CSV", text: "a text a line" }[what.kind]}.`);
}

async function send() {
  if (!chosen) throw new Error("Choose a file first.");
  const { name, text, what } = chosen;
  const made = rows.write(text, what, $("bulk-column").value, $("bulk-model").value);
  if (!made.rows) throw new Error("No row of the file has a text.");
  const form = new FormData();
  form.append("purpose", "batch");
  form.append("file", new Blob(made.parts), `${stemOf(name)}.jsonl`);
  tell($("bulk-status"), "Sending the file…");
  let batch;
  try {
    const file = await getJson("v1/files", { method: "POST", body: form });
    batch = await getJson("v1/batches", { method: "POST", json: {
      input_file_id: file.id, endpoint: "/v1/embeddings", completion_window: "24h", metadata: { file: name } } });
  } catch (error) {
    throw error.status === 404 ? new ServiceError("This service has no storage for files: set BLITZ_STORAGE.", 404) : error;
  }
  follow(batch, made.bad.map(([row, why]) => [`row ${row}`, why]));
  return `${counted(made.rows, "row")} sent.`;
}

// Jobs that this visitor's key began before.
async function earlier() {
  const answer = await getJson(`v1/batches?limit=${SHOWN_JOBS}`, { accept: [404] }).catch(() => null);
  for (const batch of [...(answer?.data ?? [])].reverse()) if (!followed.has(batch.id)) follow(batch, []);
}

const stemOf = (name) => name.replace(/\.[a-z]+$/i, "");

// bad: [row, why] of what was not sent.
function follow(batch, bad) {
  followed.add(batch.id);
  const name = batch.metadata?.file ?? batch.id;
  const title = h("h3", { id: `job-${batch.id}` }, name);
  const pill = h("span", { class: "pill" });
  const bar = h("progress", { "aria-labelledby": title.id });
  const line = h("p", { class: "sub", role: "status" });
  const actions = h("div", { class: "row" });
  const badRows = h("div", {});
  $("bulk-jobs").prepend(h("article", { class: "panel stack job", "aria-labelledby": title.id },
    h("div", { class: "row between" }, title, pill), bar, line, actions, badRows));
  const cancel = h("button", { type: "button", onclick: async () => {
    cancel.disabled = true;
    await call(`v1/batches/${batch.id}/cancel`, { method: "POST" }).catch((error) => { line.textContent = error.message; });
  } }, "Cancel");
  actions.append(cancel);
  showBad(badRows, bad);
  let first = null, last = null; // {now, done}: when rows were done first, and last
  const show = async () => {
    const { total, completed, failed } = batch.request_counts;
    const done = completed + failed, now = performance.now() / 1000;
    if (done && done !== last?.done) last = { now, done };
    first ??= last;
    if (total) { bar.max = total; bar.value = done; } else bar.removeAttribute("value");
    const rate = last && last !== first ? (done - first.done) / (last.now - first.now) : 0;
    pill.textContent = batch.status.replace("_", " ");
    pill.className = `pill ${{ completed: "warm", failed: "failed", cancelled: "cold" }[batch.status] ?? "loading"}`;
    line.textContent = [
      total ? `${number(done)} of ${counted(total, "row")}` : "waiting to begin",
      failed ? `${number(failed)} failed` : "",
      rate && !ENDED.includes(batch.status) ? `${number(rate)} rows/s` : "",
      rate && total > done ? `${duration(Math.max(1, (total - done) / rate - (now - last.now)))} left` : "",
    ].filter(Boolean).join(", ");
    if (!ENDED.includes(batch.status)) return true;
    bar.max = total || 1;
    bar.value = total ? done : 1;
    await ended(batch, name, actions, badRows, bad, line);
    return false;
  };
  const turn = async () => {
    try {
      batch = await getJson(`v1/batches/${batch.id}`);
    } catch (error) {
      line.textContent = error.message;
      if (error.status === 404 || error.status === 401) return;
      return setTimeout(turn, 4 * POLL_MS);
    }
    if (await show()) setTimeout(turn, POLL_MS);
  };
  show().then((goes) => { if (goes) setTimeout(turn, POLL_MS); });
}

async function ended(batch, name, actions, badRows, bad, line) {
  const why = batch.errors?.data?.map((each) => each.message).join("; ");
  if (why) line.textContent = `${line.textContent}: ${why}`;
  const stem = stemOf(name);
  actions.replaceChildren(
    ...(batch.output_file_id ? [h("button", { type: "button", class: "main", onclick: () => save(batch.output_file_id, `${stem}.vectors.jsonl`, line) }, "Download the vectors")] : []),
    ...(batch.error_file_id ? [h("button", { type: "button", onclick: () => save(batch.error_file_id, `${stem}.errors.jsonl`, line) }, "Download the bad rows")] : []));
  if (!batch.error_file_id) return;
  try {
    const text = await (await call(`v1/files/${batch.error_file_id}/content`)).text();
    const told = text.split("\n").filter(Boolean).map((each) => JSON.parse(each)).map((each) =>
      [each.custom_id ?? "?", each.error?.message ?? each.response?.body?.error?.message ?? "it failed"]);
    showBad(badRows, [...bad, ...told]);
  } catch (error) {
    line.textContent = error.message;
  }
}

function showBad(place, found) {
  if (!found.length) return;
  place.replaceChildren(h("details", { open: true }, h("summary", {}, counted(found.length, "bad row")),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Bad rows" }, h("table", { class: "plain" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Row"), h("th", { scope: "col" }, "What is wrong"))),
      h("tbody", {}, found.slice(0, SHOWN_BAD).map(([row, why]) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, row)), h("td", {}, why)))))),
    found.length > SHOWN_BAD ? h("p", { class: "sub" }, `The first ${SHOWN_BAD}; the file has all.`) : null));
}

// With the key in a header, which a link cannot send.
async function save(file, name, line) {
  try {
    const blob = await (await call(`v1/files/${file}/content`)).blob();
    const link = h("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  } catch (error) {
    line.textContent = error.message;
  }
}
