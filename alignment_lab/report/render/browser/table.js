// The table: a row per configuration or per run, any column sorts, metrics may be left out, rows may be hidden from everything else.

const absent = "–";
/** {name, heading, of(row) -> {text, range, value, ...}, right, metric}: what a column says of a configuration or of a run. */
const columns = () => {
  const bySeed = state.rows === "configurations";
  const keys = data.keys.map((key, at) => ({ name: `key:${at}`, heading: key.name, of: (row) => setting(configurationOf(row).settings[at]) }));
  const metrics = data.metrics.filter((one) => state.columns.has(one.name)).flatMap((one) => metricColumns(one.name, bySeed));
  const costs = [["time", "time", "total"], ["tokens/s", "speed", "speed"], ["peak GB", "memory", "memory"]].map(([heading, name, key]) => ({ name, heading, right: true, of: (row) => cost(row, key) }));
  const own = bySeed
    ? [{ name: "seeds", heading: "seeds", right: true, of: (row) => ({ text: String(row.seeds.length), value: row.seeds.length, range: row.seeds.join(", ") }) }]
    : [{ name: "seed", heading: "seed", right: true, of: (row) => setting(row.seed) }, { name: "state", heading: "state", of: (row) => ({ text: row.state, value: row.state, state: row.state }) }];
  return [{ name: "name", heading: bySeed ? "configuration" : "run", of: (row) => ({ text: row.label, value: row.label }) }, ...keys, ...own, ...metrics, ...costs];
};
const configurationOf = (row) => (row.cells ? row : data.configurations[row.configuration]);
const setting = (value) => (value == null ? { text: absent } : { text: value, value: value !== "" && Number.isFinite(Number(value)) ? Number(value) : value });
const metricColumns = (name, bySeed) => {
  const value = { name: `metric:${name}`, heading: name, right: true, metric: name, of: (row) => row.metrics[name] || { text: absent } };
  return name === state.metric && bySeed && data.reference != null ? [value, { name: "verdict", heading: data.picked ? "beside the best" : "beside the baseline", of: verdictOf }] : [value];
};
const verdictOf = (row) => {
  if (row.place === data.reference) return { text: "reference", value: 0, word: "is-reference" };
  const found = row.verdicts[state.metric];
  if (!found) return { text: absent };
  const rows = found.rows ? `rows: ${found.rows.difference} ${found.rows.p} ${found.rows.word === "noise" ? "" : found.rows.word}` : "";
  const title = `${found.difference}, ${found.how}${found.rows ? `; row by row on the same ${found.rows.n} held-out prompts ${found.rows.difference}` : ""}`;
  return { text: `${found.said} ${found.p}`.trim(), range: found.value == null ? "" : found.difference, more: rows, value: found.value ?? undefined, word: found.word, title };
};
const cost = (row, key) => {
  const values = (row.cells ? finished(row) : [row]).map((cell) => cell.costs[key]).filter((value) => value != null);
  if (!values.length) return { text: absent };
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return { text: key === "total" ? time(mean) : said(mean), value: mean };
};
const time = (seconds) => (seconds < 90 ? `${seconds < 10 ? seconds.toFixed(1) : seconds.toFixed(0)} s` : seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`);

const tableRows = () => {
  const shown = filtered();
  return state.rows === "configurations" ? shown : shown.flatMap((one) => one.cells);
};
const sorted = (rows, all) => {
  const by = all.find((column) => column.name === state.sort.by);
  if (!by) return rows;
  const value = new Map(rows.map((row) => [row, by.of(row).value]));
  const order = state.sort.down ? -1 : 1;
  return [...rows].sort((one, other) => {
    const [a, b] = [value.get(one), value.get(other)];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // what was not measured stands last either way
    return order * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  });
};

const heading = (column) => {
  const active = state.sort.by === column.name;
  const direction = active ? (state.sort.down ? "descending" : "ascending") : "none";
  return make("th", { class: column.right ? "right" : "", "aria-sort": direction, scope: "col", "data-column": column.name },
    make("button", { type: "button", onclick: () => sortBy(column) }, column.heading.replace(/\//g, "/\u200b"), make("span", { class: "arrow", "aria-hidden": "true", text: active ? (state.sort.down ? " ▾" : " ▴") : "" })));
};
/** Numbers from the highest on, words from A on; again turns it over, and once more gives the first order back. */
const sortBy = (column) => {
  const first = Boolean(column.right);
  if (state.sort.by !== column.name) state.sort = { by: column.name, down: first };
  else if (state.sort.down === first) state.sort.down = !first;
  else state.sort = { by: null, down: false };
  changed("table");
  onceDrawn(() => document.querySelector(`th[data-column="${CSS.escape(column.name)}"] button`)?.focus());
};

const content = (found) => [
  found.state ? make("span", { class: `state ${found.state}`, text: found.text }) : make("span", { class: `value ${found.word || ""}`, text: found.text }),
  found.range ? make("span", { class: "interval", text: found.range }) : null,
  found.more ? make("span", { class: "interval", text: found.more }) : null,
  found.before != null ? make("span", { class: "interval", text: `from ${said(found.before)}` }) : null,
];
const rowName = (row) => {
  const one = configurationOf(row);
  const hidden = state.hidden.has(one.place);
  const box = make("input", { type: "checkbox", "aria-label": `show ${one.label}`, onchange: () => toggleHidden(one.place) });
  box.checked = !hidden;
  const named = row.link ? make("a", { href: row.link.split("/").map(encodeURIComponent).join("/"), text: row.label }) : row.label;
  const alive = row.cells && !row.seeds.length ? make("span", { class: `state ${row.cells[0].state}`, text: row.cells[0].state }) : null;
  return make("th", { scope: "row" }, make("label", {}, box, swatch(one), named), alive);
};

const cellOf = (column, found) => make("td", { class: column.right ? "right" : "", title: found.title }, ...content(found));

const drawTable = () => {
  const all = columns();
  const rows = sorted(tableRows(), all);
  const body = rows.map((row) => make("tr", { "data-row": configurationOf(row).place, class: state.hidden.has(configurationOf(row).place) ? "hidden-row" : "" },
    rowName(row), ...all.slice(1).map((column) => cellOf(column, column.of(row)))));
  byId("table").replaceChildren(make("thead", {}, make("tr", {}, ...all.map(heading))), make("tbody", {}, ...body));
  const [seen, total] = [visible().length, data.configurations.length];
  byId("count").textContent = `${seen} of ${total} shown`;
  byId("reset").hidden = seen === total;
};
