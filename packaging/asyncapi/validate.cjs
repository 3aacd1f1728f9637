// Holds an AsyncAPI file against the standard with its official parser. Exit code: 0 it holds, 1 it does not, 2 usage.
"use strict";

const { readFileSync } = require("node:fs");
const { Parser } = require("@asyncapi/parser");

const INFORMATION = 2; // of the parser's severities: errors are 0, warnings 1
const NAMES = ["error", "warning"];

async function main(path) {
  const { document, diagnostics } = await new Parser().parse(readFileSync(path, "utf8"), { source: path });
  const faults = diagnostics.filter((found) => found.severity < INFORMATION);
  for (const { severity, path: where, message, range } of faults) {
    console.error(`${path}:${range.start.line + 1}: ${NAMES[severity]}: ${message} (${where.join(".")})`);
  }
  if (document === undefined || faults.length > 0) return 1;
  const [channels, operations, messages] = [document.channels(), document.operations(), document.allMessages()];
  console.log(`${path}: AsyncAPI ${document.version()}, ${channels.length} channels, ${operations.length} operations, ${messages.length} messages`);
  return 0;
}

if (process.argv.length !== 3) {
  console.error("usage: node validate.cjs FILE");
  process.exit(2);
}
main(process.argv[2]).then((code) => process.exit(code));
