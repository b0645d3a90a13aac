/** A label field that knows the names of the classes. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addStyle, edited } from "./lib/dom.js";

const STYLE = `
.cg-label { display: flex; align-items: center; gap: 8px; width: 100%; min-height: 24px;
  box-sizing: border-box; padding: 0 4px; font: 12px sans-serif;
  color: var(--input-text, #ddd); }
.dom-widget > .cg-label { padding: 0 11px; }
.cg-label input { flex: 1; min-width: 0; font: inherit; color: inherit; padding: 3px 8px;
  background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #555);
  border-radius: 8px; }
`;
// where the name of the file is, whose classes are meant
const LOADERS = {
  NoisyClassifierLoader: ["classifiers", "classifier_name"],
  ImageClassifierLoader: ["image_classifiers", "classifier_name"],
  ADMModelLoader: ["diffusion_models", "model_name"],
};
let lists = 0;

app.registerExtension({
  name: "classifier-guidance.class-label",
  getCustomWidgets() {
    return { GUIDANCE_LABEL: labelWidget };
  },
});

function labelWidget(node, name, inputData) {
  addStyle("cg-label-style", STYLE);
  const element = document.createElement("div");
  element.className = "cg-label";
  const title = document.createElement("span");
  title.textContent = inputData[1]?.display_name ?? name;
  const field = document.createElement("input");
  field.value = inputData[1]?.default ?? "";
  field.setAttribute("aria-label", name);
  field.autocomplete = "off";
  field.spellcheck = false;
  const list = document.createElement("datalist");
  list.id = `cg-classes-${(lists += 1)}`;
  field.setAttribute("list", list.id);
  element.append(title, field, list);
  const widget = node.addDOMWidget(name, "GUIDANCE_LABEL", element, {
    getValue: () => field.value,
    setValue: (value) => {
      field.value = value;
    },
    // the classic renderer takes the margin off all sides
    margin: 4,
    getMinHeight: () => 34,
    getMaxHeight: () => 34,
  });
  let classes = [];
  field.addEventListener("focus", async () => {
    // asked for each time: the loader's choice or its file may be another one now
    classes = await classesFor(node);
    fill(list, field.value, classes);
  });
  field.addEventListener("input", () => fill(list, field.value, classes));
  field.addEventListener("change", () => edited(app, node, widget));
  for (const event of ["keydown", "pointerdown", "mousedown", "dblclick"]) {
    element.addEventListener(event, (happened) => happened.stopPropagation());
  }
  return { widget };
}

/** Offers every class for the text after the last comma. */
function fill(list, typed, classes) {
  const comma = typed.lastIndexOf(",");
  const before = comma < 0 ? "" : `${typed.slice(0, comma + 1)} `;
  list.replaceChildren(...classes.map((name) => new Option("", before + name)));
}

async function classesFor(node) {
  const loader = loaderBehind(node);
  if (!loader) return [];
  const [kind, input] = LOADERS[loader.comfyClass];
  const name = loader.widgets?.find((widget) => widget.name === input)?.value;
  if (!name) return [];
  const query = new URLSearchParams({ kind, name });
  const response = await api.fetchApi(`/classifier_guidance/classes?${query}`);
  return response.ok ? (await response.json()).classes : [];
}

/** The loader that a node's classifier, or else its model, comes from. */
function loaderBehind(node, depth = 0) {
  if (!node || depth > 50) return null;
  if (node.comfyClass in LOADERS) return node;
  for (const wanted of ["classifier", "model", ""]) {
    const slot = node.inputs?.findIndex((one) => one.name === wanted && one.link != null) ?? -1;
    if (slot >= 0) return loaderBehind(node.getInputNode(slot), depth + 1);
  }
  return null;
}
