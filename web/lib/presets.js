/** The presets in the gallery of Guidance Schedule. */

import { t } from "./words.js";

const INTERVALS =
  "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models";
const SCHEDULERS = "Analysis of Classifier-Free Guidance Weight Schedulers";
const TRANSFORMER = "Masked Diffusion Transformer is a Strong Image Synthesizer";

/**
 * shape: of the node, and `values` of its other inputs. effect: what it does to the scale, from
 * {scale, lowest, highest} of its line. paper: its authors, with its title.
 */
export function presets() {
  const rises = (values) => t("rises from {lowest} to {highest}; the mean is {scale}", values);
  return [
    {
      name: t("limited interval"),
      shape: "interval",
      values: { axis: "percent", start: 0.2, end: 0.8, outside: 1 },
      effect: (values) => t("{highest} in the middle, {lowest} outside", values),
      models: t("any model"),
      paper: t("after {paper}", { paper: "Kynkäänniemi et al. 2024" }),
      title: INTERVALS,
    },
    {
      name: t("interval for SDXL"),
      shape: "interval for SDXL",
      effect: (values) => t("{highest} from sigma 5.42 to 0.28, else {lowest}", values),
      models: t("SDXL, other EPS and V models; not flow models"),
      paper: "Kynkäänniemi et al. 2024",
      title: INTERVALS,
    },
    {
      name: t("linear rise"),
      shape: "linear rise",
      effect: rises,
      models: t("any model"),
      paper: "Wang et al. 2024",
      title: SCHEDULERS,
    },
    {
      name: t("cosine rise"),
      shape: "cosine rise",
      effect: rises,
      models: t("any model"),
      paper: "Wang et al. 2024",
      title: SCHEDULERS,
    },
    {
      name: t("power-cosine rise"),
      shape: "power-cosine rise",
      effect: (values) => t("rises from {lowest} to {highest}, most of it late", values),
      models: t("class-conditional models at high scales"),
      paper: "Gao et al. 2023",
      title: TRANSFORMER,
    },
  ];
}
