// Starts the page: which section is shown, and the parts that fill them.

import * as bulk from "./bulk.js";
import * as catalogue from "./catalogue.js";
import { $ } from "./dom.js";
import * as live from "./live.js";
import * as models from "./models.js";
import * as rerank from "./rerank.js";
import * as trying from "./try.js";

const sections = [...document.querySelectorAll("main > section")];
const links = [...document.querySelectorAll("nav a")];

function show(moved) {
  const wanted = location.hash.slice(1);
  if (wanted === "main") return $("main").focus();
  const shown = sections.find((section) => section.id === wanted) ?? sections[0];
  for (const section of sections) section.hidden = section !== shown;
  for (const link of links) {
    if (link.hash === `#${shown.id}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${shown.querySelector("h2").textContent} · BlitzEmbedding`;
  document.dispatchEvent(new CustomEvent("shown", { detail: shown.id }));
  if (moved) scrollTo(0, 0);
}

addEventListener("hashchange", () => show(true));
models.start();
trying.start();
rerank.start();
bulk.start();
live.start();
show(false);
catalogue.start();
