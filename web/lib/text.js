/** Texts of the page in the user's language. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const BLOCK = "classifierGuidance"; // in locales/<language>/main.json
let languages = {};

api
  .fetchApi("/i18n")
  .then((response) => (response.ok ? response.json() : {}))
  .then((found) => (languages = found))
  .catch(() => {}); // the page stays in English

/**
 * The English text in the user's language, with "{name}" replaced by values.name.
 * @param {string} english
 * @param {Record<string, string | number>} values
 */
export function text(english, values = {}) {
  const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  const found = languages[language]?.[BLOCK]?.[english] ?? english;
  return found.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
