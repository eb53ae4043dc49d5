// A card for each service: its figures, its charts, its endpoints with the sick ones first.

import { Chart } from "/chart.js";
import * as dialogs from "/dialogs.js";
import { byId, fields, fill, list, mark, nodeOf, say, show } from "/dom.js";
import * as format from "/format.js";

// Rows that are shown before somebody asks for all. Where there are many services, fewer of each.
const ROWS = 50;
const ROWS_OF_MANY = 8;
const MANY_SERVICES = 6;
const FILTER_FROM = 8;

// The worst first.
const STATES = ["unhealthy", "ejected", "trial", "draining", "unknown", "healthy"];
const rank = new Map(STATES.map((state, index) => [state, index]));

const CHARTS = {
  rate: ["Rate", [["rate", "", "accent"]], format.rate, 1],
  failed: ["Failed", [["failed", "", "bad"]], format.rate, 1],
  latency: [
    "Latency",
    [["p50", "p50", "good"], ["p90", "p90", "accent"], ["p99", "p99", "warn"]],
    format.time,
    0.001,
  ],
};

// What the percentiles are of, by the view's latency_of.
const TIMES = {
  request: ["Latency", "From a request to its answer"],
  connect: ["Connect time", "Until an instance has taken the connection; requests are not seen here"],
};

const cards = new WeakMap();

export function showServices(view, history) {
  const rows = view.services.length > MANY_SERVICES ? ROWS_OF_MANY : ROWS;
  list(byId("service-list"), view.services, (one) => one.name, "t-service", (node, service) => {
    card(node).update(service, history.of(service.name), rows);
  });
}

function card(node) {
  if (!cards.has(node)) cards.set(node, new Card(node));
  return cards.get(node);
}

class Card {
  #all = false;

  constructor(node) {
    this.parts = fields(node);
    this.charts = Object.entries(CHARTS).map(([name, made]) => [name, new Chart(...made)]);
    this.parts.charts.append(...this.charts.map(([, chart]) => chart.node));
    this.parts.search.addEventListener("input", () => this.#endpoints());
    this.parts.all.addEventListener("click", () => {
      this.#all = !this.#all;
      this.#endpoints();
    });
    this.parts.endpoints.addEventListener("click", (event) => this.#clicked(event));
  }

  update(service, history, rows) {
    this.service = service;
    this.rows = rows;
    this.#head();
    this.#endpoints();
    for (const [name, chart] of this.charts) {
      if (name === "latency") chart.call(...TIMES[service.latency_of]);
      chart.draw(history);
    }
  }

  #head() {
    const { service, parts } = this;
    say(parts.name, service.name);
    say(parts.version, service.version);
    show(parts.version, Boolean(service.version));
    show(parts.panic, service.panic);
    say(parts.summary, summary(service));
    say(parts["rate-name"], service.latency_of === "request" ? "Requests" : "Connections");
    say(parts.rate, format.rate(service.rate));
    say(parts.failed, format.rate(service.failed_rate));
    mark(parts.failed, "bad", format.many(service.failed_rate, service.rate) ? "yes" : "no");
    say(parts.in_flight, format.count(service.in_flight));
    say(parts.bytes_in, `${format.bytes(service.bytes_in_rate)}/s`);
    say(parts.bytes_out, `${format.bytes(service.bytes_out_rate)}/s`);
    say(parts.imbalance, service.imbalance == null ? "–" : `× ${service.imbalance.toFixed(2)}`);
  }

  #endpoints() {
    const { service, parts } = this;
    const wanted = parts.search.value.trim().toLowerCase();
    const sorted = sickFirst(service.endpoints);
    const matching = wanted ? sorted.filter((one) => `${one.endpoint} ${one.state} ${one.override ?? ""}`.includes(wanted)) : sorted;
    const shown = this.#all ? matching : this.#first(matching);
    list(parts.endpoints, shown, (one) => one.endpoint, "t-endpoint", row);
    show(parts.filter, service.endpoints.length > FILTER_FROM);
    say(parts["filter-label"], `Filter the endpoints of ${service.name}`);
    parts.search.setAttribute("aria-label", `Filter the endpoints of ${service.name}`);
    say(parts.shown, `${format.count(shown.length)} of ${format.plural(service.endpoints.length, "endpoint")}, sick first`);
    show(parts.all, matching.length > this.rows);
    say(parts.all, this.#all ? "Show fewer" : `Show all ${format.count(matching.length)}`);
    show(parts.none, !shown.length);
    say(parts.none, wanted ? "No endpoint fits the filter." : "Discovery has named no endpoint yet.");
  }

  /** The first ones, and that which has the focus: it must not go away under somebody's hands. */
  #first(endpoints) {
    return endpoints.filter((one, index) => {
      if (index < this.rows) return true;
      return nodeOf(this.parts.endpoints, one.endpoint)?.contains(document.activeElement) ?? false;
    });
  }

  #clicked(event) {
    const button = event.target.closest("button[data-act]");
    const address = button && fields(button.closest("tr")).endpoint.textContent;
    const endpoint = this.service.endpoints.find((one) => one.endpoint === address);
    if (!endpoint) return;
    const given = endpoint.given_weight;
    if (button.dataset.act === "weight") dialogs.weigh(this.service.name, endpoint);
    else if (button.dataset.act === "reset") dialogs.reset(this.service.name, address, given);
    else if (button.dataset.act === "undrain") dialogs.undrain(this.service.name, address, given);
    else dialogs.drain(this.service.name, address);
  }
}

function sickFirst(endpoints) {
  const place = new Map(endpoints.map((one, index) => [one, index]));
  return [...endpoints].sort((a, b) => (rank.get(a.state) ?? 0) - (rank.get(b.state) ?? 0) || place.get(a) - place.get(b));
}

function summary(service) {
  const counts = new Map();
  for (const one of service.endpoints) counts.set(one.state, (counts.get(one.state) ?? 0) + 1);
  const states = STATES.filter((state) => counts.has(state)).map((state) => `${format.count(counts.get(state))} ${state}`);
  const { version, age } = service.snapshot ?? {};
  const snapshot = version == null ? "no snapshot yet" : `snapshot ${version}, unchanged for ${format.duration(age)}`;
  return [...states, snapshot].join(" · ");
}

function row(node, one) {
  const parts = fields(node);
  say(parts.endpoint, one.endpoint);
  mark(node, "state", one.state);
  mark(parts.state, "state", one.state);
  say(parts.state, one.state);
  say(parts.weight, format.count(one.weight));
  say(parts.given, one.override ? `by hand, of ${one.given_weight}` : "");
  say(parts.in_flight, format.count(one.in_flight));
  say(parts.rate, format.rate(one.rate));
  fill(parts.bar, one.share);
  say(parts.share, format.percent(one.share));
  say(parts.failures, format.count(one.failures));
  say(parts.why, one.why);
  const word = { drained: "Undrain", weight: "Reset" }[one.override] ?? "Drain";
  mark(parts.drain, "act", word.toLowerCase());
  say(parts.drain, word);
  label(parts.drain, `${word} ${one.endpoint}`);
  label(parts.edit, `Weight of ${one.endpoint}`);
}

function label(button, text) {
  if (button.ariaLabel !== text) button.ariaLabel = text;
}
