// Makes elements. Text is always text: nothing here reads markup, and the page's policy forbids it.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

// h("p", {class: "sub", onclick: f, hidden: true}, "text", child): attributes, listeners, children.
export function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((each) => each != null && each !== false));
  return element;
}

// Replaces the options of a select and keeps what was chosen, where it is still there.
export function choices(select, options) {
  const before = select.value;
  const same = options.length === select.options.length
    && options.every(([value, text], at) => select.options[at].value === value && select.options[at].text === text);
  if (same) return;
  select.replaceChildren(...options.map(([value, text]) => h("option", { value }, text)));
  if (options.some(([value]) => value === before)) select.value = before;
}

// The lines of a field that are not blank.
export const lines = (id) => $(id).value.split("\n").map((line) => line.trim()).filter(Boolean);

// Names with their values, and beside a value what is to be known of it. rows: [name, value, note?].
export const facts = (kind, rows) => h("dl", { class: kind }, rows.map(([name, value, note]) =>
  h("div", {}, h("dt", {}, name), h("dd", {}, note ? [h("b", {}, value), h("small", {}, note)] : value))));

// A little below 0 is 0, and no -0.
export const number = (value, digits = 0) =>
  (Number(value.toFixed(digits)) || 0).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

export function bytes(count) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
    if (count >= size) return `${number(count / size, count < 10 * size ? 1 : 0)} ${unit}`;
  return `${count} B`;
}

export function duration(seconds) {
  if (seconds < 0.01) return `${number(seconds * 1000, 2)} ms`;
  if (seconds < 1) return `${number(seconds * 1000, seconds < 0.1 ? 1 : 0)} ms`;
  if (seconds < 90) return `${number(seconds, seconds < 10 ? 1 : 0)} s`;
  return seconds < 5400 ? `${number(seconds / 60)} min` : `${number(seconds / 3600, 1)} h`;
}

export const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

export const clock = (date = new Date()) => date.toLocaleTimeString("en-GB");

// A line of text, short enough for a label.
export const short = (text, length = 60) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

// Runs what a form asks for: one at a time, with its state told, by its button or Ctrl Enter.
export function onSubmit(form, status, work) {
  let running = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = true;
    form.setAttribute("aria-busy", "true");
    tell(status, "Working…");
    try {
      tell(status, (await work()) ?? "");
    } catch (error) {
      tell(status, error.message, true);
    } finally {
      running = false;
      form.removeAttribute("aria-busy");
    }
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
}

export function tell(status, text, bad = false) {
  status.textContent = text;
  status.classList.toggle("bad", bad);
}
