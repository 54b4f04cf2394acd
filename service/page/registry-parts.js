// Small parts of the registry's page: elements, tables, numbers and times in the reader's language.

export const locale = { name: localStorage.getItem("locale") ?? "vi" };

export function element(tag, attributes = {}, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children.filter((child) => child != null));
  return node;
}

export const code = (text) => element("code", { textContent: text });
export const chip = (text) => element("span", { className: "chip", textContent: text });
export const hint = (text) => element("p", { className: "hint", textContent: text });
export const short = (digest) => code(digest.replace("sha256:", "").slice(0, 12));
export const number = (value) => value.toLocaleString(locale.name, { maximumFractionDigits: 4 });
export const percent = (share) =>
  share.toLocaleString(locale.name, { style: "percent", maximumFractionDigits: 1 });
export const size = (bytes) => (bytes >= 1e9 ? `${number(Math.round(bytes / 1e8) / 10)} GB`
  : bytes >= 1e5 ? `${number(Math.round(bytes / 1e5) / 10)} MB` : `${number(Math.ceil(bytes / 1e3))} kB`);
export const time = (text) => element("time", {
  dateTime: text,
  textContent: new Date(text).toLocaleString(locale.name, { dateStyle: "short", timeStyle: "short" }),
});

export function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  if (minutes < 2) return `${number(Math.round(seconds))} s`;
  return minutes < 120 ? `${minutes} min` : `${number(Math.round(minutes / 6) / 10)} h`;
}

export function table(titles, rows) {
  const head = element("tr", {}, ...titles.map((title) => element("th", { textContent: title })));
  const lines = rows.map((cells) =>
    cells instanceof Node ? cells : element("tr", {}, ...cells.map((c) => element("td", {}, c ?? ""))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines));
}

/** Terms and values; what was not recorded is left out. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value != null && value !== "");
  return element("dl", {}, ...known.map(([term, value]) =>
    element("div", {}, element("dt", { textContent: term }), element("dd", {}, value))));
}

export function section(title, ...children) {
  return element("section", {}, element("h3", { textContent: title }), ...children);
}

export function folded(title, ...children) {
  return element("details", {}, element("summary", { textContent: title }), ...children);
}

export const json = (value) => element("pre", { textContent: JSON.stringify(value, null, 2) });

/** A value deep in a record that may hold it or not: `find(record, "data.rows")`. */
export const find = (record, path) => path.split(".").reduce((value, key) => value?.[key], record);

export async function ask(path) {
  const answer = await fetch(path);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.detail);
  return body;
}
