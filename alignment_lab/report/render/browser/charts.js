// The charts: the metric by configuration, by setting, curves, drift, cost. Draws visible configurations only.

const metricInfo = (name = state.metric) => data.metrics.find((metric) => metric.name === name);
const measured = (row, name = state.metric) => row.metrics[name];
/** The runs of a configuration that have results. */
const finishedRuns = (configuration) => configuration.runs.filter((run) => run.hasResults);
/** The visible runs that have results and pass a test, each with its configuration. */
const visibleRuns = (test) => visible().flatMap((configuration) => finishedRuns(configuration).filter(test).map((run) => ({ configuration, run })));
const chartName = (name) => name.replace(/^eval_/, "held out: ");
const emptyNote = (text) => make("p", { class: "none", text });
const sizeText = ({ n, unit }) => (unit === "seeds" ? `${n} seeds` : `n=${n}`);

const drawMarks = () => {
  const shown = visible().filter((configuration) => measured(configuration));
  const target = byId("marks");
  byId("marks-title").textContent = state.metric ? `${chartName(state.metric)}, by configuration` : "Nothing was measured";
  if (!shown.length) return target.replaceChildren(emptyNote("Nothing to show: no visible configuration measured this."));
  shown.sort((a, b) => measured(b).value - measured(a).value);
  const [width, rowHeight, top] = [1100, 26, 8];
  const longest = Math.min(46, Math.max(...shown.map((configuration) => configuration.label.length)));
  const [left, right, height] = [26 + longest * 7.4, width - 250, top + shown.length * rowHeight + 34];
  const values = shown.flatMap((configuration) => {
    const { value, before, bounds } = measured(configuration);
    return [value, before ?? value, ...(bounds || []), ...seedValues(configuration)];
  });
  const [low, high] = extent(values, { bounded: metricInfo().isShare });
  const x = (value) => left + ((value - low) / (high - low)) * (right - left);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "plot", role: "img", "aria-label": `${state.metric} by configuration` });
  const axes = svg("g", { class: "axes" });
  const xTicks = ticks(low, high, 6);
  xTicks.forEach((tick) => axes.append(
    svg("line", { x1: x(tick), x2: x(tick), y1: top, y2: height - 30, class: "grid" }),
    svg("text", { x: x(tick), y: height - 14, "text-anchor": "middle", text: formatNumber(tick, xTicks[1] - xTicks[0] || 0) })));
  const reference = data.configurations[data.reference];
  if (reference && measured(reference)) {
    const referenceX = x(measured(reference).value);
    axes.append(svg("line", { x1: referenceX, x2: referenceX, y1: top, y2: height - 30, class: "reference" }));
  }
  drawing.append(axes);
  const targets = [];
  shown.forEach((configuration, index) => drawMarkRow(drawing, targets, configuration, top + (index + 0.5) * rowHeight, { x, left, right }));
  handlePointer(drawing, targets, width);
  target.replaceChildren(drawing);
  byId("marks-note").textContent = marksNote(shown, reference);
};
const seedValues = (configuration) => finishedRuns(configuration).map((run) => measured(run)).filter(Boolean).map(({ value }) => value);
const marksNote = (shown, reference) => {
  const bySeed = shown.some((configuration) => measured(configuration).unit === "seeds");
  const marks = bySeed ? "Full points: means over seeds, bars: their 95% intervals, small points: the seeds." : "Full points: after training, bars: 95% intervals over held-out rows.";
  const dashed = reference ? `Dashed: ${reference.label}.` : "";
  const scale = metricInfo().dependsOnMethod ? "This metric depends on the method and its beta: compare it within one method." : "";
  return [marks, "Hollow: before training.", dashed, scale].filter(Boolean).join(" ");
};

const drawMarkRow = (drawing, targets, configuration, y, { x, left, right }) => {
  const [value, verdict] = [measured(configuration), configuration.verdicts[state.metric]];
  const color = colorOf(configuration);
  const row = svg("g", { "data-configuration": configuration.index });
  row.append(svg("text", { x: left - 14, y: y + 4, "text-anchor": "end", class: "name", text: truncate(configuration.label, 46) }));
  if (value.before != null) row.append(svg("circle", { cx: x(value.before), cy: y, r: 3.6, fill: "var(--paper)", stroke: "var(--axis)", "stroke-width": 1.5 }));
  if (value.bounds) row.append(svg("line", { x1: x(value.bounds[0]), x2: x(value.bounds[1]), y1: y, y2: y, stroke: color, "stroke-width": 2.2, "stroke-linecap": "round" }));
  const seeds = seedValues(configuration);
  if (seeds.length > 1) seeds.forEach((seed) => row.append(svg("circle", { cx: x(seed), cy: y + 6, r: 1.8, fill: color, opacity: 0.75 })));
  row.append(svg("circle", { cx: x(value.value), cy: y, r: 5, fill: color }));
  const isReference = configuration.index === data.reference;
  const outcome = isReference ? `reference: the ${data.referenceIsBest ? "best" : "baseline"}` : verdict ? `${verdict.text} ${verdict.p}` : "";
  row.append(svg("text", { x: right + 18, y: y + 4, class: `name ${verdict ? verdict.outcome : "is-reference"}`, text: outcome }));
  drawing.append(row);
  const difference = verdict && verdict.value != null ? `\nvs. the reference ${verdict.difference} ${verdict.p}` : "";
  targets.push({ x: x(value.value), y, configuration, text: () => `${configuration.label}\n${value.text} ${value.interval} (${sizeText(value)})${difference}` });
};

const drawSettings = () => {
  const charts = data.keys.map((key, index) => settingChart(key, index)).filter(Boolean);
  byId("settings-section").hidden = !charts.length;
  byId("settings").replaceChildren(...charts);
};
const varies = (configurations, keyIndex) => new Set(configurations.map((configuration) => configuration.settings[keyIndex])).size > 1;
/** The metric against one setting; lines join configurations that differ in this setting only. */
const settingChart = (key, keyIndex) => {
  const shown = visible().filter((configuration) => measured(configuration) && configuration.settings[keyIndex] !== null);
  const names = key.values.filter((value) => shown.some((configuration) => configuration.settings[keyIndex] === value));
  if (names.length < 2) return null;
  const numbers = names.map((name) => (/^-?[\d.]+(e[+-]?\d+)?$/i.test(name) ? Number(name) : NaN));
  const numeric = numbers.every(Number.isFinite);
  const log = numeric && numbers.every((number) => number > 0) && Math.max(...numbers) / Math.min(...numbers) >= 10;
  const xOf = (configuration) => (numeric ? Number(configuration.settings[keyIndex]) : names.indexOf(configuration.settings[keyIndex]));
  const chart = plane({
    xs: shown.map(xOf), ys: shown.flatMap((configuration) => [measured(configuration).value, ...(measured(configuration).bounds || [])]), log, bounded: metricInfo().isShare,
    categories: numeric ? null : names, xTickValues: numeric && numbers.length < 7 ? numbers : null, xTitle: key.name + (log ? " (log)" : ""), yTitle: truncate(chartName(state.metric), 34), name: `${state.metric} against ${key.name}`,
  });
  const lines = new Map();
  shown.forEach((configuration) => {
    const otherSettings = JSON.stringify(configuration.settings.filter((_, index) => index !== keyIndex));
    lines.set(otherSettings, [...(lines.get(otherSettings) || []), configuration]);
  });
  const entries = [...lines.values()].map((members, index) => {
    drawSettingLine(chart, members, xOf, (index - (lines.size - 1) / 2) * Math.min(7, 70 / lines.size));
    const isNamed = (index) => index !== keyIndex && varies(shown, index) && members[0].settings[index] !== null;
    const others = data.keys.flatMap((other, index) => (isNamed(index) ? [`${other.name} ${members[0].settings[index]}`] : []));
    return make("span", {}, swatch(members[0]), others.join(", ") || "all other settings");
  });
  const legend = entries.length > 1 && entries.length < 13 ? make("p", { class: "legend" }, ...entries) : null;
  return make("figure", { class: "chart" }, make("figcaption", { text: `${chartName(state.metric)} against ${key.name}` }), chart.drawing, legend);
};
/** One line in the color of its first member, shifted by `offset` pixels so that error bars do not overlap. */
const drawSettingLine = (chart, members, xOf, offset) => {
  members.sort((a, b) => xOf(a) - xOf(b));
  const shifted = { ...chart, x: (value) => chart.x(value) + offset };
  drawLine(shifted, members.map((configuration) => [xOf(configuration), measured(configuration).value]), members[0]);
  members.forEach((configuration) => {
    const [px, value] = [xOf(configuration), measured(configuration)];
    if (value.bounds) chart.drawing.append(svg("line", { x1: shifted.x(px), x2: shifted.x(px), y1: chart.y(value.bounds[0]), y2: chart.y(value.bounds[1]), stroke: colorOf(members[0]), "stroke-width": 1.2, opacity: 0.6, "data-configuration": configuration.index }));
    drawDot(shifted, px, value.value, { ...configuration, color: members[0].color }, { radius: 4 });
    addTarget(shifted, px, value.value, configuration, () => `${configuration.label}\n${value.text} ${value.interval}`);
  });
};

const drawCurves = () => {
  const shown = visible();
  const charts = data.panels.map((panel, index) => curveChart(panel, index, shown)).filter(Boolean);
  byId("curves").replaceChildren(...(charts.length ? charts : [emptyNote("No step was logged.")]));
};
const curveChart = (panel, index, shown) => {
  const lines = shown.flatMap((configuration) => configuration.runs.map((run) => ({ configuration, run, training: run.curves[index], heldOut: run.heldOut[index] })));
  const points = lines.flatMap(({ training, heldOut }) => [...training, ...heldOut]);
  if (!points.length) return null;
  const ys = points.map(([, py]) => py);
  const logY = ["loss", "norm"].includes(panel.axis) && ys.every((py) => py > 0) && Math.max(...ys) / Math.min(...ys) > 30; // losses of different methods, for example
  const chart = plane({ xs: points.map(([px]) => px), ys, bounded: panel.bounded, logY, integerX: true, xTitle: "step", yTitle: panel.axis + (logY ? " (log)" : ""), name: panel.title });
  lines.forEach(({ configuration, run, training, heldOut }) => {
    if (training.length > 1) drawLine(chart, training, configuration, { width: lines.length > 30 ? 1 : 1.5 });
    [...(training.length === 1 ? training : []), ...heldOut].forEach(([px, py]) => drawDot(chart, px, py, configuration, { radius: 3 }));
    [...training, ...heldOut].forEach(([px, py]) => addTarget(chart, px, py, configuration, () => `${run.label}\nstep ${formatNumber(px)}: ${formatNumber(py)}`));
  });
  return make("figure", { class: "chart" }, make("figcaption", { text: panel.title }), chart.drawing);
};

const drawLegend = () => byId("legend").replaceChildren(...filtered().map((configuration) => {
  const { index, label } = configuration;
  return make("button", {
    type: "button", class: "chip", "aria-pressed": String(!state.hidden.has(index)), title: "Click: hide or show. Shift-click or double click: show only this one.",
    onclick: (event) => { if (event.shiftKey) showOnly(index); else toggleHidden(index); focusChip(index); },
    ondblclick: () => showOnly(index), onpointerenter: () => highlight(configuration), onpointerleave: () => highlight(null), onfocus: () => highlight(configuration), onblur: () => highlight(null), "data-chip": index,
  }, swatch(configuration), label);
}));
/** The legend is redrawn after a change: keep the keyboard focus where it was. */
const focusChip = (index) => afterRedraw(() => { const chip = document.querySelector(`[data-chip="${index}"]`); if (chip) chip.focus(); });
const afterRedraw = (callback) => requestAnimationFrame(() => requestAnimationFrame(callback));

const drawDrift = () => {
  const lines = visibleRuns((run) => run.drift.length);
  if (!lines.length) return byId("drift").replaceChildren(emptyNote("No visible run recorded log-probabilities of held-out answers."));
  const points = lines.flatMap(({ run }) => run.drift);
  const chart = plane({ width: 600, height: 340, xs: points.map(([px]) => px), ys: points.map(([, py]) => py), xTitle: "drift from the reference, nats per answer", yTitle: "margin, nats", name: "margin against drift" });
  lines.forEach(({ configuration, run }) => {
    drawLine(chart, run.drift, configuration, { width: 1 });
    const [px, py] = run.drift[run.drift.length - 1];
    drawDot(chart, px, py, configuration, { radius: 4.5 });
    addTarget(chart, px, py, configuration, () => `${run.label}\ndrift ${formatNumber(px)}, margin ${formatNumber(py)} nats`);
  });
  byId("drift").replaceChildren(chart.drawing);
};

const drawCost = () => {
  const shown = visibleRuns((run) => run.costs.total && measured(run));
  byId("cost-title").textContent = `${chartName(state.metric)} against time`;
  if (!shown.length) return byId("cost").replaceChildren(emptyNote("No visible run has a time and this metric."));
  const [xs, ys] = [shown.map(({ run }) => run.costs.total), shown.map(({ run }) => measured(run).value)];
  const chart = plane({ width: 600, height: 340, xs, ys, zero: true, bounded: metricInfo().isShare, xTitle: "seconds, all phases", yTitle: truncate(chartName(state.metric), 34), name: "metric against cost" });
  shown.forEach(({ configuration, run }, index) => {
    drawDot(chart, xs[index], ys[index], configuration, { radius: 4.5 });
    addTarget(chart, xs[index], ys[index], configuration, () => `${run.label}\n${run.time}, ${formatNumber(run.costs.speed ?? 0)} tokens/s, ${run.costs.memory ?? "?"} GB\n${run.hardware}`);
  });
  byId("cost").replaceChildren(chart.drawing);
  byId("cost-note").textContent = `On: ${[...new Set(shown.map(({ run }) => run.hardware))].join("; ")}.`;
};

const phaseNames = ["load", "reference", "train", "evaluate", "generate", "save"];
const drawPhases = () => {
  const shown = visibleRuns((run) => run.costs.total);
  byId("phases-figure").hidden = !shown.length;
  const longest = Math.max(...shown.map(({ run }) => run.phases.reduce((sum, seconds) => sum + seconds, 0)), 1e-9);
  const key = make("p", { class: "legend" }, ...phaseNames.map((name, index) => make("span", {}, make("i", { class: `phase phase-${index}` }), name)));
  const rows = shown.map(({ configuration, run }) => make("div", { class: "phase-row", "data-row": configuration.index, title: phaseNames.map((name, index) => `${name} ${formatNumber(run.phases[index])} s`).join(", ") },
    make("span", { class: "phase-name", text: run.label }),
    make("span", { class: "phase-bar" }, ...run.phases.map((seconds, index) => make("i", { class: `phase phase-${index}`, style: `width:${((100 * seconds) / longest).toFixed(2)}%` }))),
    make("span", { class: "phase-text", text: `${run.time}, ${run.costs.speed ? formatNumber(run.costs.speed) : "–"} tokens/s, ${run.costs.memory ?? "–"} GB` })));
  byId("phases").replaceChildren(key, make("div", { class: "phase-rows" }, ...rows));
};
