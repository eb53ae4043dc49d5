// What is shown of the gateway beside its services.

import * as dialogs from "/dialogs.js";
import { byId, fields, fill, list, mark, say, show, tell } from "/dom.js";
import * as format from "/format.js";

export function showBoard(view) {
  head(view);
  alerts(view);
  list(byId("silences"), view.silences, keyOf, "t-silence", (node, one) => silence(node, one, view.at));
  list(byId("listeners"), view.listeners, (one) => one.name, "t-listener", listener);
  workers(view);
  discovery(view);
  ages(view.ages);
}

function head(view) {
  const { totals } = view;
  say(byId("version"), view.version);
  mark(byId("state"), "state", view.state);
  say(byId("state"), view.state);
  say(byId("about"), [location.host, `up ${format.duration(view.at - view.since)}`, `process ${view.pid}`].join(" · "));
  say(byId("footer"), `Configuration: ${view.config}`);
  say(byId("connections"), format.count(totals.connections));
  say(byId("rate"), format.rate(totals.rate));
  say(byId("failed"), format.rate(totals.failed_rate));
  mark(byId("failed"), "bad", format.many(totals.failed_rate, totals.rate) ? "yes" : "no");
  say(byId("in-flight"), format.count(totals.in_flight));
  say(byId("bytes-in"), `${format.bytes(totals.bytes_in_rate)}/s`);
  say(byId("bytes-out"), `${format.bytes(totals.bytes_out_rate)}/s`);
  const accepting = view.workers.filter((one) => one.state === "accepting").length;
  say(byId("workers-count"), accepting === view.workers.length ? accepting : `${accepting} of ${view.workers.length}`);
}

// ---- alerts ----

// Beyond, one cause has many names, and the first of them say enough.
const MOST_ALERTS = 30;
const ORDER = { firing: 0, pending: 1, resolved: 2 };
const keyOf = (one) => JSON.stringify([one.alert, ...Object.entries(one.labels).sort()]);
let told = new Map();

function alerts(view) {
  const rank = (one) => ORDER[one.state] * 2 + (one.severity === "critical" ? 0 : 1);
  const sorted = [...view.alerts].sort((a, b) => rank(a) - rank(b) || b.since - a.since);
  const firing = sorted.filter((one) => one.state === "firing");
  say(byId("alerts-count"), firing.length);
  mark(byId("alerts-count"), "bad", firing.length ? "yes" : "no");
  show(byId("no-alerts"), !sorted.length);
  show(byId("more-alerts"), sorted.length > MOST_ALERTS);
  say(byId("more-alerts"), `And ${format.plural(sorted.length - MOST_ALERTS, "more", "more")}.`);
  list(byId("alerts"), sorted.slice(0, MOST_ALERTS), keyOf, "t-alert", (node, one) => alert(node, one, view.at));
  announce(sorted);
  document.title = firing.length ? `(${firing.length}) tcpgw` : "tcpgw";
}

/** Say each change once, for who does not see the list. */
function announce(sorted) {
  const now = new Map(sorted.map((one) => [keyOf(one), one.state]));
  const changed = sorted.filter((one) => one.state !== "pending" && told.get(keyOf(one)) !== one.state);
  if (changed.length) {
    say(byId("announcer"), changed.slice(0, 3).map((one) => `${one.state}: ${one.summary}`).join(". "));
  }
  told = now;
}

function alert(node, one, now) {
  const parts = fields(node);
  node.of = one;
  mark(node, "state", one.state);
  mark(parts.severity, "state", one.state === "firing" ? one.severity : one.state);
  say(parts.severity, one.state === "firing" ? one.severity : one.state);
  say(parts.summary, one.summary);
  const labels = Object.entries(one.labels).map(([name, value]) => `${name} ${value}`);
  const age = format.duration(now - one.since);
  say(parts.about, [one.alert, ...labels, one.state === "resolved" ? `${age} ago` : `for ${age}`].join(" · "));
  tell(parts.hint, one.state === "resolved" ? "" : one.hint);
  const silent = one.silenced_until != null && one.silenced_until > now;
  say(parts.silenced, silent ? `silent until ${format.clock(one.silenced_until)}` : "");
  show(parts.button, silent || one.state !== "resolved");
  mark(parts.button, "act", silent ? "unsilence" : "silence");
  say(parts.button, silent ? "Unsilence" : "Silence");
  const label = `${silent ? "Unsilence" : "Silence"} ${one.summary}`;
  if (parts.button.ariaLabel !== label) parts.button.ariaLabel = label;
}

function silence(node, one, now) {
  const parts = fields(node);
  node.of = one;
  const labels = Object.entries(one.labels).map(([name, value]) => `${name} ${value}`);
  const name = [one.alert === "*" ? "All alerts" : one.alert, ...labels].join(" · ");
  say(parts.name, name);
  say(parts.about, [`ends in ${format.duration(one.until - now)}`, one.comment].filter(Boolean).join(" · "));
  const label = `End the silence of ${name}`;
  if (parts.button.ariaLabel !== label) parts.button.ariaLabel = label;
}

byId("silences").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) dialogs.endSilence(button.closest("li").of);
});

byId("alerts").addEventListener("click", (event) => {
  const button = event.target.closest("button[data-act]");
  if (!button) return;
  const one = button.closest("li").of;
  if (button.dataset.act === "unsilence") dialogs.unsilence(one);
  else dialogs.silence(one);
});

// ---- listeners ----

function listener(node, one) {
  const parts = fields(node);
  say(parts.name, one.name);
  say(parts.address, one.address ?? "removed; its connections drain");
  const figures = [`${one.mode}`, format.plural(one.active, "connection"), `${format.rate(one.accepted_rate)} accepted`];
  if (one.denied_rate > 0) figures.push(`${format.rate(one.denied_rate)} denied`);
  say(parts.figures, figures.join(" · "));
  list(parts.split, one.split, (part) => part.service, "t-split", split);
}

function split(node, part) {
  const parts = fields(node);
  say(parts.service, part.service);
  fill(parts["seen-bar"], part.seen);
  const left = `${(part.asked * 100).toFixed(1)}%`;
  if (parts["asked-mark"].style.left !== left) parts["asked-mark"].style.left = left;
  say(parts.text, `asked ${format.percent(part.asked)}, seen ${format.percent(part.seen)}`);
}

// ---- workers ----

function workers(view) {
  list(byId("workers"), view.workers, (one) => one.pid, "t-worker", worker);
  const notes = [];
  if (view.worker_deaths) notes.push(`${format.plural(view.worker_deaths, "worker")} died since the start: see the log.`);
  if (view.overload.active) notes.push(`${format.plural(view.overload.active, "worker")} turned new work away just now.`);
  if (view.overload.times) {
    notes.push(`Overloaded ${format.plural(view.overload.times, "time")}; ${format.count(view.overload.shed)} turned away.`);
  }
  say(byId("workers-note"), notes.join(" "));
}

function worker(node, one) {
  const parts = fields(node);
  say(parts.name, `${one.worker} (${one.pid})`);
  mark(parts.state, "state", one.state);
  say(parts.state, one.state);
  say(parts.connections, format.count(one.connections));
  say(parts.cpu, format.percent(one.cpu));
  say(parts.memory, format.mebibytes(one.memory));
  say(parts.lag, format.time(one.lag));
}

// ---- discovery ----

function discovery(view) {
  show(byId("clouds"), view.clouds.length > 0);
  list(byId("clouds"), view.clouds, (one) => one.name, "t-cloud", cloud);
  list(byId("discovery"), view.services, (one) => one.name, "t-discovery", (node, service) => {
    const parts = fields(node);
    const { type, calls, errors, answered_at: at, last_error: last } = service.discovery;
    say(parts.name, service.name);
    say(parts.type, type);
    say(parts.answered, at == null ? "never" : `${format.duration(view.at - at)} ago`);
    say(parts.calls, format.count(calls));
    say(parts.errors, format.count(errors));
    say(parts.error, last);
    show(parts.error, Boolean(last));
  });
}

function cloud(node, one) {
  const parts = fields(node);
  say(parts.name, one.name);
  fill(parts.bar, one.budget ? one.left / one.budget : 0);
  say(parts.text, `${format.count(one.left)} of ${one.budget} calls a minute left`);
  say(parts.paused, one.paused > 0 ? `paused for ${format.duration(one.paused)} by the cloud` : "");
}

// ---- ages ----

function ages(buckets) {
  const all = buckets.reduce((sum, one) => sum + one.connections, 0);
  const named = buckets.map((one, index) => ({
    ...one,
    name: one.up_to != null ? `up to ${format.duration(one.up_to)}` : index ? `more than ${format.duration(buckets[index - 1].up_to)}` : "any",
    share: all ? one.connections / all : 0,
  }));
  list(byId("ages"), named, (one) => one.name, "t-age", (node, one) => {
    const parts = fields(node);
    say(parts.name, one.name);
    fill(parts.bar, one.share);
    say(parts.text, format.count(one.connections));
  });
}
