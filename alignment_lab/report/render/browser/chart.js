// Small charts as SVG: axes, ticks, points, lines. Knows coordinates, and no metrics.

const svgNamespace = "http://www.w3.org/2000/svg";
const svg = (tag, attributes = {}, ...children) => {
  const element = document.createElementNS(svgNamespace, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};
const dashes = [null, "6 3", "2 2", "7 2 2 2"];
const colorOf = (configuration) => `var(--series-${configuration.color})`;
const swatch = (configuration) =>
  svg("svg", { class: "swatch", viewBox: "0 0 22 10", "aria-hidden": "true" },
    svg("line", { x1: 1, x2: 21, y1: 5, y2: 5, stroke: colorOf(configuration), "stroke-width": 2.4, "stroke-dasharray": dashes[configuration.dash] }));

/** A number with three or four significant digits; with as many decimals as `step` has, where ticks are a step apart. */
const formatNumber = (value, step = 0) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (step && step < 1e-3) return value.toExponential(1);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(size < 1e-4 ? 1 : 2).replace(/\.?0+e/, "e").replace("e+", "e");
  const digits = step ? decimals(step) : size < 0.01 ? 5 : size < 10 ? 3 : size < 100 ? 2 : size < 1000 ? 1 : 0;
  return value.toLocaleString("en", { minimumFractionDigits: step ? digits : 0, maximumFractionDigits: digits });
};
/** How many decimals tell multiples of this step apart. */
const decimals = (step) => [0, 1, 2, 3, 4, 5, 6].find((count) => Math.abs(step * 10 ** count - Math.round(step * 10 ** count)) < 1e-6 * step * 10 ** count) ?? 6;

/** Round values between low and high; on a log axis the decades, or 1, 2, 5 of each where there are few. */
const ticks = (low, high, count, log) => {
  if (log) {
    const decades = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) decades.push(10 ** power);
    const within = (values) => values.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
    const shown = within(decades);
    return shown.length > 2 ? shown.filter((_, index) => index % Math.ceil(shown.length / count) === 0) : within(decades.flatMap((decade) => [decade, 2 * decade, 5 * decade]));
  }
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((part) => part * power).find((part) => part >= raw * 0.999);
  const values = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) values.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return values;
};

/** The range of an axis: that of the values with a margin. `bounded`: within [0, 1]. `zero`: from 0 on. */
const extent = (values, { log, bounded, zero } = {}) => {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (zero) low = Math.min(0, low);
  if (log) return [low / 1.15, high * 1.15];
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.05 || 0.5;
  [low, high] = [zero && low === 0 ? 0 : low - margin, high + margin];
  return bounded ? [Math.max(low, -0.02), Math.min(high, 1.02)] : [low, high];
};

/**
 * An empty chart with axes: `x(value)` and `y(value)` are coordinates in it, `targets` what the pointer can hit.
 * `categories`: names at x = 0, 1, 2 in place of a range. `xTickValues`: ticks of x in place of round ones.
 */
const plane = ({ width = 460, height = 260, xs, ys, xTitle, yTitle, log = false, logY = false, bounded = false, zero = false, categories = null, xTickValues = null, integerX = false, name }) => {
  const [x0, x1] = categories ? [-0.5, categories.length - 0.5] : extent(xs, { log, zero });
  const [y0, y1] = extent(ys, { bounded, log: logY });
  const yTicks = ticks(y0, y1, 5, logY);
  const yStep = logY ? 0 : yTicks[1] - yTicks[0] || 0;
  const yLabels = yTicks.map((tick) => formatNumber(tick, yStep));
  const left = 22 + 6.6 * Math.max(...yLabels.map((label) => label.length), 1);
  const box = { left, right: width - 10, top: 8, bottom: height - 38 };
  const fraction = (value, low, high, logarithmic) => (logarithmic ? (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low)) : (value - low) / (high - low));
  const x = (value) => box.left + (categories ? (value - x0) / (x1 - x0) : fraction(value, x0, x1, log)) * (box.right - box.left);
  const y = (value) => box.bottom - fraction(value, y0, y1, logY) * (box.bottom - box.top);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name, class: "plot" });
  const axes = svg("g", { class: "axes" });
  yTicks.forEach((tick, index) => axes.append(
    svg("line", { x1: box.left, x2: box.right, y1: y(tick), y2: y(tick), class: tick === 0 ? "zero" : "grid" }),
    svg("text", { x: box.left - 6, y: y(tick) + 3.5, "text-anchor": "end", text: yLabels[index] })));
  let xTicks = categories ? categories.map((_, index) => index) : xTickValues || ticks(x0, x1, 5, log);
  if (integerX && !categories) xTicks = xTicks.filter((tick) => Number.isInteger(tick));
  const xStep = log || xTickValues ? 0 : xTicks[1] - xTicks[0] || 0;
  xTicks.forEach((tick) => axes.append(
    svg("line", { x1: x(tick), x2: x(tick), y1: box.top, y2: box.bottom, class: "grid" }),
    svg("text", { x: x(tick), y: box.bottom + 15, "text-anchor": "middle", text: categories ? truncate(categories[tick], 80 / categories.length + 4) : formatNumber(tick, xStep) })));
  axes.append(
    svg("text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle", class: "title", text: xTitle }),
    svg("text", { x: 11, y: (box.top + box.bottom) / 2, transform: `rotate(-90 11 ${(box.top + box.bottom) / 2})`, "text-anchor": "middle", class: "title", text: yTitle }));
  drawing.append(axes);
  const targets = [];
  handlePointer(drawing, targets, width);
  return { drawing, x, y, targets, box };
};
const truncate = (text, limit) => (String(text).length > limit ? `${String(text).slice(0, Math.max(1, limit - 1))}…` : String(text));

const drawLine = (chart, points, configuration, { width = 1.5 } = {}) => {
  const path = points.map(([px, py], index) => `${index ? "L" : "M"}${chart.x(px).toFixed(1)} ${chart.y(py).toFixed(1)}`).join("");
  chart.drawing.append(svg("path", { d: path, fill: "none", stroke: colorOf(configuration), "stroke-width": width, "stroke-dasharray": dashes[configuration.dash], "stroke-linejoin": "round", "data-configuration": configuration.index }));
};
const drawDot = (chart, px, py, configuration, { radius = 3.4 } = {}) =>
  chart.drawing.append(svg("circle", { cx: chart.x(px).toFixed(1), cy: chart.y(py).toFixed(1), r: radius, fill: colorOf(configuration), "data-configuration": configuration.index }));
/** Let the pointer find a point; `text()` is called only when it does. */
const addTarget = (chart, px, py, configuration, text) => chart.targets.push({ x: chart.x(px), y: chart.y(py), configuration, text });

/** Show the text of the target nearest to the pointer, and highlight its configuration everywhere. */
const handlePointer = (drawing, targets, width) => {
  const tip = byId("tip");
  drawing.addEventListener("pointermove", (event) => {
    const frame = drawing.getBoundingClientRect();
    const scale = width / frame.width;
    const [px, py] = [(event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale];
    let [nearest, least] = [null, 30 * 30];
    for (const target of targets) {
      const distance = (target.x - px) ** 2 + (target.y - py) ** 2;
      if (distance < least) [nearest, least] = [target, distance];
    }
    highlight(nearest && nearest.configuration);
    tip.hidden = !nearest;
    if (!nearest) return;
    const lines = nearest.text().split("\n");
    tip.replaceChildren(swatch(nearest.configuration), ...lines.flatMap((line, index) => (index ? [make("br"), line] : [make("strong", { text: line })])));
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
  });
  drawing.addEventListener("pointerleave", () => { tip.hidden = true; highlight(null); });
};
const highlightStyle = document.head.appendChild(make("style"));
/** Dim every other configuration in all drawings; null ends that. */
const highlight = (configuration) => {
  const index = configuration?.index;
  const rule = configuration ? `.plot [data-configuration]:not([data-configuration="${index}"]) { opacity: 0.13; } [data-row="${index}"] { background: var(--warm); }` : "";
  if (highlightStyle.textContent !== rule) highlightStyle.textContent = rule;
};
