/** A label field that offers the names of the classes. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addStyle, notifyEdited, stopEvents } from "./lib/dom.js";

const STYLE = `
.cg-label { display: flex; align-items: center; gap: 8px; width: 100%; min-height: 24px;
  box-sizing: border-box; padding: 0 4px; font: 12px sans-serif;
  color: var(--input-text, #ddd); }
.dom-widget > .cg-label { padding: 0 11px; }
.cg-label input { flex: 1; min-width: 0; font: inherit; color: inherit; padding: 3px 8px;
  background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #555);
  border-radius: 8px; }
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
});

function labelWidget(node, name, inputData) {
  addStyle("cg-label-style", STYLE);
  const { element, field, list } = labelElements(name, inputData[1] ?? {});
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
  field.addEventListener("focus", async () => {
    // each time, because the loader may have another file now
    classes = await classesFor(node);
    fillOptions(list, field.value, classes);
  });
  field.addEventListener("input", () => fillOptions(list, field.value, classes));
  field.addEventListener("change", () => notifyEdited(app, node, widget));
  stopEvents(element, ["keydown", "pointerdown", "mousedown", "dblclick"]);
  return { widget };
}

function labelElements(name, options) {
  const element = document.createElement("div");
  element.className = "cg-label";
  const title = document.createElement("span");
  title.textContent = options.display_name ?? name;
  const field = document.createElement("input");
  field.value = options.default ?? "";
  field.setAttribute("aria-label", name);
  field.autocomplete = "off";
  field.spellcheck = false;
  const list = document.createElement("datalist");
  list.id = `cg-classes-${(listCount += 1)}`;
  field.setAttribute("list", list.id);
  element.append(title, field, list);
  return { element, field, list };
}

/** Offers every class in the place after the last comma, a name with commas there in quotes. */
function fillOptions(list, text, classes) {
  const comma = lastComma(text);
  const before = comma < 0 ? "" : `${text.slice(0, comma + 1)} `;
  const offered = (name) => (before && name.includes(",") ? `${before}"${name}"` : before + name);
  list.replaceChildren(...classes.map((name) => new Option("", offered(name))));
}

/** The place of the last comma that no quotes hold; -1 without one. */
function lastComma(text) {
  const blanked = text.replace(/"[^"]*"?/g, (quoted) => " ".repeat(quoted.length));
  return blanked.lastIndexOf(",");
}

async function classesFor(node) {
  const loader = findLoader(node);
  if (!loader) return [];
  const [kind, input] = LOADERS[loader.comfyClass];
  const name = loader.widgets?.find((widget) => widget.name === input)?.value;
  if (!name) return [];
  if (kind === "words") return linesOf(name);
  const query = new URLSearchParams({ kind, name });
  const response = await api.fetchApi(`/classifier_guidance/classes?${query}`);
  return response.ok ? (await response.json()).classes : [];
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
