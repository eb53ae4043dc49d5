// The page's life: who may see it, the stream of views, and what it says when that is lost.

import { showBoard } from "/board.js";
import { History } from "/chart.js";
import * as dialogs from "/dialogs.js";
import { byId, mark, say, show, tell } from "/dom.js";
import { charts, follow, logIn, logOut, Refused, session } from "/gateway.js";
import { showServices } from "/services.js";

const history = new History();
let latest = null;
let heard = 0; // by performance.now()
let drawn = false; // whether the next frame draws already

function arrived(view) {
  heard = performance.now();
  latest = view;
  history.append(view);
  mark(document.body, "lost", "no");
  show(byId("lost"), false);
  say(byId("lost-text"), "");
  if (drawn) return;
  drawn = true;
  // A page in the background gets no frames, and catches up with the newest view when it is looked at.
  requestAnimationFrame(() => {
    drawn = false;
    showBoard(latest);
    showServices(latest, history);
    if (document.body.dataset.lost === "yes") lost(); // meanwhile: what was drawn is of before
  });
}

function lost() {
  mark(document.body, "lost", "yes");
  show(byId("lost"), true);
  say(byId("lost-text"), latest ? "Connection lost." : "The gateway does not answer; trying again.");
  mark(byId("state"), "state", "unknown");
  say(byId("state"), "unknown");
  document.title = "connection lost · tcpgw";
  age();
}

function age() {
  const seconds = Math.round((performance.now() - heard) / 1000);
  say(byId("lost-age"), latest ? `Figures are ${seconds} s old; trying again.` : "");
}

setInterval(() => {
  if (!byId("lost").hidden) age();
}, 1000);

/** Find out what may be shown; false where somebody has to log in first. */
async function begin() {
  const standing = await session();
  mark(document.body, "act", standing.act ? "yes" : "no");
  show(byId("read-only"), !standing.act && standing.read);
  tell(byId("hint"), standing.hint);
  show(byId("hint"), Boolean(standing.hint));
  show(byId("log-out"), standing.login && standing.read);
  show(byId("login"), !standing.read);
  show(byId("board"), standing.read);
  show(byId("state"), standing.read);
  if (!standing.read) {
    show(byId("lost"), false);
    byId("token").focus();
    return false;
  }
  history.replace(await charts());
  return true;
}

const start = () => follow({ begin, view: arrived, lost });

byId("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = byId("token");
  say(byId("login-error"), "");
  try {
    await logIn(field.value);
    field.value = "";
    start();
  } catch (error) {
    say(byId("login-error"), error instanceof Refused ? error.message : "The gateway does not answer.");
    field.select();
  }
});

byId("log-out").addEventListener("click", async () => {
  await logOut();
  location.reload();
});

byId("reload").addEventListener("click", () => dialogs.reload(latest?.config));

start();
