// The page is changed in place: a node stays the same one for the same thing, so that focus, selection and
// scroll positions survive each second. Data becomes text, never markup.

export const byId = (id) => document.getElementById(id);

/** Set a node's text where it differs. */
export function say(node, text) {
  const value = String(text);
  if (node.textContent !== value) node.textContent = value;
}

const told = new WeakMap();

/** As `say`, of what names commands and keys in `backticks`, which become code. For the same nodes always. */
export function tell(node, text) {
  if (told.get(node) === text) return;
  told.set(node, text);
  const pieces = text.split("`");
  if (pieces.length % 2 === 0) pieces.push(pieces.splice(-2).join("`")); // the last one has no other
  node.replaceChildren(
    ...pieces.map((piece, index) => (index % 2 ? Object.assign(document.createElement("code"), { textContent: piece }) : piece)),
  );
}

export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

export function mark(node, name, value) {
  if (node.dataset[name] !== value) node.dataset[name] = value;
}

/** Set a bar's length, of a share from 0 to 1. */
export function fill(node, share) {
  const width = `${(Math.min(1, Math.max(0, share || 0)) * 100).toFixed(1)}%`;
  if (node.style.width !== width) node.style.width = width;
}

const parts = new WeakMap();

/** A copy of a template; `fields` has its parts by their data-f. */
export function copy(template) {
  const node = byId(template).content.firstElementChild.cloneNode(true);
  const found = {};
  for (const part of node.querySelectorAll("[data-f]")) found[part.dataset.f] = part;
  parts.set(node, found);
  return node;
}

export const fields = (node) => parts.get(node);

const lists = new WeakMap();

/** The node of a list that has this key, if it is there. */
export const nodeOf = (list, key) => lists.get(list)?.get(key);

/**
 * Make a list show `items`, in their order: one node for each key.
 *
 * While something in it has the focus nothing is moved, because a moved node loses it.
 */
export function list(parent, items, keyOf, template, update) {
  if (!lists.has(parent)) lists.set(parent, new Map());
  const known = lists.get(parent);
  const wanted = new Map();
  for (const item of items) {
    const key = keyOf(item);
    const node = known.get(key) ?? copy(template);
    wanted.set(key, node);
    update(node, item);
  }
  for (const [key, node] of known) {
    if (!wanted.has(key)) node.remove();
  }
  lists.set(parent, wanted);
  if (parent.contains(document.activeElement)) {
    for (const node of wanted.values()) if (!node.isConnected) parent.append(node);
    return;
  }
  let next = parent.firstElementChild;
  for (const node of wanted.values()) {
    if (node === next) next = node.nextElementSibling;
    else parent.insertBefore(node, next);
  }
}
