/** The pack's templates in the order of their numbers; the server lists files as the disk does. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const PACK = new URL(import.meta.url).pathname.split("/extensions/")[1]?.split("/")[0];

app.registerExtension({
  name: "classifier-guidance.template-order",
  init() {
    const original = api.getWorkflowTemplates;
    if (!original || !PACK) return;
    api.getWorkflowTemplates = async function (...args) {
      const templates = await original.apply(this, args);
      templates?.[decodeURIComponent(PACK)]?.sort();
      return templates;
    };
  },
});
