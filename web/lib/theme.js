/** Colours that can be read on light and on dark pages. */

export const ORANGE = "#f0a040";
export const BLUE = "#4a90d9";
export const GREEN = "#66cc88";

const INK = "var(--input-text, #ddd)"; // dark on light pages, light on dark ones

/**
 * A colour, mixed with the colour of the page's text.
 *
 * At a share of 65 % a line has a contrast of 3:1 or more on the pages of ComfyUI; text needs
 * 4.5:1, and so a share of 45 %.
 */
export function themed(colour, share) {
  return `color-mix(in srgb, ${colour} ${share}%, ${INK})`;
}

export const lineColour = (colour) => themed(colour, 65);
export const textColour = (colour) => themed(colour, 45);
