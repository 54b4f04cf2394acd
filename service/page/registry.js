// The registry's page: adapters at the left; aliases, replicas, versions and one version at the right.

import {
  ask, chip, element, find, folded, hint, json, locale, percent, section, table, time,
} from "./registry-parts.js";
import { TEXTS } from "./registry-texts.js";
import { showVersion } from "./registry-version.js";

const $ = (id) => document.getElementById(id);
const texts = () => TEXTS[locale.name];
const PAGE = 100;
let next = null; // where the following page of adapters begins
let turn = 0; // of what was asked for last; answers to earlier questions come too late

function translate() {
  document.documentElement.lang = locale.name;
  for (const node of document.querySelectorAll("[data-text]")) {
    node.textContent = texts()[node.dataset.text];
  }
  $("prefix").placeholder = texts().search;
  $("prefix").setAttribute("aria-label", texts().search);
  $("locale").textContent = locale.name === "vi" ? "English" : "Tiếng Việt";
}

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
  $("status").hidden = !text;
}

/** What the address names: `#mcq-vi` or `#mcq-vi/3`. */
function chosen() {
  const [name, version] = decodeURIComponent(location.hash.slice(1)).split("/");
  return { name, version: version ? Number(version) : null };
}

async function listAdapters(after = "") {
  const query = new URLSearchParams({ limit: PAGE, after, prefix: $("prefix").value.trim() });
  const page = await ask(`/registry/adapters?${query}`);
  const items = page.adapters.map((adapter) => {
    const link = element("a", { href: `#${adapter.name}`, textContent: adapter.name });
    const aliases = Object.entries(adapter.aliases).map(([name, version]) => `${name} → ${version}`);
    link.append(element("small", {
      textContent: [texts().versionsCount(adapter.versions), ...aliases].join(" · ") }));
    return element("li", {}, link);
  });
  if (after) $("adapters").append(...items);
  else $("adapters").replaceChildren(...items);
  next = page.next;
  $("more").hidden = next === null;
  return page.adapters;
}

function markChosen(name) {
  for (const link of $("adapters").querySelectorAll("a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

async function showAdapter() {
  const mine = ++turn;
  const { name, version: wanted } = chosen();
  markChosen(name);
  const adapter = await ask(`/registry/adapters/${encodeURIComponent(name)}`);
  const path = `/registry/adapters/${adapter.name}`;
  const aliases = await Promise.all(
    adapter.aliases.map((alias) => ask(`${path}/aliases/${alias.alias}`)));
  const ready = adapter.versions.filter((version) => version.status === "ready");
  const production = aliases.find((alias) => alias.alias === "production")?.version;
  const number = wanted ?? production ?? ready[0]?.version;
  const version = number == null ? null : await ask(`${path}/versions/${number}`);
  if (mine !== turn) return;
  const others = ready.map((item) => item.version).filter((other) => other !== number);
  say("");
  $("adapter").replaceChildren(
    element("h2", { textContent: adapter.name }),
    section(texts().aliases, ...aliasTable(adapter.name, aliases)),
    section(texts().serving, servingTable(adapter.leases)),
    section(texts().versions, versionTable(adapter, number)));
  $("version").replaceChildren(...(version ? showVersion(version, others) : []));
}

function versionLink(name, number) {
  return element("a", { href: `#${name}/${number}`, textContent: number });
}

function aliasTable(name, aliases) {
  if (!aliases.length) return [hint(texts().noAliases)];
  return [table(
    [texts().alias, texts().version, texts().since, texts().history],
    aliases.map((alias) => [
      chip(alias.alias), versionLink(name, alias.version), time(alias.updated_at), moves(alias)]))];
}

function moves(alias) {
  const rows = alias.history.map((move) => [
    time(move.at), `${move.from ?? "–"} → ${move.to ?? "–"}`, move.actor,
    [move.kind === "rollback" ? texts().rollback : "", move.reason].filter(Boolean).join(": ")]);
  const gate = alias.gate ? folded(texts().gate, json(alias.gate)) : null;
  return element("div", {}, folded(texts().moves(rows.length),
    table([texts().when, `${texts().from} → ${texts().to}`, texts().by, texts().reason], rows)), gate);
}

function servingTable(leases) {
  if (!leases.length) return hint(texts().noLeases);
  return table([texts().replica, texts().version, texts().until],
    leases.map((lease) => [lease.replica, versionLink(lease.name, lease.version), time(lease.expires_at)]));
}

function versionTable(adapter, shown) {
  const rows = adapter.versions.map((version) => {
    const { manifest, version: number } = version;
    const aliases = adapter.aliases.filter((alias) => alias.version === number);
    const replicas = adapter.leases.filter((lease) => lease.version === number).length;
    const record = manifest.evaluation ?? {};
    const valid = find(record, "unconstrained.valid_format.share") ?? find(record, "valid.share");
    const isReady = version.status === "ready";
    const cells = [
      isReady ? versionLink(adapter.name, number) : number,
      element("span", {}, ...aliases.map((alias) => chip(alias.alias))),
      texts()[version.status], time(version.created_at), version.created_by, manifest.precision,
      manifest.prompt_format, valid == null ? "–" : percent(valid), replicas || "–"];
    const row = element("tr", { className: isReady ? "" : "gone" },
      ...cells.map((cell) => element("td", {}, cell)));
    if (number === shown) row.setAttribute("aria-current", "true");
    return row;
  });
  return table(
    [texts().version, texts().aliases, texts().state, texts().published, texts().by,
      texts().precision, texts().format, texts().valid, texts().served], rows);
}

/** Runs something that asks the server, and says what went wrong. */
async function trying(action) {
  try {
    await action();
  } catch (error) {
    $("adapter").replaceChildren();
    $("version").replaceChildren();
    say(error instanceof TypeError ? texts().unreachable : error.message, true);
  }
}

async function start() {
  translate();
  say(texts().loading);
  const adapters = await listAdapters();
  if (chosen().name) await showAdapter();
  else if (adapters.length) location.replace(`#${adapters[0].name}`);
  else {
    $("adapter").replaceChildren();
    say($("prefix").value ? "" : texts().none);
  }
}

let waiting = 0;
$("prefix").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => trying(async () => {
    await listAdapters();
    markChosen(chosen().name);
  }), 200);
});
$("more").addEventListener("click", () => trying(async () => {
  await listAdapters(next);
  markChosen(chosen().name);
}));
$("locale").addEventListener("click", () => {
  locale.name = locale.name === "vi" ? "en" : "vi";
  localStorage.setItem("locale", locale.name);
  trying(start);
});
window.addEventListener("hashchange", () => trying(showAdapter));
trying(start);
