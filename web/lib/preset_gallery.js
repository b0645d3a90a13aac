/** The gallery of presets: a small drawing of each, its source, and what it does to the scale. */

import { LINE, ONE_PASS } from "./curve_style.js";
import { addStyle, stopEvents, svg } from "./dom.js";
import { presets } from "./presets.js";
import { t } from "./words.js";

const SIZE = { width: 220, height: 84, margin: 6 };
const STYLE = `
.cg-gallery { border: 1px solid var(--border-color, #555); border-radius: 10px; padding: 16px;
  width: min(780px, 92vw); max-height: 90vh; overflow: auto; margin: auto;
  box-shadow: 0 6px 30px #0008;
  background: var(--comfy-menu-bg, #333); color: var(--input-text, #ddd); font: 13px sans-serif; }
.cg-gallery::backdrop { background: #0007; }
.cg-gallery header { display: flex; justify-content: space-between; gap: 12px;
  align-items: baseline; margin-bottom: 12px; }
.cg-gallery h2 { font-size: 16px; font-weight: 600; margin: 0; }
.cg-gallery .cg-cards { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); }
.cg-gallery button { background: var(--comfy-input-bg, #222); color: inherit; cursor: pointer;
  border: 1px solid var(--border-color, #555); border-radius: 8px; font: inherit; }
.cg-gallery button:is(:hover, :focus-visible) { border-color: currentColor; outline: none; }
.cg-gallery .cg-close { padding: 3px 12px; }
.cg-gallery .cg-card { display: flex; flex-direction: column; gap: 4px; padding: 8px;
  text-align: left; line-height: 1.35; }
.cg-gallery .cg-card svg { width: 100%; height: ${SIZE.height}px; }
.cg-gallery .cg-card strong { font-size: 14px; font-weight: 600; }
.cg-gallery .cg-card span { font-size: 12px; }
`;

/**
 * Opens the gallery.
 * @param {{scale: number, fetchPreview: (inputs: object) => Promise<object | null>,
 *   choose: (shape: string, values: object) => void}} options scale: that the presets are drawn for.
 */
export function openGallery({ scale, fetchPreview, choose }) {
  addStyle("cg-gallery-style", STYLE);
  const dialog = document.createElement("dialog");
  dialog.className = "cg-gallery";
  const cards = document.createElement("div");
  cards.className = "cg-cards";
  dialog.append(header(dialog, scale), cards);
  for (const [shape, preset] of Object.entries(presets())) {
    const chosen = () => {
      dialog.close();
      choose(shape, preset.values ?? {});
    };
    cards.append(card(shape, preset, scale, fetchPreview, chosen));
  }
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside the cards
  });
  // keys must not reach the graph: Delete would remove its node
  stopEvents(dialog, ["keydown", "pointerdown", "mousedown", "wheel"]);
  document.body.append(dialog);
  dialog.showModal();
}

function header(dialog, scale) {
  const row = document.createElement("header");
  const title = document.createElement("h2");
  title.textContent = t("Schedules from papers, at scale {scale}", { scale });
  const close = document.createElement("button");
  Object.assign(close, { type: "button", className: "cg-close", textContent: t("Close") });
  close.addEventListener("click", () => dialog.close());
  row.append(title, close);
  return row;
}

function card(shape, preset, scale, fetchPreview, chosen) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", className: "cg-card", title: preset.title });
  button.dataset.shape = shape;
  const drawing = svg("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}` }, button);
  drawing.setAttribute("preserveAspectRatio", "none");
  const name = document.createElement("strong");
  name.textContent = preset.name;
  const lines = ["cg-effect", "cg-models", "cg-paper"].map((className) => {
    const line = document.createElement("span");
    line.className = className;
    return line;
  });
  const [effect, models, paper] = lines;
  models.textContent = t("for {models}", { models: preset.models });
  paper.textContent = preset.paper;
  button.append(name, ...lines);
  button.addEventListener("click", chosen);
  fetchPreview({ shape, scale, ...preset.values }).then((line) => {
    if (!line?.scales) return;
    effect.textContent = preset.effect({ ...range(line.scales), scale });
    draw(drawing, line.scales);
  });
  return button;
}

function range(scales) {
  const short = (value) => Number(value.toFixed(2));
  return { lowest: short(Math.min(...scales)), highest: short(Math.max(...scales)) };
}

/** The line, evenly spaced as the server sends it, and the height of 1 below it. */
function draw(drawing, scales) {
  const { width, height, margin } = SIZE;
  const [low, high] = [Math.min(0, ...scales), Math.max(1, ...scales)];
  const x = (index) => margin + (index / (scales.length - 1)) * (width - 2 * margin);
  const y = (scale) => height - margin - ((scale - low) / (high - low)) * (height - 2 * margin);
  const one = { x1: margin, x2: width - margin, y1: y(1), y2: y(1), "stroke-dasharray": "3 3" };
  const still = { "vector-effect": "non-scaling-stroke" };
  svg("line", { ...one, ...still }, drawing).style.stroke = ONE_PASS;
  const points = scales.map((scale, index) => `${x(index)},${y(scale)}`).join(" ");
  const look = { fill: "none", "stroke-width": 2, ...still };
  svg("polyline", { points, ...look }, drawing).style.stroke = LINE;
}
