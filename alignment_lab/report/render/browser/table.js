// The table: a row per configuration or per run. Any column sorts; metrics can be left out; unticked rows are hidden everywhere.

const absent = "–";
/** The columns {name, heading, cell(row) -> {text, interval, value, ...}, right}; a row is a configuration or a run. */
const columns = () => {
  const byConfiguration = state.rows === "configurations";
  const keys = data.keys.map((key, index) => ({ name: `key:${index}`, heading: key.name, cell: (row) => settingCell(configurationOf(row).settings[index]) }));
  const metrics = data.metrics.filter((metric) => state.columns.has(metric.name)).flatMap((metric) => metricColumns(metric.name, byConfiguration));
  const attempts = data.configurations.some(({ runs }) => runs.some(({ costs }) => costs.attempts > 1)) ? [["attempts", "attempts", "attempts"]] : [];
  const costs = [...attempts, ["time", "time", "total"], ["tokens/s", "speed", "speed"], ["peak GB", "memory", "memory"]].map(([heading, name, key]) => ({ name, heading, right: true, cell: (row) => costCell(row, key) }));
  const seeds = byConfiguration
    ? [{ name: "seeds", heading: "seeds", right: true, cell: (row) => ({ text: String(row.seeds.length), value: row.seeds.length, interval: row.seeds.join(", ") }) }]
    : [{ name: "seed", heading: "seed", right: true, cell: (row) => settingCell(row.seed) }, { name: "state", heading: "state", cell: (row) => ({ text: row.state, value: row.state, state: row.state }) }];
  return [{ name: "name", heading: byConfiguration ? "configuration" : "run", cell: (row) => ({ text: row.label, value: row.label }) }, ...keys, ...seeds, ...metrics, ...costs];
};
const configurationOf = (row) => (row.runs ? row : data.configurations[row.configuration]);
const settingCell = (value) => (value == null ? { text: absent } : { text: value, value: value !== "" && Number.isFinite(Number(value)) ? Number(value) : value });
const metricColumns = (name, byConfiguration) => {
  const column = { name: `metric:${name}`, heading: name, right: true, cell: (row) => measured(row, name) || { text: absent } };
  if (name !== state.metric || !byConfiguration || data.reference == null) return [column];
  return [column, { name: "verdict", heading: `vs. the ${data.referenceIsBest ? "best" : "baseline"}`, cell: verdictCell }];
};
const verdictCell = (row) => {
  if (row.index === data.reference) return { text: "reference", value: 0, class: "is-reference" };
  const verdict = row.verdicts[state.metric];
  if (!verdict) return { text: absent };
  const { byRow } = verdict;
  const rowText = byRow ? `these models: ${byRow.difference} ${byRow.p} ${byRow.outcome === "noise" ? "" : byRow.outcome}` : "";
  const title = `${verdict.difference}, ${verdict.basis}${byRow ? `; these very models, on prompts like the ${byRow.n} held-out ones ${byRow.difference}` : ""}`;
  return { text: `${verdict.text} ${verdict.p}`.trim(), interval: verdict.value == null ? "" : verdict.difference, detail: rowText, value: verdict.value ?? undefined, class: verdict.outcome, title };
};
const costCell = (row, key) => {
  const values = (row.runs ? finishedRuns(row) : [row]).map((run) => run.costs[key]).filter((value) => value != null);
  if (!values.length) return { text: absent };
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return { text: key === "total" ? formatDuration(mean) : formatNumber(mean), value: mean };
};
const formatDuration = (seconds) => (seconds < 90 ? `${seconds < 10 ? seconds.toFixed(1) : seconds.toFixed(0)} s` : seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`);

const tableRows = () => {
  const shown = filtered();
  return state.rows === "configurations" ? shown : shown.flatMap((configuration) => configuration.runs);
};
const sortRows = (rows, allColumns) => {
  const column = allColumns.find(({ name }) => name === state.sort.by);
  if (!column) return rows;
  const values = new Map(rows.map((row) => [row, column.cell(row).value]));
  const sign = state.sort.descending ? -1 : 1;
  return [...rows].sort((first, second) => {
    const [a, b] = [values.get(first), values.get(second)];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // missing values are last either way
    return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  });
};

const headingCell = (column) => {
  const active = state.sort.by === column.name;
  const direction = active ? (state.sort.descending ? "descending" : "ascending") : "none";
  return make("th", { class: column.right ? "right" : "", "aria-sort": direction, scope: "col", "data-column": column.name },
    make("button", { type: "button", onclick: () => sortBy(column) }, column.heading.replace(/\//g, "/\u200b"), make("span", { class: "arrow", "aria-hidden": "true", text: active ? (state.sort.descending ? " ▾" : " ▴") : "" })));
};
/** Numbers descending first, texts ascending first; then reversed; then the original order. */
const sortBy = (column) => {
  const descendingFirst = Boolean(column.right);
  if (state.sort.by !== column.name) state.sort = { by: column.name, descending: descendingFirst };
  else if (state.sort.descending === descendingFirst) state.sort.descending = !descendingFirst;
  else state.sort = { by: null, descending: false };
  changed("table");
  afterRedraw(() => document.querySelector(`th[data-column="${CSS.escape(column.name)}"] button`)?.focus());
};

const detailLine = (text) => (text ? make("span", { class: "interval", text }) : null);
const tableCell = (column, cell) => make("td", { class: column.right ? "right" : "", title: cell.title },
  cell.state ? make("span", { class: `state ${cell.state}`, text: cell.text }) : make("span", { class: `value ${cell.class || ""}`, text: cell.text }),
  detailLine(cell.interval), detailLine(cell.detail), cell.before != null ? detailLine(`before ${formatNumber(cell.before)}`) : null);
const rowHeading = (row) => {
  const configuration = configurationOf(row);
  const { index, label } = configuration;
  const box = make("input", { type: "checkbox", "aria-label": `show ${label}`, onchange: () => toggleHidden(index) });
  box.checked = !state.hidden.has(index);
  const name = row.link ? make("a", { href: row.link.split("/").map(encodeURIComponent).join("/"), text: row.label }) : row.label;
  const unfinished = row.runs && !row.seeds.length ? make("span", { class: `state ${row.runs[0].state}`, text: row.runs[0].state }) : null;
  return make("th", { scope: "row" }, make("label", {}, box, swatch(configuration), name), unfinished);
};

const drawTable = () => {
  const allColumns = columns();
  const body = sortRows(tableRows(), allColumns).map((row) => {
    const { index } = configurationOf(row);
    return make("tr", { "data-row": index, class: state.hidden.has(index) ? "hidden-row" : "" },
      rowHeading(row), ...allColumns.slice(1).map((column) => tableCell(column, column.cell(row))));
  });
  byId("table").replaceChildren(make("thead", {}, make("tr", {}, ...allColumns.map(headingCell))), make("tbody", {}, ...body));
  const [shown, total] = [visible().length, data.configurations.length];
  byId("count").textContent = `${shown} of ${total} shown`;
  byId("reset").hidden = shown === total;
};
