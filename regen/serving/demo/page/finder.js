import { byId, count, element } from "./element.js";
import { ask } from "./server.js";

const LIMIT = 20;
const PAUSE = 150; // ms without typing before a search

const dialog = byId("finder");
const query = byId("query");
const list = byId("found");
let current = null; // what is looked for, and who waits for it

/**
 * Lets the reader search and choose.
 *
 * @param {{title: string, label: string, noun: string, path: string, row: (found: Object) => (Node | string)[]}} what
 * @returns {Promise<Object | null>} What was chosen; null where nothing was.
 */
export function find(what) {
  byId("finder-title").textContent = what.title;
  document.querySelector("label[for=query]").textContent = what.label;
  query.value = "";
  return new Promise(chosen => {
    current = { ...what, chosen };
    dialog.showModal();
    search();
  });
}

async function search() {
  const asked = current;
  const wanted = query.value;
  try {
    const { found, total } = await ask(asked.path, { query: wanted, limit: LIMIT });
    if (asked !== current || wanted !== query.value) return; // a later search is on its way
    byId("found-count").textContent = said(total, found.length, asked.noun);
    list.replaceChildren(
      ...found.map(one => element("li", {}, element("button", { type: "button", click: () => close(one) }, ...asked.row(one))))
    );
  } catch (error) {
    byId("found-count").textContent = error.message;
  }
}

function said(total, shown, noun) {
  if (!total) return query.value.trim() ? `No ${noun} has these words.` : "";
  return total > shown ? `The first ${shown} of ${count(total, noun)}.` : `${count(total, noun)}.`;
}

function close(choice) {
  const { chosen } = current;
  current = null;
  dialog.close();
  list.replaceChildren();
  chosen(choice);
}

let waiting = 0;
query.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => current && search(), PAUSE);
});
byId("finder-cancel").addEventListener("click", () => close(null));
dialog.addEventListener("cancel", event => {
  event.preventDefault();
  close(null);
});
dialog.addEventListener("keydown", event => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const stops = [query, ...list.querySelectorAll("button")];
  const at = stops.indexOf(document.activeElement);
  if (!step || at < 0) return;
  event.preventDefault();
  stops[Math.min(Math.max(at + step, 0), stops.length - 1)].focus();
});
