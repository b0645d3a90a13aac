/** The presets in the gallery of Guidance Schedule. */

import { t } from "./words.js";

/**
 * By the shape of the node, and `values` of its other inputs. effect: what it does to the scale,
 * from {scale, lowest, highest} of its line. paper: its authors, with its title.
 */
export function presets() {
  const intervals = t("Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models");
  const schedulers = t("Analysis of Classifier-Free Guidance Weight Schedulers");
  const transformer = t("Masked Diffusion Transformer is a Strong Image Synthesizer");
  const rises = (values) => t("rises from {lowest} to {highest}; the mean is {scale}", values);
  return {
    "interval": {
      name: t("limited interval"),
      values: { axis: "percent", start: 0.2, end: 0.8, outside: 1 },
      effect: (values) => t("{highest} in the middle, {lowest} outside", values),
      models: t("any model"),
      paper: t("after Kynkäänniemi et al. 2024"),
      title: intervals,
    },
    "interval for SDXL": {
      name: t("interval for SDXL"),
      effect: (values) => t("{highest} from sigma 5.42 to 0.28, else {lowest}", values),
      models: t("SDXL, other EPS and V models; not flow models"),
      paper: t("Kynkäänniemi et al. 2024"),
      title: intervals,
    },
    "linear rise": {
      name: t("linear rise"),
      effect: rises,
      models: t("any model"),
      paper: t("Wang et al. 2024"),
      title: schedulers,
    },
    "cosine rise": {
      name: t("cosine rise"),
      effect: rises,
      models: t("any model"),
      paper: t("Wang et al. 2024"),
      title: schedulers,
    },
    "power-cosine rise": {
      name: t("power-cosine rise"),
      effect: (values) => t("rises from {lowest} to {highest}, most of it late", values),
      models: t("class-conditional models at high scales"),
      paper: t("Gao et al. 2023"),
      title: transformer,
    },
  };
}
