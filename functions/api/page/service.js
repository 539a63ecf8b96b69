// Calls this service's public routes, as any client does. Keeps the key in this module's memory alone.

import { $ } from "./dom.js";

export const BASE = new URL(".", document.baseURI);

export const hasKey = () => key !== "";

export function useKey(typed) {
  key = typed;
  document.dispatchEvent(new Event("keychange"));
}

let key = "";
let asking = null;

export class ServiceError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// The response of a route. accept: statuses other than 2xx that are answers too. Raises ServiceError.
export async function call(path, { method = "GET", json, body, accept = [] } = {}) {
  for (;;) {
    const sent = key;
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    if (json !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(new URL(path, BASE), {
        method, headers, body: json === undefined ? body : JSON.stringify(json), cache: "no-store",
      });
    } catch {
      reached(false);
      throw new ServiceError("the service does not answer", 0);
    }
    reached(true);
    if (response.status === 401) {
      if (sent === key) await askForKey(sent !== "");
      continue;
    }
    if (response.ok || accept.includes(response.status)) return response;
    throw new ServiceError(await reasonOf(response), response.status);
  }
}

export const getJson = async (path, options) => (await call(path, options)).json();

// What an embedding or reranking request took, in seconds, and where it ran.
export function toldBy(response) {
  const parts = Object.fromEntries(
    [...(response.headers.get("server-timing") ?? "").matchAll(/([a-z]+);dur=([\d.]+)/g)]
      .map(([, name, ms]) => [name, Number(ms) / 1000]));
  return {
    ...parts,
    device: response.headers.get("x-compute-type"),
    revision: response.headers.get("x-model-revision"),
    tokens: Number(response.headers.get("x-compute-tokens")),
    truncated: response.headers.get("x-truncated"),
    warning: response.headers.get("x-warning"),
  };
}

// Vectors of texts, in OpenAI's dialect: {vectors, told, seconds, request}.
export async function embed(model, input, { dimensions, prompt } = {}) {
  const request = { model, input };
  if (dimensions) request.dimensions = dimensions;
  if (prompt != null) request.prompt_name = prompt;
  const began = performance.now();
  const response = await call("v1/embeddings", { method: "POST", json: request });
  const answer = await response.json();
  const vectors = answer.data.map((each) => Float64Array.from(each.embedding));
  return { model, vectors, told: toldBy(response), seconds: (performance.now() - began) / 1000, request };
}

async function reasonOf(response) {
  try {
    const body = await response.json();
    return body.error?.message ?? body.error ?? body.message ?? body.detail ?? `answered ${response.status}`;
  } catch {
    return `the service answered ${response.status}`;
  }
}

let isThere = null;

function reached(answers) {
  if (answers === isThere) return;
  isThere = answers;
  $("reach").textContent = answers ? "" : "The service does not answer";
}

// One dialog for all who wait for a key. Raises ServiceError if the visitor has none.
function askForKey(wasWrong) {
  asking ??= new Promise((resolve, reject) => {
    const dialog = $("key-dialog");
    const button = $("key-button");
    $("links").hidden = true; // a link sends no key
    const open = () => {
      $("key-why").textContent = wasWrong
        ? "That key is not valid, or no longer. Type another one."
        : "It stays in this page’s memory alone, and is forgotten when you leave.";
      $("key-input").value = "";
      dialog.showModal();
    };
    dialog.onclose = () => {
      if (dialog.returnValue !== "use") {
        tellKey("Enter a key", open);
        reject(new ServiceError("the service asks for a key", 401));
        return;
      }
      dialog.returnValue = "";
      const typed = $("key-input").value.trim();
      $("key-input").value = "";
      tellKey("Forget the key", forgetKey);
      asking = null;
      useKey(typed);
      resolve();
    };
    $("key-cancel").onclick = () => dialog.close("");
    function tellKey(text, does) {
      button.textContent = text;
      button.hidden = false;
      button.onclick = does;
    }
    open();
  });
  asking.catch(() => {});
  return asking;
}

function forgetKey() {
  asking = null;
  useKey("");
}
