// Reads a file of texts, and writes it as lines of OpenAI's batches. Knows no page and no service.

// What a file is: {kind: "batch" | "jsonl" | "csv" | "text", columns}. columns: what may hold the text.
export function look(name, text) {
  const first = text.slice(0, 65536).split(/\r?\n/).find((line) => line.trim()) ?? "";
  const ending = name.toLowerCase().match(/\.([a-z]+)$/)?.[1] ?? "";
  if (first.trim().startsWith("{")) {
    const object = parsed(first);
    if (object?.custom_id !== undefined && object.body) return { kind: "batch", columns: [] };
    const columns = Object.entries(object ?? {}).filter(([, value]) => typeof value === "string").map(([key]) => key);
    return { kind: "jsonl", columns: likely(columns) };
  }
  if (ending === "csv" || ending === "tsv") {
    const { value: header } = records(text, separatorOf(first, ending)).next();
    return { kind: "csv", columns: likely(header ?? []), separator: separatorOf(first, ending) };
  }
  return { kind: "text", columns: [] };
}

// Blob parts of a batch file, {parts, rows, bad}. bad: [row, why] of what has no text, rows counted from 1.
export function write(text, what, column, model) {
  if (what.kind === "batch") return { parts: [text], rows: text.split("\n").filter((line) => line.trim()).length, bad: [] };
  const parts = [], bad = [];
  let row = 0;
  for (const [id, value] of texts(text, what, column)) {
    row += 1;
    if (typeof value !== "string" || !value.trim()) bad.push([row, value === undefined ? "it cannot be read, or has no such field" : "its text is empty"]);
    else parts.push(`${JSON.stringify({ custom_id: String(id ?? row), method: "POST", url: "/v1/embeddings", body: { model, input: value } })}\n`);
  }
  return { parts, rows: parts.length, bad };
}

function* texts(text, what, column) {
  let row = 0;
  if (what.kind === "csv") {
    const rows = records(text, what.separator);
    const header = rows.next().value;
    const at = header.indexOf(column), id = header.indexOf("id");
    for (const record of rows) yield [record[id] || undefined, record[at]];
    return;
  }
  for (const line of text.split(/\r?\n/)) {
    row += 1;
    if (!line.trim()) continue;
    if (what.kind === "text") yield [row, line];
    else {
      const object = parsed(line);
      yield [object?.id ?? row, object?.[column]];
    }
  }
}

// RFC 4180: quotes, doubled quotes, line breaks within them.
function* records(text, separator) {
  let record = [], value = "", quoted = false, begun = false;
  for (let at = text.charCodeAt(0) === 0xfeff ? 1 : 0; at < text.length; at++) {
    const sign = text[at];
    if (quoted) {
      if (sign !== '"') value += sign;
      else if (text[at + 1] === '"') { value += sign; at++; }
      else quoted = false;
    } else if (sign === '"' && value === "") quoted = begun = true;
    else if (sign === separator) { record.push(value); value = ""; begun = true; }
    else if (sign === "\n") {
      if (begun || value.trim()) yield [...record, value];
      record = []; value = ""; begun = false;
    } else if (sign !== "\r") { value += sign; begun = true; }
  }
  if (begun) yield [...record, value];
}

function separatorOf(first, ending) {
  if (ending === "tsv") return "\t";
  return first.split(";").length > first.split(",").length ? ";" : ",";
}

// The columns that are named like texts come first.
const LIKELY = ["text", "content", "body", "input", "passage", "document", "sentence", "abstract"];
function likely(columns) {
  const place = (name) => (LIKELY.includes(name.toLowerCase()) ? LIKELY.indexOf(name.toLowerCase()) : LIKELY.length);
  return [...columns].sort((a, b) => place(a) - place(b));
}

function parsed(line) {
  try {
    const value = JSON.parse(line);
    return value && typeof value === "object" ? value : undefined;
  } catch {
    return undefined;
  }
}
