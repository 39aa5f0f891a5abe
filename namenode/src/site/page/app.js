// The dashboard: draws what /events pushes.

import { KINDS, Line, Map } from "/chart.js";
import * as files from "/files.js";
import { bytes, counted, make, number, span } from "/format.js";

const at = (id) => document.getElementById(id);
const map = new Map();
const perSecond = (show) => (value) => `${show(value)}/s`;
const lines = {
  read: new Line("read", perSecond(bytes)),
  written: new Line("written", perSecond(bytes)),
  operations: new Line("operations", perSecond(number)),
  latency: new Line("latency", span),
};

// The last few samples: datanodes tell what they carried once a second, so that rates over one second would jump.
const WINDOW = 4;
let recent = [];
// The most bytes that were left to copy since there was nothing to repair.
let repairBegan = 0;

function set(id, text) {
  const element = at(id);
  if (element.textContent !== text) element.textContent = text;
}

/** The growth of a counter in a second over the window; null when it was set back or is not known. */
function rate(read) {
  const from = recent[0];
  const to = recent.at(-1);
  const [before, after] = [read(from), read(to)];
  const seconds = (to.time - from.time) / 1000;
  if (before === undefined || after === undefined || after < before || seconds <= 0) return null;
  return (after - before) / seconds;
}

function nodeRate(node, what) {
  const read = (sample) => sample.status.datanodes.find((one) => one.node === node)?.traffic?.[what];
  return recent.length > 1 ? rate(read) : null;
}

function drawVerdict(health, reasons, said) {
  at("verdict").dataset.health = health;
  const words = { healthy: "Healthy", degraded: "Degraded", "data missing": "Data missing", silent: "No leader answers" };
  const word = said || words[health] || health;
  set("health", word);
  document.title = health === "healthy" ? "Cairn" : `Cairn: ${word}`;
  if (at("reasons").dataset.said !== reasons.join("\n")) {
    at("reasons").dataset.said = reasons.join("\n");
    at("reasons").replaceChildren(...reasons.map((reason) => make("li", "", reason)));
  }
}

function drawFigures(status) {
  set("figure-files", number(status.files));
  set("figure-data", bytes(status.live_bytes));
  set("figure-free", status.capacity > 0 ? `${bytes(status.available)} of ${bytes(status.capacity)}` : "–");
  set("figure-sessions", number(status.sessions));
  set("figure-snapshots", number(status.snapshots));
  at("snapshots").hidden = !status.snapshots;
}

function drawChunks(sample) {
  map.update(sample.chunks.stretches, sample.chunks.width);
  const totals = map.totals();
  const all = totals.reduce((sum, count) => sum + count, 0);
  set("chunks-total", `${counted(all, "chunk")}, ${counted(sample.status.default_replication, "copy").replace("copys", "copies")} wanted as a rule`);
  const bar = at("chunks-bar");
  const legend = at("chunks-legend");
  if (bar.childElementCount === 0) {
    for (const [kind, words] of KINDS) {
      const part = make("span");
      part.dataset.kind = kind;
      bar.append(part);
      const item = make("li", "", words, make("b", "", "0"));
      item.dataset.kind = kind;
      legend.append(item);
    }
  }
  totals.forEach((count, kind) => {
    const part = bar.children[kind];
    part.style.flexGrow = String(count);
    part.classList.toggle("some", count > 0);
    const item = legend.children[kind];
    item.classList.toggle("none", count === 0);
    const text = number(count);
    if (item.lastChild.textContent !== text) item.lastChild.textContent = text;
  });
  const parts = KINDS.flatMap(([, words], kind) => (totals[kind] > 0 ? [`${number(totals[kind])} ${words}`] : []));
  bar.setAttribute("aria-label", parts.join(", ") || "No chunks yet");
}

function drawRepair(repair) {
  const progress = at("repair-progress");
  const busy = repair.under_replicated > 0 || repair.in_flight > 0;
  if (!busy) {
    repairBegan = 0;
    progress.hidden = true;
    const done = repair.chunks_repaired > 0 ? `; ${counted(repair.chunks_repaired, "replica")} made, ${bytes(repair.bytes_copied)} copied since this leader took over` : "";
    set("repair", repair.counting ? "Counting what lacks copies" : `Nothing to do${done}`);
    return;
  }
  repairBegan = Math.max(repairBegan, repair.bytes_left);
  const parts = [`${counted(repair.under_replicated, "chunk")} left, ${bytes(repair.bytes_left)}`];
  if (repair.in_flight > 0) parts.push(`${counted(repair.in_flight, "copy").replace("copys", "copies")} under way at ${bytes(repair.bytes_per_second)}/s`);
  else parts.push("waiting for somewhere to copy to");
  if (repair.seconds_left !== null && repair.seconds_left !== undefined) parts.push(`about ${span(repair.seconds_left)} to go`);
  set("repair", parts.join("; "));
  const done = repairBegan > 0 ? Math.round(100 * (1 - repair.bytes_left / repairBegan)) : 0;
  progress.hidden = false;
  progress.firstElementChild.style.width = `${done}%`;
  progress.setAttribute("aria-valuenow", String(done));
}

function drawActivity() {
  if (recent.length < 2) return;
  const carried = (what) => {
    const rates = recent.at(-1).status.datanodes.map((node) => nodeRate(node.node, what)).filter((one) => one !== null);
    return rates.reduce((sum, one) => sum + one, 0);
  };
  lines.read.push(carried("read"));
  lines.written.push(carried("written"));
  const changes = rate((sample) => sample.work.mutations.count);
  const questions = rate((sample) => sample.work.queries.count);
  lines.operations.push(changes === null || questions === null ? null : changes + questions);
  const seconds = rate((sample) => sample.work.mutations.seconds);
  lines.latency.push(changes > 0 && seconds !== null ? seconds / changes : null);
}

/** Brings the rows of a table in line with `items`, and keeps those that stay. */
function fill(body, items, key, cells) {
  const old = new globalThis.Map([...body.children].map((row) => [row.dataset.key, row]));
  const rows = items.map((item) => {
    const row = old.get(String(key(item))) || make("tr");
    row.dataset.key = key(item);
    const made = cells(item);
    const said = JSON.stringify(made.map((cell) => cell.outerHTML));
    if (row.dataset.said !== said) {
      row.dataset.said = said;
      row.replaceChildren(...made);
    }
    return row;
  });
  const same = rows.length === body.childElementCount && rows.every((row, index) => body.children[index] === row);
  if (!same) body.replaceChildren(...rows);
}

function cell(className, label, ...children) {
  const element = make("td", className, ...children);
  if (label) element.dataset.label = label;
  return element;
}

function pill(state, text) {
  const element = make("span", "pill", text || state);
  element.dataset.state = state;
  return element;
}

function spaceOf(node) {
  // What others have on the same disks is not ours, and not free either.
  const total = node.used + node.available;
  const meter = make("meter");
  meter.min = 0;
  meter.max = Math.max(total, 1);
  meter.low = 0.85 * meter.max;
  meter.high = 0.95 * meter.max;
  meter.optimum = 0;
  meter.value = node.used;
  meter.setAttribute("aria-label", `${bytes(node.used)} used, ${bytes(node.available)} free`);
  return [`${bytes(node.used)} used, ${bytes(node.available)} free`, meter];
}

function verifiedOf(scrub) {
  if (!scrub) return "–";
  const bad = scrub.found - scrub.mended;
  const found = bad > 0 ? `, ${counted(bad, "bad replica")}` : "";
  if (scrub.left > 0) return `${number(scrub.verified)} of ${number(scrub.verified + scrub.left)}${found}`;
  if (scrub.full_pass_ns > 0) return `${span(Date.now() / 1000 - scrub.full_pass_ns / 1e9)} ago${found}`;
  return `not yet${found}`;
}

function drawDatanodes(status) {
  const live = status.datanodes.filter((node) => node.liveness === "live").length;
  set("datanodes-total", `${number(live)} of ${number(status.datanodes.length)} live`);
  fill(at("datanodes-rows"), status.datanodes, (node) => node.node, (node) => {
    const name = cell("", "", make("span", "name", node.host || `node ${node.node}`), make("span", "sub", `${node.node} · ${node.address}`));
    for (const failed of node.failed) name.append(make("span", "sub trouble", `${failed.path} failed: ${failed.cause}`));
    if (node.rival) name.append(make("span", "sub trouble", `its identity is claimed from ${node.rival} too`));
    const state = cell("state", "", pill(node.liveness));
    if (node.decommissioning) state.append(" ", node.drained ? pill("drained") : pill("leaving"));
    if (node.maintenance_until_ns) state.append(" ", pill("maintenance"));
    if (node.liveness !== "live" && node.liveness !== "unknown") state.append(make("span", "sub", `heard ${span(Math.round(node.last_heard_ms / 1000))} ago`));
    const show = (what) => {
      const value = nodeRate(node.node, what);
      return value === null || node.liveness !== "live" ? "–" : `${bytes(value)}/s`;
    };
    return [
      name, cell("", "rack", node.rack || "–"), state, cell("space", "", ...spaceOf(node)),
      cell("number", "replicas", number(node.replicas)), cell("number", "read", show("read")), cell("number", "written", show("written")),
      cell("check after", "verified", verifiedOf(node.scrub)),
    ];
  });
}

function drawNamenodes(status, here, lastLog) {
  set("namenodes-total", `term ${number(status.term)}; this page comes from namenode ${here.id}`);
  fill(at("namenodes-rows"), status.namenodes, (node) => node.id, (node) => {
    const role = node.leader ? "leader" : node.voter ? "follower" : "learner";
    const up = node.leader || node.reachable;
    const behind = Math.max(lastLog - node.matched, 0);
    return [
      cell("", "", make("span", "name", `namenode ${node.id}`), make("span", "sub", node.address)),
      cell("", "", node.leader ? pill("leader") : role), cell("state", "", pill(up ? "up" : "unreachable")),
      cell("number", "log", number(node.matched)), cell("number", "behind", node.leader ? "–" : counted(behind, "entry").replace("entrys", "entries")),
    ];
  });
}

function draw({ here, sample }) {
  at("main").classList.toggle("stale", Boolean(sample.error));
  if (sample.error) {
    drawVerdict("silent", [sample.error]);
    recent = [];
    Object.values(lines).forEach((line) => line.push(null));
    return;
  }
  const { status } = sample;
  const before = recent.at(-1);
  // Another leader counts from where it began to lead.
  if (before && before.status.term !== status.term) recent = [];
  recent.push({ ...sample, time: performance.now() });
  if (recent.length > WINDOW) recent.shift();
  drawVerdict(status.health, status.reasons);
  set("cluster", `cluster ${status.cluster_id}`);
  drawFigures(status);
  drawChunks(sample);
  drawRepair(status.repair);
  drawActivity();
  drawDatanodes(status);
  drawNamenodes(status, here, sample.last_log);
}

function say(state, text) {
  at("link").dataset.state = state;
  set("link", text);
}

function listen() {
  const events = new EventSource("/events");
  events.addEventListener("message", (event) => {
    say("live", "live");
    draw(JSON.parse(event.data));
  });
  events.addEventListener("error", () => {
    say("lost", "lost, trying again");
    drawVerdict("silent", ["this namenode is silent: what is below is old"], "No answer");
    at("main").classList.add("stale");
    if (events.readyState === EventSource.CLOSED) {
      // Refused for good, as when too many look: the browser does not try again by itself.
      setTimeout(listen, 3000);
    }
  });
}

function redraw() {
  map.draw();
  Object.values(lines).forEach((line) => line.draw());
}

window.addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
listen();
files.open("");
