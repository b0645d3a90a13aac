/** Shows on the node Classify Image what the classifier sees in each image. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addStyle, stopEvents } from "./lib/dom.js";
import { t } from "./lib/words.js";

const WIDGET = "seen";
const MIN_HEIGHT = 80;
const SIZE = [300, 260]; // of a new node
const STYLE = `
.cg-seen { display: flex; flex-direction: column; gap: 8px; width: 100%; height: 100%;
  min-height: ${MIN_HEIGHT}px; box-sizing: border-box; overflow: auto; padding: 6px;
  border-radius: 6px; font: 12px/1.35 sans-serif; color: var(--input-text, #ddd);
  background: var(--comfy-input-bg, #222); user-select: text; }
.cg-seen .cg-empty { opacity: 0.75; }
.cg-seen .cg-image { display: flex; gap: 8px; align-items: flex-start; }
.cg-seen img { flex: none; width: 56px; height: 56px; object-fit: contain; border-radius: 4px;
  background: color-mix(in srgb, currentColor 12%, transparent); }
.cg-seen img.cg-small { image-rendering: pixelated; }
.cg-seen .cg-classes { flex: 1; min-width: 0; display: flex; flex-direction: column; gap: 2px; }
.cg-seen .cg-title { font-size: 11px; opacity: 0.75; }
.cg-seen .cg-class { position: relative; display: flex; justify-content: space-between; gap: 8px;
  padding: 1px 6px; border-radius: 3px; overflow: hidden;
  background: color-mix(in srgb, currentColor 7%, transparent); }
.cg-seen .cg-bar { position: absolute; inset: 0 auto 0 0; border-radius: 3px;
  background: color-mix(in srgb, #4a90d9 55%, transparent); }
.cg-seen .cg-name { position: relative; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.cg-seen .cg-value { position: relative; flex: none; font-variant-numeric: tabular-nums; }
`;

app.registerExtension({
  name: "classifier-guidance.ClassifyImage",
  nodeCreated(node) {
    if (node.comfyClass !== "ClassifyImage") return;
    const display = addDisplay(node);
    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.classified) show(display, output);
    };
    node.setSize?.(SIZE.map((length, k) => Math.max(length, node.size[k])));
  },
});

function addDisplay(node) {
  addStyle("cg-seen-style", STYLE);
  const element = division("cg-seen");
  element.setAttribute("role", "list");
  element.setAttribute("aria-label", t("Classes that the classifier sees"));
  element.append(division("cg-empty", t("The classes appear here after a run.")));
  stopEvents(element, ["pointerdown", "mousedown"]); // to select the text
  element.addEventListener("wheel", (event) => {
    if (element.scrollHeight > element.clientHeight) event.stopPropagation(); // scrolls the list
  });
  const widget = node.addDOMWidget(WIDGET, "classifier_guidance_text", element, {
    serialize: false, // not in the prompt: it is no input
    getMinHeight: () => MIN_HEIGHT,
  });
  widget.serialize = false; // not in the saved workflow
  return element;
}

/** A row for each image; `count` images were classified, of which `classified` are the first. */
function show(element, { classified, is_score: [isScore], count: [count] }) {
  const rows = classified.map((image, index) => {
    const title = count > 1 ? t("image {number}", { number: index + 1 }) : "";
    return imageRow(image, title, isScore);
  });
  const rest = count - rows.length;
  if (rest > 0) {
    rows.push(division("cg-empty", t("and {rest} more, in the output", { rest })));
  }
  element.replaceChildren(...rows);
}

/** A small picture, and the classes with the most likely one first. */
function imageRow({ thumbnail, classes }, title, isScore) {
  const said = classes.map(([name, value]) => `${name} ${shown(value, isScore)}`).join(", ");
  const row = division("cg-image");
  row.setAttribute("role", "listitem");
  row.setAttribute("aria-label", title ? `${title}: ${said}` : said);
  if (thumbnail) row.append(picture(thumbnail, title));
  const list = division("cg-classes");
  if (title) list.append(division("cg-title", title));
  list.append(...classes.map(([name, value]) => classBar(name, value, isScore)));
  row.append(list);
  return row;
}

function picture(file, title) {
  const image = document.createElement("img");
  image.alt = title;
  image.addEventListener("load", () => {
    image.classList.toggle("cg-small", image.naturalWidth <= 48);
  });
  image.src = api.apiURL(`/view?${new URLSearchParams(file)}`);
  return image;
}

/** Of a probability a bar behind its name; of a score only the number. */
function classBar(name, value, isScore) {
  const row = division("cg-class");
  if (!isScore) {
    const bar = division("cg-bar");
    bar.style.width = `${value}%`;
    row.append(bar);
  }
  const label = division("cg-name", name);
  label.title = name;
  row.append(label, division("cg-value", shown(value, isScore)));
  return row;
}

/** "91 %", a small one as "0.4 %"; a score as it is. */
function shown(value, isScore) {
  return isScore ? value.toFixed(2) : `${value.toFixed(value < 10 ? 1 : 0)} %`;
}

function division(className, text = "") {
  const element = document.createElement("div");
  element.className = className;
  element.textContent = text;
  return element;
}
