// What Kusto's own parser and binder say of queries. Knows no table and no query: they come on stdin, as
// {tables: {name: "(column: type, ...)"}, queries: [text]}. Writes a list, an object for each query:
// {remarks: [text], columns: [[name, type]]}.
"use strict";

const fs = require("fs");
require("@kusto/language-service-next/bridge.min.js");
require("@kusto/language-service-next/Kusto.Language.Bridge.min.js");

const { DiagnosticSeverity, GlobalState, KustoCode, Symbols } = globalThis.Kusto.Language;
const toArray = globalThis.Bridge.toArray;

const given = JSON.parse(fs.readFileSync(0, "utf8"));
const tables = Object.entries(given.tables).map(([name, columns]) =>
  Symbols.TableSymbol.From(columns).WithName(name),
);
const globals = GlobalState.Default.WithDatabase(new Symbols.DatabaseSymbol.ctor("insights", tables));

function told(query) {
  const code = KustoCode.ParseAndAnalyze(query, globals);
  const remarks = toArray(code.GetDiagnostics())
    .filter((each) => [DiagnosticSeverity.Error, DiagnosticSeverity.Warning].includes(each.Severity))
    .map((each) => `${each.Code} ${each.Message} At: ${query.slice(each.Start).split("\n")[0]}`);
  const columns = toArray(code.ResultType?.Columns ?? []).map((each) => [each.Name, each.Type.Name]);
  return { remarks, columns };
}

process.stdout.write(JSON.stringify(given.queries.map(told)));
