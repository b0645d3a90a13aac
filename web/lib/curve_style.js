/** How the curve of a schedule looks. */

import { GREEN, GRID, ORANGE, lineColour } from "./theme.js";

export const LINE = lineColour(ORANGE);
export const ONE_PASS = lineColour(GREEN);
export const SHADE = ORANGE;

export const STYLE = `
.cg-curve { display: flex; flex-direction: column; min-height: 210px; height: 100%; width: 100%;
  position: relative; box-sizing: border-box; font: 11px sans-serif;
  color: var(--input-text, #ddd); }
.cg-curve svg { flex: 1; min-height: 0; width: 100%; border-radius: 6px; touch-action: none;
  background: var(--comfy-input-bg, #222); user-select: none; }
.cg-curve .cg-bar { display: flex; gap: 4px; align-items: center; padding: 3px 2px; }
.cg-curve .cg-bar :is(select, button), .cg-form input { background: var(--comfy-input-bg, #222);
  color: inherit; border: 1px solid var(--border-color, #555); border-radius: 4px; font: inherit;
  padding: 1px 3px; }
.cg-curve .cg-bar :is(select, button):hover { border-color: currentColor; cursor: pointer; }
.cg-curve .cg-status { margin-left: auto; text-align: right; }
.cg-curve .cg-message { padding: 2px; overflow-wrap: anywhere; user-select: text; }
.cg-curve .cg-message:empty { display: none; }
.cg-curve .cg-message.cg-error { max-height: 6em; overflow: auto; line-height: 1.35;
  color: color-mix(in srgb, var(--error-text, #f55) 50%, var(--input-text, #ddd)); }
.cg-curve.cg-message-only svg { display: none; }
.cg-curve.cg-message-only .cg-message { flex: 1; max-height: none; padding: 8px; border-radius: 6px;
  background: var(--comfy-input-bg, #222); font-size: 12px; }
.cg-curve circle { fill: ${LINE}; stroke: var(--comfy-input-bg, #222); stroke-width: 1.5;
  cursor: grab; outline: none; }
.cg-curve circle:is(:focus, :hover) { stroke: currentColor; stroke-width: 2; }
.cg-curve.cg-disabled select { display: none; }
.cg-curve .cg-readout { pointer-events: none; }
.cg-curve .cg-readout rect { fill: var(--comfy-input-bg, #222); stroke: ${GRID}; }
.cg-curve .cg-readout text { fill: currentColor; font-size: 11px; }
.cg-form { position: absolute; display: flex; flex-direction: column; gap: 3px; padding: 6px;
  border-radius: 6px; border: 1px solid var(--border-color, #555); font: 11px sans-serif;
  background: var(--comfy-menu-bg, #333); color: var(--input-text, #ddd);
  box-shadow: 0 2px 8px #0006; }
.cg-form label { display: flex; gap: 6px; justify-content: space-between; align-items: center; }
.cg-form input { width: 70px; }
`;
