// What models there are and how they are: asked again and again while the page is looked at.

import { getJson } from "./service.js";

const STATES_MS = 1500;
const LISTING_MS = 10000;

let models = [];
let states = new Map();
const listeners = [];

// listen(models, states): called at each change. models: entries of /v1/models; states: name -> state.
export const watch = (listen) => listeners.push(listen);

export const named = (name) => models.find((model) => model.id === name);

export const embedders = () => models.filter((model) => model.task === "embedding");

// Those that rerank: one of several labels is a classifier, and has no score to order by.
export const crossEncoders = () => models.filter((model) => model.task === "cross-encoder" && build(model).labels.length === 1);

// Models as the options of a select.
export const names = (models) => models.map((model) => [model.id, model.id]);

// Of the build that answers by default: the CPU's, if there is one.
export const build = (model) => model.builds[0];

let last = "";

async function list() {
  const answer = await getJson("v1/models");
  models = answer.data;
}

async function look() {
  const { models: told } = await getJson("ready", { accept: [503] });
  states = new Map();
  for (const state of told) {
    const [name] = state.name.split("@"); // what a bulk job has loaded names its revision
    if (!isBetter(states.get(name), state)) states.set(name, state);
  }
}

// A model that is warm on either device is warm.
const ORDER = ["warm", "loading", "failed", "cold"];
const isBetter = (one, other) => one && ORDER.indexOf(one.state) <= ORDER.indexOf(other.state);

let listedAt = -Infinity;
let looking = null;

export function refresh() {
  looking ??= (async () => {
    try {
      if (performance.now() - listedAt > LISTING_MS) {
        await list();
        listedAt = performance.now();
      }
      await look();
    } finally {
      looking = null;
    }
    const now = JSON.stringify([models, [...states]]);
    if (now !== last) {
      last = now;
      for (const listen of listeners) listen(models, states);
    }
  })();
  return looking;
}

export function start() {
  const turn = async () => {
    if (document.visibilityState === "visible") await refresh().catch(() => {});
    setTimeout(turn, STATES_MS);
  };
  document.addEventListener("keychange", () => { listedAt = -Infinity; refresh().catch(() => {}); });
  turn();
}
