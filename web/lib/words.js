/** The page's texts in its language. They are written in English; words_zh.js has the Chinese. */

import { app } from "../../../scripts/app.js";
import { CHINESE } from "./words_zh.js";

const LANGUAGES = { zh: CHINESE };
const PLACE = /\{(\w+)\}/;
let patterns = null; // of the texts with values, as Python fills them in

/**
 * A text of the page: t("{passes} of {all} passes", { passes: 21, all: 40 }).
 * @param {string} text in English; a test looks for it among the Chinese ones
 * @param {Record<string, string | number>} values
 */
export function t(text, values = {}) {
  return filled(dictionary()[text] ?? text, values);
}

/** A text that Python sent, values and all. One that is not known stays English. */
export function translated(text) {
  const words = dictionary();
  if (words[text]) return words[text];
  patterns ??= makePatterns();
  for (const { key, pattern } of patterns) {
    const values = words[key] && text.match(pattern)?.groups;
    if (values) return filled(words[key], mapped(values, translated));
  }
  const parts = text.split("; "); // the notes of a preview
  const isKnown = Object.keys(words).length > 0 && parts.length > 1;
  return isKnown ? parts.map(translated).join("；") : text;
}

function dictionary() {
  const language = app.extensionManager?.setting?.get?.("Comfy.Locale") ?? navigator.language;
  return LANGUAGES[String(language).split("-")[0]] ?? {};
}

function filled(text, values) {
  return text.replaceAll(new RegExp(PLACE, "g"), (place, name) => values[name] ?? place);
}

function mapped(values, change) {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, change(value)]));
}

/** Of each text with values, those with most of their own words first. */
function makePatterns() {
  const keys = Object.keys(CHINESE).filter((key) => PLACE.test(key));
  const words = (key) => key.split(PLACE).filter((_, index) => index % 2 === 0);
  const length = (key) => words(key).join("").length;
  return keys.sort((a, b) => length(b) - length(a)).map((key) => ({ key, pattern: patternOf(key) }));
}

function patternOf(key) {
  const parts = key.split(PLACE); // words, name, words, name, ...
  const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const pattern = parts.map((part, index) => (index % 2 ? `(?<${part}>.+?)` : escaped(part)));
  return new RegExp(`^${pattern.join("")}$`, "s");
}
