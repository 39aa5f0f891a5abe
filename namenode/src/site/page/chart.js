// What was pushed over the last minutes, as a line; and the map of chunks.

import { counted, number } from "/format.js";

/** Samples that a line shows: one a second. */
const LENGTH = 300;

/** From the worst to the harmless, as the leader counts them. */
export const KINDS = [
  ["missing", "no copy in reach"],
  ["last", "one copy left"],
  ["few", "too few copies"],
  ["whole", "whole"],
  ["many", "too many copies"],
  ["open", "being written"],
];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Prepares a canvas for its size on the screen. */
function drawing(canvas, height) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return [pen, width];
}

/** A line over time. */
export class Line {
  constructor(name, show) {
    this.canvas = document.getElementById(`chart-${name}`);
    this.now = document.getElementById(`now-${name}`);
    this.show = show;
    this.values = [];
    this.label = this.canvas.getAttribute("aria-label");
    this.canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.at = null;
  }

  /** The next value; null where it is not known. */
  push(value) {
    this.values.push(value);
    if (this.values.length > LENGTH) this.values.shift();
    this.draw();
  }

  point(x) {
    this.at = x;
    this.draw();
  }

  draw() {
    if (this.canvas.clientWidth === 0) return;
    const height = 64;
    const [pen, width] = drawing(this.canvas, height);
    const known = this.values.filter((value) => value !== null);
    const most = Math.max(...known, 0);
    const x = (index) => width - 2 - ((this.values.length - 1 - index) * (width - 4)) / (LENGTH - 1);
    const y = (value) => height - 4 - (most > 0 ? (value / most) * (height - 10) : 0);
    pen.strokeStyle = colour("line");
    pen.beginPath();
    pen.moveTo(0, height - 3.5);
    pen.lineTo(width, height - 3.5);
    pen.stroke();
    pen.lineWidth = 1.75;
    pen.lineJoin = "round";
    pen.strokeStyle = colour("moss");
    let begun = null;
    const close = (last) => {
      pen.stroke();
      pen.lineTo(x(last), height - 4);
      pen.lineTo(x(begun), height - 4);
      pen.globalAlpha = 0.14;
      pen.fillStyle = colour("moss");
      pen.fill();
      pen.globalAlpha = 1;
      begun = null;
    };
    this.values.forEach((value, index) => {
      if (value === null) {
        if (begun !== null) close(index - 1);
      } else if (begun === null) {
        begun = index;
        pen.beginPath();
        pen.moveTo(x(index), y(value));
      } else {
        pen.lineTo(x(index), y(value));
      }
    });
    if (begun !== null) close(this.values.length - 1);
    let chosen = this.values.length - 1;
    if (this.at !== null && this.values.length > 0) {
      const back = Math.round(((width - 2 - this.at) * (LENGTH - 1)) / (width - 4));
      chosen = Math.min(Math.max(this.values.length - 1 - back, 0), this.values.length - 1);
    }
    const value = this.values[chosen];
    if (value !== null && value !== undefined) {
      pen.fillStyle = colour("moss");
      pen.beginPath();
      pen.arc(Math.min(x(chosen), width - 4), y(value), 2.75, 0, 7);
      pen.fill();
    }
    const ago = this.values.length - 1 - chosen;
    const said = value === null || value === undefined ? "–" : this.show(value);
    this.now.textContent = ago > 0 ? `${said}, ${ago} s ago` : said;
    this.canvas.setAttribute("aria-label", `${this.label}: ${said} now, at most ${this.show(most)} in five minutes`);
  }
}

/** Every chunk, in stretches of ids; a cell is coloured by the worst that is in it. */
export class Map {
  constructor() {
    this.canvas = document.getElementById("map");
    this.text = document.getElementById("map-text");
    this.stretches = [];
    this.width = 1;
    this.first = 0;
    this.chosen = null;
    this.canvas.addEventListener("pointermove", (event) => this.choose(this.cellAt(event.offsetX, event.offsetY)));
    this.canvas.addEventListener("pointerleave", () => this.choose(null));
    this.canvas.addEventListener("blur", () => this.choose(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  update(stretches, width) {
    // No chunk has the id 0: a cell of its own would always be empty.
    this.first = width === 1 ? 1 : 0;
    this.stretches = stretches.slice(this.first);
    this.width = width;
    this.draw();
  }

  totals() {
    return KINDS.map((_, kind) => this.stretches.reduce((sum, stretch) => sum + stretch[kind], 0));
  }

  layout() {
    const across = Math.max(this.canvas.clientWidth, 1);
    const count = this.stretches.length;
    let size = 22;
    while (size > 9 && Math.ceil(count / Math.floor(across / size)) > 6) size -= 1;
    const columns = Math.max(Math.floor(across / size), 1);
    return { size: across / columns, columns, rows: Math.max(Math.ceil(count / columns), 1) };
  }

  draw() {
    if (this.canvas.clientWidth === 0) return;
    const { size, columns, rows } = this.layout();
    const [pen] = drawing(this.canvas, Math.ceil(rows * size));
    const gap = size > 12 ? 3 : 2;
    const colours = KINDS.map(([kind]) => colour(kind));
    const empty = colour("track");
    this.stretches.forEach((stretch, index) => {
      const x = (index % columns) * size;
      const y = Math.floor(index / columns) * size;
      const side = size - gap;
      const all = stretch.reduce((sum, count) => sum + count, 0);
      pen.save();
      pen.beginPath();
      pen.roundRect(x, y, side, side, Math.min(4, side / 3));
      pen.clip();
      pen.fillStyle = empty;
      pen.fillRect(x, y, side, side);
      // The worst from below, and never so little of it that it is not seen.
      let at = y + side;
      stretch.forEach((count, kind) => {
        if (count === 0) return;
        const part = kind < 3 ? Math.max((side * count) / all, side * 0.3) : (side * count) / all;
        pen.fillStyle = colours[kind];
        pen.fillRect(x, at - part, side, part + 0.5);
        at -= part;
      });
      pen.restore();
      if (index === this.chosen) {
        pen.strokeStyle = colour("text");
        pen.lineWidth = 1.5;
        pen.beginPath();
        pen.roundRect(x, y, side, side, Math.min(4, side / 3));
        pen.stroke();
      }
    });
    this.tell();
  }

  cellAt(x, y) {
    const { size, columns } = this.layout();
    const column = Math.floor(x / size);
    const index = Math.floor(y / size) * columns + column;
    return column < columns && index >= 0 && index < this.stretches.length ? index : null;
  }

  key(event) {
    const { columns } = this.layout();
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (!step || this.stretches.length === 0) return;
    event.preventDefault();
    const next = this.chosen === null ? 0 : this.chosen + step;
    this.choose(Math.min(Math.max(next, 0), this.stretches.length - 1));
  }

  choose(index) {
    if (index === this.chosen) return;
    this.chosen = index;
    this.draw();
  }

  tell() {
    const totals = this.totals();
    const all = totals.reduce((sum, count) => sum + count, 0);
    const bad = totals[0] + totals[1] + totals[2];
    this.canvas.setAttribute("aria-label", `Map of ${counted(all, "chunk")}, ${number(bad)} of them with too few good copies. Arrow keys go through it.`);
    const stretch = this.chosen === null ? null : this.stretches[this.chosen];
    const each = this.width === 1 ? "a cell is a chunk" : `a cell is ${number(this.width)} chunk ids`;
    let said = this.stretches.length > 0 ? each : "";
    if (stretch) {
      const first = (this.chosen + this.first) * this.width;
      const ids = this.width === 1 ? `chunk ${first}` : `chunks ${number(first)} to ${number(first + this.width - 1)}`;
      const parts = KINDS.flatMap(([, words], kind) => (stretch[kind] > 0 ? [`${number(stretch[kind])} ${words}`] : []));
      said = `${ids}: ${parts.join(", ") || "deleted or empty"}`;
    }
    if (this.text.textContent !== said) this.text.textContent = said;
  }
}
