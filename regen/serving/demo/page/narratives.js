import { changes } from "./changes.js";
import { byId, count, element } from "./element.js";

const READS = {
  cf: "who bought what",
  content: "item texts and reviews",
  both: "the two, fused",
  reference: "what the narrator wrote",
};

/** The columns of one feature: one text per model, and the reference. */
export class Narratives {
  /**
   * @param {{name: string, title: string, about_item: boolean, withholds_review: boolean}} feature
   * @param {string[]} models
   */
  constructor(feature, models) {
    this.texts = {}; // latest finished text of each model
    this.columns = Object.fromEntries([...models, "reference"].map(name => [name, column(name)]));
    const about = feature.about_item ? "About the last item of the history." : "About the customer.";
    const kept = feature.withholds_review ? " The review of that item is kept from the models." : "";
    this.node = element(
      "section",
      { class: "feature", "aria-labelledby": `feature-${feature.name}` },
      element("h3", { id: `feature-${feature.name}` }, feature.title),
      element("p", { class: "soft" }, about + kept),
      element("div", { class: "columns" }, ...Object.values(this.columns).map(one => one.node))
    );
  }

  /** Clears all texts, so that later texts are not compared with them. */
  forget() {
    this.texts = {};
    for (const name of Object.keys(this.columns)) this.#clear(name);
  }

  /** Shows the reference of a history, or why there is none. */
  refer(text, note) {
    this.columns.reference.text.replaceChildren(text ?? "");
    this.columns.reference.notes.replaceChildren(...paragraphs(note));
  }

  /** Clears all models' columns and shows them as busy. */
  begin() {
    for (const name of Object.keys(this.columns)) {
      if (name === "reference") continue;
      this.#clear(name);
      this.columns[name].text.setAttribute("aria-busy", "true");
    }
  }

  /** Handles one event of the server. */
  take({ model, piece, confidence, unknown_items: unknown }) {
    const { text, notes } = this.columns[model];
    if (confidence !== undefined && unknown.length) {
      notes.append(...paragraphs(`CF knows ${Math.round(100 * confidence)} % of these purchases, not: ${unknown.join(", ")}.`));
    }
    if (piece) text.append(piece);
    if (piece === null) this.#finish(model);
  }

  /** Stops showing columns as busy; unfinished texts are not compared with later ones. */
  end() {
    for (const { text } of Object.values(this.columns)) text.removeAttribute("aria-busy");
  }

  /** Number of words of all models that changed; null without earlier texts. */
  get changed() {
    const numbers = Object.values(this.columns).map(one => one.changed).filter(one => one !== null);
    return numbers.length ? numbers.reduce((sum, one) => sum + one, 0) : null;
  }

  #clear(name) {
    const one = this.columns[name];
    one.text.replaceChildren();
    one.notes.replaceChildren();
    one.changed = null;
  }

  #finish(model) {
    const one = this.columns[model];
    const before = this.texts[model];
    const now = one.text.textContent;
    this.texts[model] = now;
    one.text.removeAttribute("aria-busy");
    if (!now) one.notes.append(...paragraphs("(nothing)"));
    if (before === undefined) return;
    const parts = changes(before, now);
    const words = of => of.reduce((sum, part) => sum + part.words.length, 0);
    one.changed = words(parts.filter(part => part.changed));
    if (before === now) {
      one.notes.append(...paragraphs("Unchanged."));
      return;
    }
    one.text.replaceChildren(
      ...parts.flatMap((part, at) => {
        const text = part.words.join(" ");
        return [at ? " " : "", part.changed ? element("mark", {}, text) : text];
      })
    );
    one.notes.append(
      ...paragraphs(`${one.changed} of ${count(words(parts), "word")} changed.`),
      element("details", {}, element("summary", {}, "Before"), element("p", { class: "text", dir: "auto" }, before))
    );
  }
}

/** Shows the chosen features, in their order. */
export const show = narratives => byId("written").replaceChildren(...narratives.map(one => one.node));

function column(name) {
  const text = element("p", { class: "text", dir: "auto", "aria-live": "polite", "aria-atomic": "true" });
  const notes = element("div", { class: "notes soft" });
  const heading = element("h4", {}, element("span", { class: "name" }, name), " ", element("span", { class: "reads soft" }, READS[name]));
  return { node: element("article", { class: `narrative ${name}` }, heading, text, notes), text, notes, changed: null };
}

const paragraphs = text => (text ? [element("p", { dir: "auto" }, text)] : []);
