// Pictures of vectors: a table of cosines, a map, a ranking. What is in them is text too.

import { duration, h, number, short, svg } from "./dom.js";
import { components, ranking } from "./vectors.js";

const MOST_LINES = 30;
const NEAREST = 8;
const SHADES = [6, 14, 22, 30, 40, 50, 60, 86, 93, 100]; // % of colour: a number is legible on each

// A table of cosines, coloured between the least and the most of different lines.
export function heatmap(model, table, texts, chosen, choose) {
  const shown = Math.min(texts.length, MOST_LINES);
  const others = table.slice(0, shown).flatMap((row, i) => [...row.slice(0, shown)].filter((_, j) => i !== j));
  const least = Math.min(...others), most = Math.max(...others);
  const at = (value) => (most > least ? Math.min(1, Math.max(0, (value - least) / (most - least))) : 0);
  const lines = [...Array(shown).keys()];
  const cell = (i, j) => {
    const step = Math.min(SHADES.length - 1, Math.floor(at(table[i][j]) * SHADES.length));
    return h("td", { class: i === j ? "self" : step > 6 ? "hot" : step === 6 ? "half" : "", "--part": `${SHADES[step]}%`, title: `${i + 1} and ${j + 1}: ${number(table[i][j], 3)}` },
      shown <= 10 ? number(table[i][j], 2) : h("span", { class: "out" }, number(table[i][j], 2)));
  };
  const head = (i, scope) => h("th", { scope, class: i === chosen ? "chosen" : "" },
    scope === "row"
      ? h("button", { type: "button", class: "bare", title: texts[i], "aria-pressed": String(i === chosen), onclick: () => choose(i) }, h("span", { class: "count" }, `${i + 1}`), h("span", { class: "name" }, short(texts[i], 40)))
      : `${i + 1}`);
  return h("figure", { class: "heat" },
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Cosines by ${model}` },
      h("table", { class: shown <= 10 ? "told" : "dense" },
        h("caption", { class: "out" }, "Cosine of each line with each other"),
        h("thead", {}, h("tr", {}, h("td", {}), lines.map((i) => head(i, "col")))),
        h("tbody", {}, lines.map((i) => h("tr", {}, head(i, "row"), lines.map((j) => cell(i, j))))))),
    h("figcaption", { class: "legend" }, h("span", {}, others.length ? number(least, 2) : ""), h("span", { class: "ramp" }), h("span", {}, others.length ? number(most, 2) : ""),
      shown < texts.length ? h("span", {}, `the first ${shown} of ${texts.length} lines`) : null));
}

const WIDTH = 440, HEIGHT = 300, EDGE = 26;

// The two directions in which the vectors differ most. One tab stop; arrow keys go from line to line.
export function map(model, rows, texts, chosen, choose) {
  const { points, shares } = components(rows);
  const scale = [0, 1].map((axis) => {
    const values = points.map((point) => point[axis]);
    return [Math.min(...values), Math.max(...values) - Math.min(...values) || 1];
  });
  const place = (point) => [
    EDGE + ((point[0] - scale[0][0]) / scale[0][1]) * (WIDTH - 2 * EDGE),
    HEIGHT - EDGE - ((point[1] - scale[1][0]) / scale[1][1]) * (HEIGHT - 2 * EDGE),
  ];
  const go = (event, at) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter" || event.key === " ") choose(at);
    else if (step) choose((at + step + texts.length) % texts.length, "map");
    else return;
    event.preventDefault();
  };
  const dots = points.map((point, at) => {
    const [x, y] = place(point);
    return svg("g", { class: at === chosen ? "dot chosen" : "dot", transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, role: "button",
      tabindex: at === chosen ? 0 : -1, "aria-pressed": String(at === chosen), "aria-label": `Line ${at + 1}: ${short(texts[at])}`,
      onclick: () => choose(at, "map"), onkeydown: (event) => go(event, at) },
      svg("title", {}, `${at + 1}: ${texts[at]}`), svg("circle", { r: at === chosen ? 11 : 9 }), svg("text", { y: 3.5 }, `${at + 1}`));
  });
  dots.push(dots.splice(chosen, 1)[0]); // drawn last, on top
  return h("figure", { class: "map" },
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": `Map by ${model}` }, dots),
    h("figcaption", { class: "sub" }, `Two principal components: ${number(shares[0] * 100)} % and ${number(shares[1] * 100)} % of the variance.`));
}

export function neighbours(table, texts, chosen) {
  const order = ranking(table, chosen).slice(0, NEAREST);
  if (!order.length) return h("p", { class: "sub" }, "There is no other line.");
  return h("ol", { class: "ranks" }, order.map((at) => rank(at, texts[at], table[chosen][at])));
}

// A line of a ranking: its number, its text, its score as a bar, and where it came from.
export function rank(at, text, score, move = null) {
  return h("li", { "data-line": at },
    h("span", { class: "count", title: `line ${at + 1}` }, `${at + 1}`),
    h("span", { class: "name" }, text),
    move === null ? null : h("span", { class: move > 0 ? "move up" : move < 0 ? "move down" : "move" }, moved(move)),
    score === null ? null : h("span", { class: "score" }, number(score, 3)),
    score === null ? null : h("span", { class: "bar", "--part": `${Math.max(0, Math.min(1, score)) * 100}%` }));
}

const moved = (move) => (move === 0 ? "same" : h("span", {}, h("span", { "aria-hidden": "true" }, move > 0 ? "▲" : "▼"), h("span", { class: "out" }, move > 0 ? "up " : "down "), `${Math.abs(move)}`));

// How the time of a request was spent, with a legend that says it in numbers.
export function latency(told, seconds) {
  const parts = [["Tokenise", told.tokenization, "a"], ["Queue", told.queue, "b"], ["Inference", told.inference, "c"]]
    .map(([name, spent, kind]) => [name, spent ?? 0, kind]);
  const inside = parts.reduce((sum, [, spent]) => sum + spent, 0);
  parts.push(["Load, network", Math.max(0, seconds - inside), "d"]);
  const total = parts.reduce((sum, [, spent]) => sum + spent, 0) || 1;
  return h("div", { class: "latency" },
    h("div", { class: "split", "aria-hidden": "true" }, parts.map(([, spent, kind]) => h("span", { class: kind, "--part": `${(spent / total) * 100}%` }))),
    h("ul", { class: "legend" }, parts.map(([name, spent, kind]) => h("li", {}, h("span", { class: `key ${kind}` }), `${name} `, h("b", {}, duration(spent))))));
}
