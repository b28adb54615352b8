import { byId, count, element } from "./element.js";
import { find } from "./finder.js";
import { drawHistory, drawShares, focusPurchase } from "./history.js";
import { Narratives, show } from "./narratives.js";
import { edit } from "./review.js";
import { ask, stream } from "./server.js";

const SENT = ["item_id", "rating", "review_title", "review"]; // the server knows the other fields
const MET = { test: "not met in training", validation: "met only to pick the checkpoint", train: "met in training" };
const state = {
  user: null, // null for a history that was built on the page
  ending: 0, // index of the user's history
  history: [],
  limit: 0, // of a history
  narratives: new Map(), // by feature
  writing: null, // AbortController of the running request
  written: false, // once true, narratives are written again after each change
};

async function start() {
  const about = await ask("about");
  state.limit = about.history_limit;
  byId("about").textContent = `Runs: ${about.runs.join(", ")}. Data: ${about.data}.`;
  for (const feature of about.features) state.narratives.set(feature.name, new Narratives(feature, about.models));
  byId("features").append(...about.features.map((feature, at) => choice(feature, at === 0)));
  byId("features").addEventListener("change", () => {
    show(chosen());
    allowWriting();
  });
  show(chosen());
  const { found } = await ask("users", { limit: 1 });
  await openUser(found[0].user_id);
}

const choice = ({ name, title }, checked) =>
  element("label", {}, element("input", { type: "checkbox", name: "feature", value: name, checked }), ` ${title}`);

function chosenNames() {
  return [...document.querySelectorAll("input[name=feature]:checked")].map(box => box.value);
}

const chosen = () => chosenNames().map(name => state.narratives.get(name));

async function openUser(id) {
  state.user = await ask("user", { user_id: id });
  const titles = state.user.histories.map(({ purchases }) => `${purchases.at(-1).title} (${count(purchases.length, "purchase")})`);
  byId("ending").replaceChildren(...titles.map((title, at) => element("option", { value: String(at) }, title)));
  byId("ending-field").hidden = titles.length < 2;
  openHistory(0);
}

function openHistory(ending) {
  state.ending = ending;
  byId("ending").value = String(ending);
  forget();
  change([...(own()?.purchases ?? [])]);
}

function forget() {
  state.written = false;
  for (const narratives of state.narratives.values()) narratives.forget();
}

const own = () => state.user?.histories[state.ending];
const edited = () => own() && (own().purchases.length !== state.history.length || own().purchases.some((one, at) => one !== state.history[at]));

/** Shows another history and what depends on it. Writes narratives again if some were written. */
function change(history) {
  stop();
  state.history = history;
  if (!history.length) forget();
  drawHistory(history, { swap: told(swap), review: told(review), remove: told(remove) });
  const whose = state.user ? `User ${state.user.user_id}, ${MET[state.user.split]}` : "Your own history";
  byId("whose").textContent = `${whose}: ${count(history.length, "purchase")}, oldest first`;
  byId("restore").hidden = !edited();
  byId("add").disabled = state.history.length >= state.limit;
  for (const [name, narratives] of state.narratives) narratives.refer(...reference(name));
  allowWriting();
  if (state.written) told(write)();
}

function allowWriting() {
  byId("write").disabled = !state.history.length || !chosenNames().length;
}

function reference(feature) {
  if (!own()) return [null, "None: this history is your own."];
  const text = own().references[feature];
  if (text === undefined) return [null, "None: the narrator wrote none for this history."];
  return [text, edited() ? "For the history as it was." : null];
}

async function swap(at) {
  const item = await findItem(`Swap ${state.history[at].title}`);
  if (item) change(state.history.with(at, unreviewed(item)));
  focusPurchase(at, "swap");
}

async function review(at) {
  const saved = await edit(state.history[at]);
  if (saved) change(state.history.with(at, saved));
  focusPurchase(at, "review");
}

function remove(at) {
  change(state.history.toSpliced(at, 1));
  focusPurchase(at, "remove");
}

async function add() {
  const item = await findItem("Add an item");
  if (item) change([...state.history, unreviewed(item)]);
  byId("add").focus();
}

const unreviewed = item => ({ ...item, rating: null, review_title: null, review: null, day: null });

const findItem = title =>
  find({
    title,
    label: "Words of its title, brand or category",
    noun: "item",
    path: "items",
    row: item => [element("span", { class: "title", dir: "auto" }, item.title), element("span", { class: "soft", dir: "auto" }, item.category ?? "")],
  });

async function chooseUser() {
  const user = await find({
    title: "Choose a user",
    label: "Part of the id, or of what they bought",
    noun: "user",
    path: "users",
    row: ({ user_id: id, split, purchases, latest }) => [
      element("span", { class: "title", dir: "auto" }, id),
      element("span", { class: "soft", dir: "auto" }, `${MET[split]}; ${count(purchases, "purchase")}, the latest ${latest}`),
    ],
  });
  if (user) await openUser(user.user_id);
  byId("choose-user").focus();
}

async function startEmpty() {
  state.user = null;
  byId("ending-field").hidden = true;
  openHistory(0);
  await add();
}

function restore() {
  change([...own().purchases]);
  byId("history-title").focus();
}

async function writeOrStop() {
  if (state.writing) return stop();
  const { top, bottom } = byId("narratives-title").getBoundingClientRect();
  if (bottom < 0 || top > window.innerHeight / 2) byId("narratives").scrollIntoView();
  await write();
}

/** Writes all chosen features of the current history. */
async function write() {
  stop();
  const controller = new AbortController();
  state.writing = controller;
  state.written = true;
  byId("write").textContent = "Stop";
  byId("status").textContent = "Writing…";
  const history = state.history.map(purchase => Object.fromEntries(SENT.map(name => [name, purchase[name] ?? null])));
  const names = chosenNames();
  for (const name of names) state.narratives.get(name).begin();
  for (const [at, name] of names.entries()) await writeOne(name, history, { first: at === 0, signal: controller.signal });
  if (state.writing !== controller) return; // a newer request is running
  stop();
  const changed = names.map(name => state.narratives.get(name).changed).filter(one => one !== null);
  const words = changed.reduce((sum, one) => sum + one, 0);
  byId("status").textContent = changed.length ? `${count(words, "word")} changed.` : "Written.";
}

async function writeOne(name, history, { first, signal }) {
  const narratives = state.narratives.get(name);
  for await (const event of stream("narratives", { feature: name, history }, signal)) {
    if (signal.aborted) return;
    if (event.model) narratives.take(event);
    else if (first) drawShares(event.cf_shares);
  }
}

function stop() {
  state.writing?.abort();
  state.writing = null;
  byId("write").textContent = "Write narratives";
  byId("status").textContent = "";
  for (const narratives of state.narratives.values()) narratives.end();
}

/** Wraps an event handler to show its errors. */
function told(action) {
  return async (...given) => {
    byId("problem").textContent = "";
    try {
      await action(...given);
    } catch (error) {
      if (error.name === "AbortError") return;
      stop();
      byId("problem").textContent = error.message;
    }
  };
}

byId("choose-user").addEventListener("click", told(chooseUser));
byId("start-empty").addEventListener("click", told(startEmpty));
byId("add").addEventListener("click", told(add));
byId("restore").addEventListener("click", told(restore));
byId("ending").addEventListener("change", told(event => openHistory(Number(event.target.value))));
byId("write").addEventListener("click", told(writeOrStop));
told(start)();
