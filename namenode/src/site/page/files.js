// Files, their chunks, and where those lie.

import { bytes, counted, make, number } from "/format.js";

const crumbs = document.getElementById("crumbs");
const listing = document.getElementById("listing");
const detail = document.getElementById("file");
const ICONS = { directory: "▸", file: "·", link: "→", special: "◦" };

// Names are bytes: a path is kept as it is written in a URL.
let path = "";
// An answer that comes when something else was asked for is of no interest.
let asked = 0;

async function ask(question, parameters) {
  const response = await fetch(`/api/${question}?${parameters}`);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || `the namenode says ${response.status}`);
  return answer;
}

function readable(name) {
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}

function button(className, text, action) {
  const element = make("button", className, text);
  element.type = "button";
  element.addEventListener("click", action);
  return element;
}

function drawCrumbs() {
  const parts = path.split("/").filter(Boolean);
  const items = [button("", "/", () => open(""))];
  parts.forEach((part, index) => {
    if (index > 0) items.push(make("span", "", "/"));
    items.push(button("", readable(part), () => open(`/${parts.slice(0, index + 1).join("/")}`)));
  });
  items.at(-1).setAttribute("aria-current", "page");
  crumbs.replaceChildren(...items);
}

/** Shows a directory. */
export async function open(to) {
  path = to;
  drawCrumbs();
  detail.replaceChildren();
  const mine = ++asked;
  try {
    const answer = await ask("list", `path=${path}`);
    if (mine === asked) drawListing(answer);
  } catch (error) {
    if (mine === asked) listing.replaceChildren(make("p", "quiet", error.message));
  }
}

function drawListing(answer) {
  if (answer.entries.length === 0) {
    listing.replaceChildren(make("p", "quiet", "Nothing is in here yet."));
    return;
  }
  const rows = make("tbody");
  const head = make("thead", "", make("tr", "", make("th", "", "Name"), make("th", "number", "Size"), make("th", "aside-column after", "Changed"), make("th", "number aside-column", "Copies")));
  head.querySelectorAll("th").forEach((cell) => cell.setAttribute("scope", "col"));
  listing.replaceChildren(make("table", "", head, rows));
  addRows(rows, answer);
}

function addRows(rows, answer) {
  for (const entry of answer.entries) {
    const row = make("tr");
    const target = `${path}/${entry.path}`;
    const icon = make("span", "icon", ICONS[entry.kind] || "·");
    icon.setAttribute("aria-hidden", "true");
    const name = entry.kind === "directory" ? `${entry.name}/` : entry.name;
    const act = () => (entry.kind === "directory" ? open(target) : entry.kind === "file" ? openFile(target, entry, row) : undefined);
    const label = button("entry", "", act);
    label.append(icon, name);
    const isFile = entry.kind === "file";
    const changed = new Date(entry.mtime_ms);
    row.append(
      make("td", "", label),
      make("td", "number", isFile ? bytes(entry.size) : ""),
      make("td", "aside-column after quiet", Number.isNaN(changed.getTime()) ? "" : changed.toLocaleString()),
      make("td", "number aside-column", isFile ? String(entry.replication) : ""),
    );
    rows.append(row);
  }
  if (!answer.end) {
    const more = button("more", "Show more", async () => {
      const mine = asked;
      more.disabled = true;
      try {
        const next = await ask("list", `path=${path}&after=${answer.next}`);
        if (mine !== asked) return;
        more.remove();
        addRows(rows, next);
      } catch (error) {
        more.disabled = false;
        more.textContent = `${error.message}; try again`;
      }
    });
    listing.append(more);
  }
}

async function openFile(target, entry, row) {
  const mine = ++asked;
  document.querySelectorAll("tr[data-open]").forEach((other) => other.removeAttribute("data-open"));
  row.setAttribute("data-open", "");
  try {
    const answer = await ask("file", `path=${target}`);
    if (mine !== asked) return;
    drawFile(entry, answer);
  } catch (error) {
    if (mine === asked) detail.replaceChildren(make("p", "quiet", error.message));
  }
}

function drawFile(entry, answer) {
  const heading = make("h3", "", `${entry.name}: ${bytes(answer.size)} in ${counted(answer.chunks.length, "chunk")}${answer.end ? "" : ", and more"}`);
  const chunks = answer.chunks.map((chunk) => {
    const places = chunk.replicas.map((replica) => {
      const pill = make("span", "pill", `${replica.host || `node ${replica.node}`}${replica.rack ? ` · ${replica.rack}` : ""}`);
      pill.dataset.state = replica.bad ? "dead" : replica.liveness;
      pill.title = `datanode ${replica.node} at ${replica.address}, ${replica.bad ? "bad" : replica.liveness}`;
      if (replica.bad || replica.liveness !== "live") pill.append(` (${replica.bad ? "bad" : replica.liveness})`);
      return pill;
    });
    if (places.length === 0) places.push(make("span", "pill", "no copy"));
    const used = chunk.pieces.reduce((sum, piece) => sum + piece[1], 0);
    const what = make("div", "", make("span", "name", `chunk ${number(chunk.chunk)}`));
    what.append(make("span", "sub", `${bytes(used)} of ${bytes(chunk.length)}${chunk.sealed ? "" : ", being written"}`));
    return make("div", "chunk", what, make("div", "places", ...places, make("span", "quiet", `wants ${chunk.wanted}`)));
  });
  if (chunks.length === 0) chunks.push(make("p", "quiet", "It is empty, or a hole from end to end."));
  detail.replaceChildren(heading, ...chunks);
}
