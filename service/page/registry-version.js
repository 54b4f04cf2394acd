// One version in full: lineage, evaluation, comparison, and the record as it was signed.

import {
  ask, code, duration, element, facts, find, folded, hint, json, locale, number, percent, section,
  short, size, table, time,
} from "./registry-parts.js";
import { TEXTS } from "./registry-texts.js";

const texts = () => TEXTS[locale.name];
const isMeasure = (value) => isRate(value) || typeof value === "number";
const isRate = (value) => value !== null && typeof value === "object" && "share" in value;

export function showVersion(version, others) {
  const title = `${version.name}/${version.version}`;
  return [
    element("h2", { textContent: title }),
    version.description ? hint(version.description) : null,
    section(texts().lineage, lineage(version)),
    section(texts().evaluation, ...evaluation(version.manifest.evaluation)),
    others.length ? section(texts().compare, comparison(version, others)) : null,
    section(texts().record, folded(version.digest, json(version.manifest))),
  ].filter(Boolean);
}

function lineage(version) {
  const { manifest } = version;
  const step = (title, ...content) =>
    element("div", {}, element("h4", { textContent: title }), ...content);
  return element("div", { className: "lineage" },
    step(texts().data, ...data(manifest)),
    step(texts().base, base(manifest)),
    step(texts().training, training(manifest)),
    step(`${texts().version} ${version.version}`, artifact(version)),
    step(texts().merged, ...merged(version.variants)));
}

function data(manifest) {
  const record = manifest.training?.data;
  const files = Object.entries(record?.files ?? {});
  const parts = [
    manifest.data_statement
      ? element("p", { className: "statement", textContent: manifest.data_statement }) : null,
    facts([
      [texts().examples, counted(record?.examples)], [texts().rows, counted(record?.rows)],
      [texts().tokens, counted(record?.tokens)],
      [texts().languages, Object.keys(record?.languages ?? {}).join(", ") || manifest.languages?.join(", ")],
      [texts().licences, Object.keys(record?.licences ?? {}).join(", ")],
    ]),
    files.length
      ? folded(`${texts().files}: ${files.length}`, table([texts().files, texts().digest],
        files.map(([name, digest]) => [name.split("/").pop(), short(digest)])))
      : null,
  ].filter(Boolean);
  return record || manifest.data_statement || manifest.languages?.length ? parts : [hint(texts().noRecord)];
}

function base(manifest) {
  return facts([
    [texts().source, find(manifest, "training.config.base")],
    [texts().precision, manifest.precision],
    [texts().weights, short(manifest.base.weights)],
    [texts().architecture, short(manifest.base.arch)],
    [texts().tokenizer, short(manifest.base.tokenizer)],
    [texts().format, manifest.prompt_format],
  ]);
}

function training(manifest) {
  const record = manifest.training ?? {};
  const lora = manifest.adapter;
  const spent = record.seconds;
  return facts([
    [texts().method, find(record, "config.method.kind") ?? (lora.use_rslora ? "rsLoRA" : "LoRA")],
    [texts().rank, number(lora.r)],
    [texts().scale, number(lora.lora_alpha / (lora.use_rslora ? Math.sqrt(lora.r) : lora.r))],
    [texts().modules, counted(lora.modules)],
    [texts().epochs, counted(find(record, "config.fit.num_train_epochs") ?? record.epochs)],
    [texts().rate, rate(find(record, "config.fit.learning_rate") ?? record.learning_rate)],
    [texts().seed, String(find(record, "config.fit.seed") ?? record.seed ?? "")],
    [texts().hardware, record.hardware],
    [texts().seconds, typeof spent === "number" ? duration(spent) : null],
  ]);
}

function artifact(version) {
  const bytes = Object.values(version.manifest.files).reduce((sum, file) => sum + file.size, 0);
  return facts([
    [texts().digest, short(version.digest)], [texts().published, time(version.created_at)],
    [texts().by, version.created_by], [texts().size, size(bytes)],
    [texts().signatures, version.signatures.join(", ") || texts().unsigned],
  ]);
}

function merged(variants) {
  if (!variants.length) return [hint(texts().noMerged)];
  return variants.map((variant) => {
    const { fidelity, relative_change: change } = variant.manifest;
    return element("div", {}, facts([
      [variant.kind, size(variant.size)],
      [texts().change, percent(change)],
      [texts().fidelity, fidelity ? null : texts().notMeasured],
    ]), fidelity ? folded(texts().fidelity, json(fidelity)) : null);
  });
}

/** Measures as rows, ways of generating and languages as columns. */
function evaluation(record) {
  if (!record) return [hint(texts().noEvaluation)];
  const { by_language: languages, ...rest } = record;
  const parts = ["unconstrained", "constrained"].filter((name) => rest[name]);
  // A record of another shape: its own values, not groups of them.
  const groups = parts.length
    ? [...parts.map((name) => [texts()[name], rest[name]]), ...Object.entries(languages ?? {})]
    : [[texts().value, rest]];
  const found = new Set(groups.flatMap(([, group]) => Object.keys(group)));
  const known = Object.keys(texts().measures);
  const names = [...known, ...[...found].filter((name) => !known.includes(name))];
  const rows = names.filter((name) => groups.some(([, group]) => isMeasure(group[name])))
    .map((name) => [texts().measures[name] ?? name, ...groups.map(([, group]) => measure(group[name]))]);
  return [table([texts().measure, ...groups.map(([title]) => title)], rows)];
}

function measure(value) {
  if (!isMeasure(value)) return "";
  if (!isRate(value)) return number(value);
  if (value.of === 0) return "–";
  const meter = element("meter", { min: 0, max: 1, value: value.share });
  meter.setAttribute("aria-hidden", "true");
  const count = value.of ? `${number(value.count)}/${number(value.of)}` : "";
  const interval = value.low == null ? "" : `${percent(value.low)} – ${percent(value.high)}`;
  const title = [count, interval && `${texts().interval}: ${interval}`].filter(Boolean).join("; ");
  return element("span", { className: "rate", title }, percent(value.share), meter);
}

function comparison(version, others) {
  const list = element("select", {}, element("option", { value: "", textContent: texts().choose }));
  list.setAttribute("aria-label", texts().compare);
  for (const other of others) list.append(element("option", { textContent: other }));
  const result = element("div");
  list.addEventListener("change", async () => {
    result.replaceChildren();
    if (!list.value) return;
    try {
      const path = `/registry/adapters/${version.name}/diff?one=${list.value}&other=${version.version}`;
      const changes = Object.entries(await ask(path));
      const cell = (value) => (value == null ? "" : code(typeof value === "string" ? value : JSON.stringify(value)));
      result.append(changes.length
        ? table([texts().field, `/${list.value}`, `/${version.version}`],
          changes.map(([name, [left, right]]) => [code(name), cell(left), cell(right)]))
        : hint(texts().same));
    } catch (error) {
      result.append(hint(error.message));
    }
  });
  return element("div", {}, list, result);
}

function rate(value) {
  return typeof value === "number" ? value.toLocaleString(locale.name, { maximumSignificantDigits: 3 }) : null;
}

function counted(value) {
  return typeof value === "number" ? number(value) : null;
}
