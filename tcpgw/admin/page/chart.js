// Small charts of the last five minutes, drawn on canvas while they are in sight.

import { clock } from "/format.js";
import { say } from "/dom.js";

const SPAN = 300;
// Seconds without a point that are a gap in the line.
const GAP = 5;
const HEIGHT = 84;
const SERIES = ["rate", "failed", "p50", "p90", "p99"];

/** What is known of each service's last minutes. */
export class History {
  #services = new Map();

  replace(charts) {
    this.#services = new Map(Object.entries(charts));
  }

  append(view) {
    for (const service of view.services) {
      const known = this.of(service.name);
      if (known.at.length && known.at.at(-1) >= view.at) continue;
      known.at.push(view.at);
      known.rate.push(service.rate);
      known.failed.push(service.failed_rate);
      for (const name of ["p50", "p90", "p99"]) known[name].push(service[name]);
      const old = known.at.findIndex((at) => at >= view.at - SPAN);
      if (old > 0) for (const name of ["at", ...SERIES]) known[name].splice(0, old);
    }
  }

  of(name) {
    if (!this.#services.has(name)) {
      this.#services.set(name, { at: [], rate: [], failed: [], p50: [], p90: [], p99: [] });
    }
    return this.#services.get(name);
  }
}

const colours = new Map();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => colours.clear());

function colour(name) {
  if (!colours.has(name)) {
    colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  }
  return colours.get(name);
}

/** The next of 1, 2, 5, 10, …: a scale that changes seldom. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

export class Chart {
  #canvas = document.createElement("canvas");
  #values = [];
  #name = document.createElement("span");
  #pointer = null;
  #seen = true;
  #history = null;

  /** `lines` are [series, its name, a colour]; `write` formats a value; `least` is the smallest scale. */
  constructor(title, lines, write, least) {
    this.lines = lines;
    this.write = write;
    this.least = least;
    this.node = document.createElement("figure");
    this.node.append(this.#caption(), this.#canvas);
    this.call(title);
    this.#canvas.setAttribute("role", "img");
    this.#canvas.addEventListener("pointermove", (event) => this.#point(event.offsetX));
    this.#canvas.addEventListener("pointerleave", () => this.#point(null));
    new IntersectionObserver(([entry]) => {
      this.#seen = entry.isIntersecting;
      if (this.#seen) this.draw();
    }).observe(this.#canvas);
    new ResizeObserver(() => this.draw()).observe(this.node);
  }

  /** Give it another title, and what is shown of it to who points at that. */
  call(title, about = "") {
    this.title = title;
    say(this.#name, title);
    if (this.#name.title !== about) this.#name.title = about;
  }

  #caption() {
    const caption = document.createElement("figcaption");
    this.when = document.createElement("span");
    this.when.className = "when";
    caption.append(this.#name, this.when);
    for (const [, label, hue] of this.lines) {
      const legend = document.createElement("span");
      legend.className = `legend ${hue}`;
      const value = document.createElement("b");
      legend.append(label, " ", value);
      caption.append(legend);
      this.#values.push(value);
    }
    return caption;
  }

  #point(x) {
    this.#pointer = x;
    this.draw();
  }

  draw(history = this.#history) {
    this.#history = history;
    if (!history) return;
    const at = history.at;
    const now = at.at(-1) ?? 0;
    const width = this.#canvas.clientWidth;
    const index = this.#index(at, now, width);
    this.#label(history, index);
    if (!this.#seen || !width) return;
    const context = this.#fitted(width);
    const top = ceiling(Math.max(this.least, ...this.lines.map(([series]) => greatest(history[series]))));
    this.#scale(context, width, top);
    const x = (time) => ((time - now + SPAN) / SPAN) * width;
    const y = (value) => HEIGHT - 1.5 - (value / top) * (HEIGHT - 18);
    for (const [series, , hue] of [...this.lines].reverse()) {
      line(context, at, history[series], x, y, colour(hue), this.lines.length === 1);
    }
    if (this.#pointer !== null && index !== null) {
      context.fillStyle = colour("muted");
      context.fillRect(x(at[index]), 0, 1, HEIGHT);
    }
  }

  #index(at, now, width) {
    if (!at.length) return null;
    if (this.#pointer === null || !width) return at.length - 1;
    const wanted = now - SPAN + (this.#pointer / width) * SPAN;
    const found = at.findIndex((time) => time >= wanted);
    return found < 0 ? at.length - 1 : found;
  }

  #label(history, index) {
    const texts = this.lines.map(([series]) => this.write(index === null ? null : history[series][index]));
    texts.forEach((text, number) => say(this.#values[number], text));
    say(this.when, this.#pointer !== null && index !== null ? `at ${clock(history.at[index])}` : "last 5 min");
    if (this.#pointer === null) {
      const said = `${this.title} of the last 5 minutes; now ${this.lines.map(([, name], n) => `${name} ${texts[n]}`).join(", ")}`;
      if (this.#canvas.ariaLabel !== said) this.#canvas.ariaLabel = said;
    }
  }

  #fitted(width) {
    const ratio = devicePixelRatio || 1;
    if (this.#canvas.width !== Math.round(width * ratio)) {
      this.#canvas.width = Math.round(width * ratio);
      this.#canvas.height = HEIGHT * ratio;
    }
    const context = this.#canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, HEIGHT);
    return context;
  }

  #scale(context, width, top) {
    context.fillStyle = colour("line");
    for (const level of [0, 0.5, 1]) context.fillRect(0, Math.round(HEIGHT - 1 - level * (HEIGHT - 18)), width, 1);
    context.fillStyle = colour("muted");
    context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    context.fillText(this.write(top), 0, 12);
  }
}

function greatest(values) {
  let most = 0;
  for (const value of values) if (value > most) most = value;
  return most;
}

function line(context, at, values, x, y, stroke, filled) {
  context.strokeStyle = context.fillStyle = stroke;
  context.lineWidth = 1.5;
  context.lineJoin = "round";
  let from = 0;
  for (let i = 0; i <= at.length; i++) {
    const broken = i === at.length || values[i] == null || (i > from && at[i] - at[i - 1] > GAP);
    if (!broken) continue;
    if (i > from) stretch(context, at, values, from, i, x, y, filled);
    from = i < at.length && values[i] != null ? i : i + 1;
  }
}

function stretch(context, at, values, from, to, x, y, filled) {
  context.beginPath();
  for (let i = from; i < to; i++) context.lineTo(x(at[i]), y(values[i]));
  if (to - from === 1) context.lineTo(x(at[from]) + 1, y(values[from]));
  context.stroke();
  if (!filled) return;
  context.lineTo(x(at[to - 1]), HEIGHT);
  context.lineTo(x(at[from]), HEIGHT);
  context.globalAlpha = 0.1;
  context.fill();
  context.globalAlpha = 1;
}
