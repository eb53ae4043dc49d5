// What the page asks the gateway, and how it hears of it.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, signal: AbortSignal.timeout(options.method ? 70000 : 8000) });
  const said = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, said.error ?? `the gateway answered ${response.status}`);
  return said;
}

let csrf = "";

const post = (path, body) =>
  ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
    body: JSON.stringify(body),
  });

/** What this page may do: read, act, login, hint. */
export async function session() {
  const standing = await ask("/session");
  csrf = standing.csrf;
  return standing;
}

export const charts = () => ask("/charts");
export const logIn = (token) => post("/login", { token });
export const logOut = () => post("/logout", {});

export async function act(name, body) {
  return (await post(`/actions/${name}`, body)).result;
}

// Milliseconds without a view after which a stream is taken for dead: views come each second.
const SILENT = 8000;
const AGAIN = 1500;

/**
 * Follow the gateway's views for ever: `begin` is awaited before each stream, and says by false that there shall
 * be none; `view` gets each view; `lost` is called when a stream ends.
 */
export async function follow({ begin, view, lost }) {
  for (;;) {
    try {
      if (!(await begin())) return;
      // Without a stream, because there are too many, it asks: less often, but not in vain.
      if (await stream(view)) lost();
      else view(await ask("/view"));
    } catch {
      lost();
    }
    // Not all pages at once, when a gateway comes back.
    await new Promise((resolve) => setTimeout(resolve, AGAIN * (0.5 + Math.random())));
  }
}

/** Return, when a stream has ended, whether it brought anything. */
function stream(view) {
  return new Promise((resolve) => {
    const source = new EventSource("/events");
    let timer = 0;
    let brought = false;
    const end = () => {
      clearTimeout(timer);
      source.close();
      resolve(brought);
    };
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(end, SILENT);
    };
    source.onerror = end;
    source.addEventListener("view", (event) => {
      heard();
      brought = true;
      view(JSON.parse(event.data));
    });
    heard();
  });
}
