/** A label field that offers the names of the classes. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addStyle, callAfter, notifyEdited, stopEvents } from "./lib/dom.js";
import { t } from "./lib/words.js";

const STYLE = `
.cg-label { display: flex; align-items: center; gap: 8px; width: 100%; min-height: 24px;
  box-sizing: border-box; padding: 0 4px; font: 12px sans-serif;
  color: var(--input-text, #ddd); }
.dom-widget > .cg-label { padding: 0 11px; }
.cg-label input { flex: 1; min-width: 0; font: inherit; color: inherit; padding: 3px 8px;
  background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #555);
  border-radius: 8px; }
.cg-label .cg-hint { flex: none; max-width: 55%; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; font-size: 11px; opacity: 0.75; }
.cg-label .cg-hint:empty { display: none; }
`;
// loader node: the kind of its files, and the input with the file's name; of words the input
// with a class on each line
const LOADERS = {
  NoisyClassifierLoader: ["classifiers", "classifier_name"],
  ImageClassifierLoader: ["image_classifiers", "classifier_name"],
  ADMModelLoader: ["diffusion_models", "model_name"],
  ZeroShotClassifier: ["words", "classes"],
};
let listCount = 0;

app.registerExtension({
  name: "classifier-guidance.class-label",
  getCustomWidgets() {
    return { GUIDANCE_LABEL: labelWidget };
  },
  setup() {
    // a loader may have another file now
    api.addEventListener("graphChanged", () => {
      for (const node of app.graph?.nodes ?? []) node.refreshLabel?.();
    });
  },
});

function labelWidget(node, name, inputData) {
  addStyle("cg-label-style", STYLE);
  const { element, field, list, hint } = labelElements(name, inputData[1] ?? {});
  const widget = node.addDOMWidget(name, "GUIDANCE_LABEL", element, {
    getValue: () => field.value,
    setValue: (value) => {
      field.value = value;
    },
    margin: 4, // the classic renderer takes it off all sides
    getMinHeight: () => 34,
    getMaxHeight: () => 34,
  });
  let classes = [];
  const fetchAgain = async () => {
    const known = await classesFor(node);
    classes = known.classes;
    showHint(hint, known);
    fillOptions(list, field.value, classes);
  };
  // each time, because the file itself may have been replaced
  field.addEventListener("focus", fetchAgain);
  let source = "";
  node.refreshLabel = () => {
    const now = JSON.stringify(sourceOf(node));
    if (now !== source) fetchAgain();
    source = now;
  };
  callAfter(node, "onConnectionsChange", () => requestAnimationFrame(node.refreshLabel));
  field.addEventListener("input", () => fillOptions(list, field.value, classes));
  field.addEventListener("change", () => notifyEdited(app, node, widget));
  stopEvents(element, ["keydown", "pointerdown", "mousedown", "dblclick"]);
  return { widget };
}

function labelElements(name, options) {
  const element = document.createElement("div");
  element.className = "cg-label";
  const title = document.createElement("span");
  title.textContent = t(options.display_name ?? name);
  const field = document.createElement("input");
  field.value = options.default ?? "";
  field.setAttribute("aria-label", title.textContent);
  field.autocomplete = "off";
  field.spellcheck = false;
  const list = document.createElement("datalist");
  list.id = `cg-classes-${(listCount += 1)}`;
  field.setAttribute("list", list.id);
  const hint = document.createElement("span");
  hint.className = "cg-hint";
  element.append(title, field, hint, list);
  return { element, field, list, hint };
}

/** Says beside the field that the classes have only numbers. */
function showHint(hint, { classes, named }) {
  const numbers = { last: classes.length - 1 };
  const says = classes.length > 0 && !named;
  hint.textContent = says ? t("no names: 0 to {last}", numbers) : "";
  hint.title = says
    ? t("This file has no names of its classes: type a number from 0 to {last}.", numbers)
    : "";
}

/**
 * Offers every class in the place of what is typed: after the last comma, or from where the text is
 * the beginning of a name with commas. In a list, a name with commas is offered in quotes.
 */
function fillOptions(list, text, classes) {
  const start = startOfTyped(text, classes);
  const before = start === 0 ? "" : `${text.slice(0, start).trimEnd()} `;
  const offered = (name) => (before && name.includes(",") ? `${before}"${name}"` : before + name);
  list.replaceChildren(...classes.map((name) => new Option("", offered(name))));
}

function startOfTyped(text, classes) {
  const names = classes.filter((name) => name.includes(",")).map((name) => name.toLowerCase());
  const last = lastComma(text) + 1;
  for (let start = 0; start < last; start = text.indexOf(",", start) + 1) {
    const typed = text.slice(start).trimStart().toLowerCase();
    if (names.some((name) => name.startsWith(typed))) return start;
  }
  return last;
}

/** The place of the last comma that no quotes hold; -1 without one. */
function lastComma(text) {
  const blanked = text.replace(/"[^"]*"?/g, (quoted) => " ".repeat(quoted.length));
  return blanked.lastIndexOf(",");
}

/** The kind of the loader's file and its name, or the words; null without a loader. */
function sourceOf(node) {
  const loader = findLoader(node);
  if (!loader) return null;
  const [kind, input] = LOADERS[loader.comfyClass];
  const name = loader.widgets?.find((widget) => widget.name === input)?.value;
  return name ? { kind, name } : null;
}

/** The classes to choose from, and whether they have names. */
async function classesFor(node) {
  const source = sourceOf(node);
  if (!source) return { classes: [], named: true };
  if (source.kind === "words") return { classes: linesOf(source.name), named: true };
  const response = await api.fetchApi(
    `/classifier_guidance/classes?${new URLSearchParams(source)}`,
  );
  return response.ok ? response.json() : { classes: [], named: true };
}

function linesOf(text) {
  return text
    .split(/\r?\n/)
    .map((line) => line.trim())
    .filter((line) => line);
}

/** The loader that a node's classifier comes from; without a classifier, that of its model. */
function findLoader(node, depth = 0) {
  if (!node || depth > 50) return null;
  if (node.comfyClass in LOADERS) return node;
  for (const name of ["classifier", "model", ""]) {
    const slot = node.inputs?.findIndex((input) => input.name === name && input.link != null) ?? -1;
    if (slot >= 0) return findLoader(node.getInputNode(slot), depth + 1);
  }
  return null;
}
