// Which charts there are: the metric by configuration, by setting, by step, drift, cost. Draws visible configurations only.

const metricOf = (name = state.metric) => data.metrics.find((one) => one.name === name);
const valueOf = (one, name = state.metric) => one.metrics[name];
/** The finished runs of a configuration. */
const finished = (one) => one.cells.filter((cell) => cell.counted);
const chartName = (name) => name.replace(/^eval_/, "held out: ");

const drawMarks = () => {
  const shown = visible().filter((one) => valueOf(one));
  const target = byId("marks");
  byId("marks-title").textContent = state.metric ? `${chartName(state.metric)}, by configuration` : "Nothing was measured";
  if (!shown.length) return target.replaceChildren(make("p", { class: "none", text: "Nothing to show: no visible configuration measured this." }));
  shown.sort((one, other) => valueOf(other).value - valueOf(one).value);
  const [width, rowHeight, top] = [1100, 26, 8];
  const longest = Math.min(46, Math.max(...shown.map((one) => one.label.length)));
  const [left, right, height] = [26 + longest * 7.4, width - 250, top + shown.length * rowHeight + 34];
  const values = shown.flatMap((one) => [valueOf(one).value, valueOf(one).before ?? valueOf(one).value, ...(valueOf(one).ends || []), ...seedValues(one)]);
  const [low, high] = extent(values, { bounded: metricOf().share });
  const x = (value) => left + ((value - low) / (high - low)) * (right - left);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "plot", role: "img", "aria-label": `${state.metric} by configuration` });
  const axes = svg("g", { class: "axes" });
  const at = ticks(low, high, 6);
  at.forEach((tick) => axes.append(
    svg("line", { x1: x(tick), x2: x(tick), y1: top, y2: height - 30, class: "grid" }),
    svg("text", { x: x(tick), y: height - 14, "text-anchor": "middle", text: said(tick, at[1] - at[0] || 0) })));
  const reference = data.configurations[data.reference];
  if (reference && valueOf(reference)) axes.append(svg("line", { x1: x(valueOf(reference).value), x2: x(valueOf(reference).value), y1: top, y2: height - 30, class: "reference" }));
  drawing.append(axes);
  const marks = [];
  shown.forEach((one, place) => markRow(drawing, marks, one, top + (place + 0.5) * rowHeight, { x, left, right }));
  pointing(drawing, marks, width);
  target.replaceChildren(drawing);
  const kinds = new Set(shown.map((one) => valueOf(one).of));
  const bars = kinds.has("seeds") ? "Full points: means over seeds, bars: their 95% intervals, small points: the seeds." : "Full points: after training, bars: 95% intervals over held-out rows.";
  byId("marks-note").textContent = `${bars} Hollow: before training. ${reference ? `Dashed: ${reference.label}.` : ""} ${metricOf().scaled ? "Losses, rewards and margins are on each method's and beta's own scale." : ""}`;
};
const seedValues = (one) => finished(one).map((cell) => cell.metrics[state.metric]).filter(Boolean).map((found) => found.value);

const markRow = (drawing, marks, one, y, { x, left, right }) => {
  const [found, verdict] = [valueOf(one), one.verdicts[state.metric]];
  const row = svg("g", { "data-one": one.place });
  row.append(svg("text", { x: left - 14, y: y + 4, "text-anchor": "end", class: "name", text: short(one.label, 46) }));
  if (found.before != null) row.append(svg("circle", { cx: x(found.before), cy: y, r: 3.6, fill: "var(--paper)", stroke: "var(--axis)", "stroke-width": 1.5 }));
  if (found.ends) row.append(svg("line", { x1: x(found.ends[0]), x2: x(found.ends[1]), y1: y, y2: y, stroke: colourOf(one), "stroke-width": 2.2, "stroke-linecap": "round" }));
  const seeds = seedValues(one);
  if (seeds.length > 1) seeds.forEach((value) => row.append(svg("circle", { cx: x(value), cy: y + 6, r: 1.8, fill: colourOf(one), opacity: 0.75 })));
  row.append(svg("circle", { cx: x(found.value), cy: y, r: 5, fill: colourOf(one) }));
  const words = one.place === data.reference ? (data.picked ? "compared with: best" : "compared with: baseline") : verdict ? `${verdict.said} ${verdict.p}` : "";
  row.append(svg("text", { x: right + 18, y: y + 4, class: `name ${verdict ? verdict.word : "is-reference"}`, text: words }));
  drawing.append(row);
  const beside = verdict && verdict.value != null ? `\nbeside the reference ${verdict.difference} ${verdict.p}` : "";
  marks.push({ x: x(found.value), y, one, text: () => `${one.label}\n${found.text} ${found.range} (${found.of === "seeds" ? `${found.n} seeds` : `n=${found.n}`})${beside}` });
};

const drawSettings = () => {
  const charts = data.keys.map((key, at) => ({ key, at })).filter(({ key }) => key.values.length > 1).map(settingChart).filter(Boolean);
  byId("settings-section").hidden = !charts.length;
  byId("settings").replaceChildren(...charts);
};
const varies = (shown, at) => new Set(shown.map((one) => one.settings[at])).size > 1;
const settingChart = ({ key, at }) => {
  const shown = visible().filter((one) => valueOf(one) && one.settings[at] !== null);
  const names = key.values.filter((value) => shown.some((one) => one.settings[at] === value));
  if (names.length < 2) return null;
  const numbers = names.map((name) => (/^-?[\d.]+(e[+-]?\d+)?$/i.test(name) ? Number(name) : NaN));
  const numeric = numbers.every(Number.isFinite);
  const log = numeric && numbers.every((number) => number > 0) && Math.max(...numbers) / Math.min(...numbers) >= 10;
  const place = (one) => (numeric ? Number(one.settings[at]) : names.indexOf(one.settings[at]));
  const chart = plane({
    xs: shown.map(place), ys: shown.flatMap((one) => [valueOf(one).value, ...(valueOf(one).ends || [])]), log, bounded: metricOf().share,
    categories: numeric ? null : names, places: numeric && numbers.length < 7 ? numbers : null, xTitle: key.name + (log ? " (log)" : ""), yTitle: short(chartName(state.metric), 34), name: `${state.metric} against ${key.name}`,
  });
  const lines = new Map();
  shown.forEach((one) => {
    const others = JSON.stringify(one.settings.filter((_, other) => other !== at));
    lines.set(others, [...(lines.get(others) || []), one]);
  });
  const named = [...lines.values()].map((members, index) => {
    settingLine(chart, members, place, (index - (lines.size - 1) / 2) * Math.min(7, 70 / lines.size));
    const others = data.keys.flatMap((other, where) => (where === at || !varies(shown, where) || members[0].settings[where] === null ? [] : [`${other.name} ${members[0].settings[where]}`]));
    return make("span", {}, swatch(members[0]), others.join(", ") || "every other setting");
  });
  const legend = named.length > 1 && named.length < 13 ? make("p", { class: "legend" }, ...named) : null;
  return make("figure", { class: "chart" }, make("figcaption", { text: `${chartName(state.metric)} against ${key.name}` }), chart.drawing, legend);
};
/** One line, moved `aside` by some pixels, so that the bars of several do not hide each other. It has its first member's colour. */
const settingLine = (chart, members, place, aside) => {
  members.sort((one, other) => place(one) - place(other));
  const moved = { ...chart, x: (value) => chart.x(value) + aside };
  line(moved, members.map((one) => [place(one), valueOf(one).value]), members[0]);
  members.forEach((one) => {
    const [px, found] = [place(one), valueOf(one)];
    if (found.ends) chart.drawing.append(svg("line", { x1: moved.x(px), x2: moved.x(px), y1: chart.y(found.ends[0]), y2: chart.y(found.ends[1]), stroke: colourOf(members[0]), "stroke-width": 1.2, opacity: 0.6, "data-one": one.place }));
    dot(moved, px, found.value, { ...one, colour: members[0].colour }, { radius: 4 });
    mark(moved, px, found.value, one, () => `${one.label}\n${found.text} ${found.range}`);
  });
};

const drawCurves = () => {
  const shown = visible();
  const charts = data.panels.map((panel, at) => curveChart(panel, at, shown)).filter(Boolean);
  byId("curves").replaceChildren(...(charts.length ? charts : [make("p", { class: "none", text: "No step was logged." })]));
};
const curveChart = (panel, at, shown) => {
  const drawn = shown.flatMap((one) => one.cells.map((cell) => ({ one, cell, training: cell.curves[at], heldout: cell.heldout[at] })));
  const points = drawn.flatMap((each) => [...each.training, ...each.heldout]);
  if (!points.length) return null;
  const ys = points.map(([, py]) => py);
  const logY = ["loss", "norm"].includes(panel.axis) && ys.every((py) => py > 0) && Math.max(...ys) / Math.min(...ys) > 30; // losses of unlike methods, say
  const chart = plane({ xs: points.map(([px]) => px), ys, bounded: panel.bounded, logY, whole: true, xTitle: "step", yTitle: panel.axis + (logY ? " (log)" : ""), name: panel.title });
  drawn.forEach(({ one, cell, training, heldout }) => {
    if (training.length > 1) line(chart, training, one, { weight: drawn.length > 30 ? 1 : 1.5 });
    [...(training.length === 1 ? training : []), ...heldout].forEach(([px, py]) => dot(chart, px, py, one, { radius: 3 }));
    [...training, ...heldout].forEach(([px, py]) => mark(chart, px, py, one, () => `${cell.label}\nstep ${said(px)}: ${said(py)}`));
  });
  return make("figure", { class: "chart" }, make("figcaption", { text: panel.title }), chart.drawing);
};

const drawLegend = () => byId("legend").replaceChildren(...filtered().map((one) =>
  make("button", {
    type: "button", class: "chip", "aria-pressed": String(!state.hidden.has(one.place)), title: "Click: hide or show. Shift or double click: this one alone.",
    onclick: (event) => { if (event.shiftKey) alone(one.place); else toggleHidden(one.place); keepFocus(one.place); },
    ondblclick: () => alone(one.place), onpointerenter: () => heat(one), onpointerleave: () => heat(null), onfocus: () => heat(one), onblur: () => heat(null), "data-chip": one.place,
  }, swatch(one), one.label)));
/** Legends are drawn anew after a change: whoever works with the keyboard stays where they were. */
const keepFocus = (place) => onceDrawn(() => { const chip = document.querySelector(`[data-chip="${place}"]`); if (chip) chip.focus(); });
const onceDrawn = (then) => requestAnimationFrame(() => requestAnimationFrame(then));

const drawDrift = () => {
  const drawn = visible().flatMap((one) => finished(one).filter((cell) => cell.drift.length).map((cell) => ({ one, cell })));
  const target = byId("drift");
  if (!drawn.length) return target.replaceChildren(make("p", { class: "none", text: "No visible run recorded log-probabilities of held-out answers." }));
  const points = drawn.flatMap(({ cell }) => cell.drift);
  const chart = plane({ width: 600, height: 340, xs: points.map(([px]) => px), ys: points.map(([, py]) => py), xTitle: "drift from the reference, nats per answer", yTitle: "margin, nats", name: "margin against drift" });
  drawn.forEach(({ one, cell }) => {
    line(chart, cell.drift, one, { weight: 1 });
    const [px, py] = cell.drift[cell.drift.length - 1];
    dot(chart, px, py, one, { radius: 4.5 });
    mark(chart, px, py, one, () => `${cell.label}\ndrift ${said(px)}, margin ${said(py)} nats`);
  });
  target.replaceChildren(chart.drawing);
};

const drawCost = () => {
  const drawn = visible().flatMap((one) => finished(one).filter((cell) => cell.costs.total && cell.metrics[state.metric]).map((cell) => ({ one, cell })));
  byId("cost-title").textContent = `${chartName(state.metric)} against time`;
  if (!drawn.length) return byId("cost").replaceChildren(make("p", { class: "none", text: "No visible run has a time and this metric." }));
  const [xs, ys] = [drawn.map(({ cell }) => cell.costs.total), drawn.map(({ cell }) => cell.metrics[state.metric].value)];
  const chart = plane({ width: 600, height: 340, xs, ys, zero: true, bounded: metricOf().share, xTitle: "seconds, all phases", yTitle: short(chartName(state.metric), 34), name: "metric against cost" });
  drawn.forEach(({ one, cell }, at) => {
    dot(chart, xs[at], ys[at], one, { radius: 4.5 });
    mark(chart, xs[at], ys[at], one, () => `${cell.label}\n${cell.time}, ${said(cell.costs.speed ?? 0)} tokens/s, ${cell.costs.memory ?? "?"} GB\n${cell.hardware}`);
  });
  byId("cost").replaceChildren(chart.drawing);
  byId("cost-note").textContent = `On: ${[...new Set(drawn.map(({ cell }) => cell.hardware))].join("; ")}.`;
};

const phaseNames = ["load", "reference", "train", "evaluate", "generate", "save"];
const drawPhases = () => {
  const drawn = visible().flatMap((one) => finished(one).filter((cell) => cell.costs.total).map((cell) => ({ one, cell })));
  byId("phases-figure").hidden = !drawn.length;
  const most = Math.max(...drawn.map(({ cell }) => cell.phases.reduce((sum, part) => sum + part, 0)), 1e-9);
  const key = make("p", { class: "legend" }, ...phaseNames.map((name, at) => make("span", {}, make("i", { class: `phase phase-${at}` }), name)));
  const rows = drawn.map(({ one, cell }) => make("div", { class: "phase-row", "data-row": one.place, title: phaseNames.map((name, at) => `${name} ${said(cell.phases[at])} s`).join(", ") },
    make("span", { class: "phase-name", text: cell.label }),
    make("span", { class: "phase-bar" }, ...cell.phases.map((part, at) => make("i", { class: `phase phase-${at}`, style: `width:${((100 * part) / most).toFixed(2)}%` }))),
    make("span", { class: "phase-said", text: `${cell.time}, ${cell.costs.speed ? said(cell.costs.speed) : "–"} tokens/s, ${cell.costs.memory ?? "–"} GB` })));
  byId("phases").replaceChildren(key, make("div", { class: "phase-rows" }, ...rows));
};
