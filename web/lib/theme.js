/** Colours that can be read on light and on dark pages. */

import { addStyle } from "./dom.js";

export const ORANGE = "#f0a040";
export const BLUE = "#4a90d9";
export const GREEN = "#66cc88";

// How much of a colour is left when it is mixed with the colour of the page's text. Lines need a
// contrast of 3:1 with what is behind them, texts 4.5:1. The page marks dark palettes by a class.
const STYLE = `
:root { --cg-line-share: 50%; --cg-text-share: 28%; }
.dark-theme { --cg-line-share: 90%; --cg-text-share: 65%; }
`;

const mixed = (colour, share) =>
  `color-mix(in srgb, ${colour} var(${share}), var(--input-text, #ddd))`;
export const lineColour = (colour) => mixed(colour, "--cg-line-share");
export const textColour = (colour) => mixed(colour, "--cg-text-share");

/** Lines behind others. */
export const GRID = "color-mix(in srgb, currentColor 22%, transparent)";

/** Adds the shares to the page, once. */
export function addTheme() {
  addStyle("cg-theme", STYLE);
}
