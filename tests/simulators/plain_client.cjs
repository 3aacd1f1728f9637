// A client that knows nothing of temperd but its topics: Node's mqtt package as published.
// node plain_client.cjs PORT ROOT WANTED COMMAND_TOPIC COMMAND: prints "ready", then what it saw as one line of JSON.
"use strict";

const mqtt = require("mqtt");

const LIMIT_MS = 300_000;
const [port, root, wanted, commandTopic, command] = process.argv.slice(2);
const missing = new Set(JSON.parse(wanted));
const seen = {};
let refusal = null;
let ended = false;

const client = mqtt.connect(`mqtt://127.0.0.1:${port}`, { protocolVersion: 5, clientId: "plain-node" });
const limit = setTimeout(end, LIMIT_MS);

client.once("connect", async () => {
  await client.subscribeAsync(`${root}/#`, { qos: 1 }); // after a loss the package subscribes again by itself
  console.log("ready");
});

client.on("message", async (topic, payload, packet) => {
  const name = topic.slice(root.length + 1);
  if (payload.length === 0 || topic === commandTopic) return;
  const body = JSON.parse(payload.toString());
  if (name === "conn" && body.online && refusal === null) {
    refusal = {};
    await client.publishAsync(commandTopic, command, { qos: 1 });
  }
  if (topic === commandTopic.replace(/req$/, "sts")) refusal = body;
  seen[name] = { keys: Object.keys(body), type: packet.properties?.contentType ?? null };
  missing.delete(name);
  if (missing.size === 0 && refusal?.reason_code) end();
});

function end() {
  if (ended) return;
  ended = true;
  clearTimeout(limit);
  console.log(JSON.stringify({ seen, refusal, missing: [...missing] }));
  client.end(true, {}, () => process.exit(0));
}
