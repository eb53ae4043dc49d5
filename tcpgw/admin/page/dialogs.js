// Every change is confirmed, and says first what it will do. The dialog stays where the gateway refuses.

import { act, Refused } from "/gateway.js";
import { byId, say, show, tell } from "/dom.js";

const dialog = byId("dialog");
let pending = null;

byId("dialog-cancel").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => (pending = null));
byId("dialog-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (pending) perform(pending);
  else dialog.close();
});

function open({ title, text, button, body, name, done, none = "", field = "" }) {
  say(byId("dialog-title"), title);
  say(byId("dialog-text"), text);
  say(byId("dialog-do"), button);
  tell(byId("dialog-error"), "");
  say(byId("dialog-cancel"), "Cancel");
  show(byId("dialog-do"), true);
  show(byId("dialog-result"), false);
  show(byId("field-weight"), field === "weight");
  show(byId("field-silence"), field === "silence");
  byId("weight").required = field === "weight";
  pending = { name, body, done, none };
  dialog.showModal();
  const first = { weight: byId("weight"), silence: byId("seconds") }[field] ?? byId("dialog-do");
  first.focus();
  if (field === "weight") first.select();
}

async function perform(asked) {
  const button = byId("dialog-do");
  button.disabled = true;
  tell(byId("dialog-error"), "");
  try {
    const result = await act(asked.name, asked.body());
    if (pending === asked) finish(asked, result);
  } catch (error) {
    const told = error instanceof Refused ? error.message : "no answer from the gateway: see whether it was done";
    tell(byId("dialog-error"), told);
  } finally {
    button.disabled = false;
  }
}

function finish(asked, result) {
  if (asked.name === "reload") return lines(result);
  if (asked.name === "unsilence" && !result) return tell(byId("dialog-error"), asked.none);
  dialog.close();
  toast(asked.done);
}

function lines(result) {
  const changes = Array.isArray(result) && result.length ? result.map(String) : ["nothing differs"];
  byId("dialog-result").replaceChildren(
    ...changes.map((change) => Object.assign(document.createElement("li"), { textContent: change })),
  );
  show(byId("dialog-result"), true);
  show(byId("dialog-do"), false);
  say(byId("dialog-text"), "The configuration in force is that of the file now.");
  say(byId("dialog-cancel"), "Close");
  byId("dialog-cancel").focus();
  pending = null;
}

let hiding = 0;

export function toast(text) {
  say(byId("toast"), text);
  clearTimeout(hiding);
  hiding = setTimeout(() => say(byId("toast"), ""), 6000);
}

// ---- what can be asked for ----

export function drain(service, endpoint) {
  open({
    title: `Drain ${endpoint}?`,
    text:
      `It gets nothing new of ${service}. Connections that it has go on, but requests of rpc listeners that take more ` +
      "than 30 s are cut. Undrain gives it back its weight.",
    button: "Drain",
    name: "drain",
    body: () => ({ endpoint, service }),
    done: `${endpoint} gets nothing new`,
  });
}

export function undrain(service, endpoint, given) {
  open({
    title: `Give ${endpoint} its share of ${service} again?`,
    text: `It has the weight that was given by hand, where one was, else that of discovery, ${given}.`,
    button: "Give it back",
    name: "undrain",
    body: () => ({ endpoint, service }),
    done: `${endpoint} is no longer drained`,
  });
}

export function reset(service, endpoint, given) {
  open({
    title: `Reset the weight of ${endpoint}?`,
    text: `It gets the weight that discovery says, ${given}, and its share of ${service} with it.`,
    button: "Reset",
    name: "weight",
    body: () => ({ endpoint, service, weight: null }),
    done: `${endpoint} has the weight of discovery again`,
  });
}

export function weigh(service, one) {
  const { endpoint, weight, given_weight: given } = one;
  // 0 is no weight to give: discovery's is the nearest to what is meant.
  byId("weight").value = weight || given || 1;
  const until = one.override === "drained" ? "It is drained, and has it when it is undrained." : "It holds until it is reset.";
  open({
    title: `Weight of ${endpoint}`,
    text: `Relative to the other endpoints of ${service}; discovery says ${given}. ${until}`,
    button: "Set weight",
    field: "weight",
    name: "weight",
    body: () => ({ endpoint, service, weight: byId("weight").valueAsNumber }),
    done: `${endpoint} has another weight`,
  });
}

export function silence(alert) {
  byId("comment").value = "";
  open({
    title: `Silence ${alert.alert}?`,
    text: `${alert.summary}. No notices are sent of it meanwhile; it stays on this page.`,
    button: "Silence",
    field: "silence",
    name: "silence",
    body: () => ({
      alert: alert.alert,
      labels: alert.labels,
      seconds: Number(byId("seconds").value),
      comment: byId("comment").value,
    }),
    done: `${alert.alert} is silent`,
  });
}

export function unsilence(alert) {
  open({
    title: `Let ${alert.alert} speak again?`,
    text: `${alert.summary}. Notices are sent of it again.`,
    button: "Unsilence",
    name: "unsilence",
    body: () => ({ alert: alert.alert, labels: alert.labels }),
    done: `${alert.alert} is not silent any more`,
    none: "No silence is of this alert alone: end the wider one, below the alerts.",
  });
}

export function endSilence(silence) {
  const { alert, labels, comment } = silence;
  const all = Object.keys(labels).length ? "" : ` All silences of ${alert} end, those with labels too.`;
  open({
    title: `End the silence of ${alert}?`,
    text: `${comment ? `It was for: ${comment}. ` : ""}Notices are sent again.${all}`,
    button: "End it",
    name: "unsilence",
    body: () => ({ alert, labels }),
    done: `The silence of ${alert} has ended`,
    none: "It has ended already.",
  });
}

export function reload(file) {
  open({
    title: "Reload the configuration?",
    text: `${file || "Its file"} is read again. Where it is not right, the one in force stays.`,
    button: "Reload",
    name: "reload",
    body: () => ({}),
    done: "",
  });
}
